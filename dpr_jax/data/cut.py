"""Documents to passages: disjoint blocks of words as in the paper (100 of them), or overlapping
windows of tokens.
"""

import bisect
import itertools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence

from dpr_jax.data.fields import fields_of, with_fields
from dpr_jax.data.raw import Passage

Cut = Callable[[list[str]], list[list[str]]]  # the words of a document -> of passages

WORDS_REMEMBERED = 1_000_000


def into_passages(
    documents: Iterable[tuple[str, Passage]], cut: Cut, count: Counter[str]
) -> Iterator[tuple[str, Passage]]:
    """Yields the passages of all documents, with the title and fields of their document.

    Args:
      documents: file and line of each, and the document.
      cut: `by_words` or `by_tokens` with their numbers given.
      count: gets the documents, and those that have no text.

    Yields:
      Where the document stands, and a passage; its id is the document's, a colon, and its place in
      the document, from 0. Words are separated by one blank.
    """
    for where, document in documents:
        count["documents"] += 1
        words = document.text.split()
        count["documents dropped: no text"] += not words
        if words:
            for place, part in enumerate(cut(words)):
                id_ = f"{document.id}:{place}"
                passage = Passage(id_, document.title, " ".join(part))
                yield where, with_fields(passage, fields_of(document))


def by_words(words: list[str], *, length: int) -> list[list[str]]:
    """Cuts words into disjoint blocks of `length` words; the last one may be shorter."""
    return [words[start : start + length] for start in range(0, len(words), length)]


def remembering(
    sizes_of: Callable[[Sequence[str]], list[int]],
) -> Callable[[Sequence[str]], list[int]]:
    """Returns `sizes_of` with a cache: a text has few different words, and each takes long."""
    known: dict[str, int] = {}

    def sizes(words: Sequence[str]) -> list[int]:
        if len(known) > WORDS_REMEMBERED:
            known.clear()
        new = [word for word in dict.fromkeys(words) if word not in known]
        if new:
            known.update(zip(new, sizes_of(new), strict=True))
        return [known[word] for word in words]

    return sizes


def by_tokens(
    words: list[str],
    *,
    sizes_of: Callable[[Sequence[str]], list[int]],
    length: int,
    stride: int,
) -> list[list[str]]:
    """Cuts words into windows of at most `length` tokens; a longer word is a window of its own.

    Args:
      words: of a document, at least one.
      sizes_of: the number of tokens of each word.
      length: tokens of a window.
      stride: a window begins at the first word that is so many tokens after the begin of the one
        before, or at that one's end.
    """
    # first_W[w] is the number of tokens before word w
    first_W = [0, *itertools.accumulate(sizes_of(words))]
    windows, begin, end = [], 0, 0
    while end < len(words):
        end = max(begin + 1, bisect.bisect_right(first_W, first_W[begin] + length) - 1)
        windows.append(words[begin:end])
        begin = min(end, max(begin + 1, bisect.bisect_left(first_W, first_W[begin] + stride)))
    return windows
