"""Tells whether a passage contains an answer, by DPR's rule (Karpukhin et al., 2020, 2004.04906).

Only the passage's text counts, never its title. Three ways, of which the first two are DPR's:

- string: answer and text are brought to Unicode NFD and cut into tokens: a run of letters, numbers
  and marks, or any other single character that is neither separator nor control. Tokens are
  lower-cased one by one (`str.lower`, no case folding). The answer is found where its tokens stand
  in the text in one unbroken run.
- regex: the answer is a pattern for the `regex` module, searched in the NFD text without regard to
  case, with ^ and $ at every line. A pattern that does not compile finds nothing.
- substring: the answer is found wherever its characters stand in the text, in NFD, in small letters
  and with one blank for any white space. For scripts without spaces, whose words the first way
  cannot tell apart.

An answer without any token (empty, or blanks alone) is found in every text, the empty one too: the
published rule has it so, since an empty run of tokens stands everywhere. Whoever reads answer files
should refuse such rows.
"""

import contextlib
import functools
import unicodedata
from collections.abc import Callable, Sequence
from typing import Literal

import regex

Match = Literal["string", "regex", "substring"]

_UNSPACED = regex.compile(r"[\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}]")
_TOKEN = regex.compile(r"[\p{L}\p{N}\p{M}]+|[^\p{Z}\p{C}]")
_PATTERN_FLAGS = regex.IGNORECASE | regex.UNICODE | regex.MULTILINE
_SIGMA = "\N{GREEK CAPITAL LETTER SIGMA}"


def has_answer(answers: Sequence[str], text: str, *, match: Match = "string") -> bool:
    """Returns whether any of the answers is in the text.

    Args:
      answers: the answers of one question; none: never found.
      text: a passage's text, without its title.
      match: string, regex for answers that are patterns (CuratedTREC), or substring.
    """
    return matcher(tuple(answers), match)(text)


@functools.lru_cache(maxsize=256)
def matcher(answers: tuple[str, ...], match: Match) -> Callable[[str], bool]:
    """Prepares the answers of one question for `has_answer` on many texts."""
    if match == "regex":
        return _regex_matcher(answers)
    if match == "substring":
        return _substring_matcher(answers)
    return _string_matcher(answers)


def is_unspaced(answers: Sequence[str]) -> bool:
    """Returns whether an answer is in a script without spaces, where tokens are no words."""
    return any(_UNSPACED.search(answer) for answer in answers)


def broken_patterns(answers: Sequence[str]) -> list[str]:
    """Returns the answers that are no regular expressions, which find nothing."""
    return [answer for answer in answers if _compiled(answer) is None]


def tokens(text: str) -> list[str]:
    """Returns the lower-cased tokens that answers are compared by."""
    return [token.lower() for token in _TOKEN.findall(_nfd(text))]


def _string_matcher(answers: tuple[str, ...]) -> Callable[[str], bool]:
    wanted = [tokens(answer) for answer in answers]
    if not all(wanted):
        return lambda text: True
    # A token holds no blank, so a run of tokens in a list is a substring of the list joined with
    # blanks.
    runs = [(_joined(run), run) for run in wanted]

    def found(text: str) -> bool:
        text = _nfd(text)
        # Most texts are refused without being cut into tokens: each token of an answer must be
        # somewhere in them. Lower-casing the text as a whole equals doing it token by token, but
        # for the sigma, which has two small forms.
        if _SIGMA not in text:
            lowered = text.lower()
            likely = [joined for joined, run in runs if all(token in lowered for token in run)]
        else:
            likely = [joined for joined, _ in runs]
        if not likely:
            return False
        joined_text = _joined(tokens(text))
        return any(joined in joined_text for joined in likely)

    return found


def _regex_matcher(answers: tuple[str, ...]) -> Callable[[str], bool]:
    patterns = [pattern for pattern in map(_compiled, answers) if pattern is not None]

    def found(text: str) -> bool:
        text = _nfd(text)
        return any(pattern.search(text) for pattern in patterns)

    return found


def _compiled(answer: str) -> regex.Pattern | None:
    # what the module raises for a pattern that is wrong, nested too deeply, or asks for flags that
    # exclude ours
    with contextlib.suppress(regex.error, RecursionError, ValueError):
        return regex.compile(_nfd(answer), _PATTERN_FLAGS)
    return None


def _substring_matcher(answers: tuple[str, ...]) -> Callable[[str], bool]:
    wanted = [_in_one_line(answer) for answer in answers]

    def found(text: str) -> bool:
        text = _in_one_line(text)
        return any(answer in text for answer in wanted)

    return found


def _in_one_line(text: str) -> str:
    return " ".join(_nfd(text).lower().split())


def _nfd(text: str) -> str:
    return text if text.isascii() else unicodedata.normalize("NFD", text)


def _joined(run: list[str]) -> str:
    return f" {' '.join(run)} "
