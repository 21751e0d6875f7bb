"""The words of a question in a passage, as BM25 counts them."""

import functools
import re

import Stemmer

from dpr_jax.index import bm25_words

WORD = re.compile(r"(?u)\b\w\w+\b")  # bm25s' rule
_stemmer = Stemmer.Stemmer("english")


@functools.lru_cache(maxsize=1024)
def stems(question: str) -> frozenset[str]:
    """Returns the stems of a question that BM25 looks for; stop words are left out."""
    [words] = bm25_words.english([question], return_ids=False)
    return frozenset(words)


def marks(text: str, wanted: frozenset[str]) -> list[tuple[int, int]]:
    """Returns where a text has a word of these stems.

    Args:
      text: title or text of a passage.
      wanted: from `stems`.

    Returns:
      (begin, end) of each, in characters (code points), ascending.
    """
    words = list(WORD.finditer(text))
    found = _stemmer.stemWords([word.group().lower() for word in words])
    return [word.span() for word, stem in zip(words, found, strict=True) if stem in wanted]
