"""The words of a question in a passage, as BM25 counts them in the language of the corpus."""

import functools

from dpr_jax.index import bm25_words


@functools.lru_cache(maxsize=1024)
def words(question: str, language: str) -> frozenset[str]:
    """Returns the words of a question that BM25 looks for: stems, or pairs of characters."""
    return frozenset(bm25_words.tokenize([question], language)[0])


def marks(text: str, wanted: frozenset[str], language: str) -> list[tuple[int, int]]:
    """Returns where a text has words of a question.

    Args:
      text: title or text of a passage.
      wanted: from `words`.
      language: that BM25 cuts words by.

    Returns:
      (begin, end) of each, in characters (code points), ascending; those that overlap are one.
    """
    spans = bm25_words.spans(text, language)
    cut = bm25_words.tokenize([text[begin:end] for begin, end in spans], language)
    found: list[tuple[int, int]] = []
    for (begin, end), tokens in zip(spans, cut, strict=True):
        if wanted.isdisjoint(tokens):
            continue
        if found and begin < found[-1][1]:
            begin = found.pop()[0]
        found.append((begin, end))
    return found
