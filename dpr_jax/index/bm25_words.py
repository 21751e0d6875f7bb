"""Cuts texts into the words that BM25 indexes, by language, and finds the language of a corpus.

English is as bm25s does it. Other languages with spaces: words of two or more letters in Unicode
NFC, stop words of bm25s where it has some, Snowball's stemmer (PyStemmer) where it has one. Scripts
without spaces, and Korean: overlapping pairs of characters in NFKC, as Lucene's CJK analyzer does,
and words of other scripts as they are.
"""

import functools
import itertools
import typing
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from types import ModuleType
from typing import Any

import regex
import Stemmer

from dpr_jax.config import Language

ENGLISH = "english"
PAIRS = ("chinese", "japanese", "korean", "thai", "lao", "khmer", "burmese")
SAMPLED_TEXTS = 2000
CHARACTERS_OF_A_TEXT = 1000
LEAST_PAIRS_SHARE = 0.2  # of the letters, for a corpus to be one of PAIRS
LEAST_WORDS_SHARE = 0.08  # of the words that are its function words, for a language but English

_WORD = regex.compile(r"[\p{L}\p{N}\p{M}_]{2,}")
_PAIRED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}ー"
_RUN = regex.compile(rf"(?P<run>[{_PAIRED}][{_PAIRED}\p{{M}}]*)|[^\W{_PAIRED}]{{2,}}")
_SCRIPT = {
    name: regex.compile(rf"\p{{{name}}}")
    for name in (
        *("Latin", "Cyrillic", "Greek", "Arabic", "Devanagari", "Armenian", "Tamil", "Hebrew"),
        *("Han", "Hiragana", "Katakana", "Hangul", "Thai", "Lao", "Khmer", "Myanmar"),
    )
}
_PAIRS_OF_SCRIPT = {
    "Han": "chinese",
    "Hangul": "korean",
    "Thai": "thai",
    "Lao": "lao",
    "Khmer": "khmer",
    "Myanmar": "burmese",
}
_OF_SCRIPT = {"Greek": "greek", "Armenian": "armenian", "Tamil": "tamil"}
# script -> language -> its most frequent function words; `none` has no stemmer
_FUNCTION_WORDS: dict[str, list[tuple[str, str]]] = {
    "Latin": [
        (ENGLISH, "the of and to in is that for it with as was on by are this from be or"),
        ("german", "der die und das ist nicht mit den von ein eine auf für dem des sich im zu"),
        ("french", "le la les des est une dans que pour et du qui sur au pas en il de un"),
        ("spanish", "el la los las que del una por con para como es se al lo en de un y su"),
        ("portuguese", "os que do da em um uma não para com dos das ao as na no por de o e se"),
        ("italian", "il di che la gli della per una è del con non sono nel alla un le dei da"),
        ("dutch", "de het een van en is dat die niet met voor zijn op te aan in der wordt"),
        ("swedish", "och att det som en är på för av till med den har inte ett i om var"),
        ("norwegian", "og det som er på for av til med den har ikke et en i å ble var"),
        ("danish", "og det som er på for af til med den har ikke et der i en at blev"),
        ("finnish", "ja on ei että se oli kun hän mutta joka ovat myös tai sen jonka"),
        ("hungarian", "a az és hogy nem egy is volt meg ez vagy csak el mint"),
        ("romanian", "și de în la cu un o nu pe care este din să pentru sunt fost au"),
        ("turkish", "ve bir bu da için ile olarak daha çok olan gibi en sonra"),
        ("indonesian", "yang dan di dengan untuk dari pada ini itu dalam tidak adalah oleh"),
        ("catalan", "el la els les que del una per amb és dels va i en de al un"),
        ("polish", "i w na z do się nie jest to że jak przez od o oraz"),
        ("czech", "a v na se je že s z do to jako byl ve pro si"),
        ("lithuanian", "ir yra kad su į iš buvo kaip ar bei tai"),
        ("estonian", "ja on ei et see oli kui ning mis ka oma"),
        ("none", "của và là các có được trong cho người không một những với"),  # Vietnamese
        ("none", "je i u na se da su za od koji kao sa ili"),  # Croatian
    ],
    "Cyrillic": [
        ("russian", "и в не на что с по это как он из для был его от она"),
        ("none", "і в не на що з до як та це у для або є"),  # Ukrainian
        ("none", "и на да се за е от в не с са по като"),  # Bulgarian
        ("serbian", "и у је на се да су за од који као са"),
    ],
    "Arabic": [
        ("arabic", "في من على إلى أن هذا التي الذي عن كان مع"),
        ("persian", "و در به از که این را است با برای آن"),
        ("none", "کے میں کی ہے اور سے کا کو نے پر"),  # Urdu
    ],
    "Devanagari": [
        ("hindi", "के में है की और से का को हैं पर ने"),
        ("nepali", "छ र को मा का हो लाई गरेको पनि"),
        ("none", "आहे आणि या च्या मध्ये होते हा"),  # Marathi
    ],
}


def tokenize(texts: Sequence[str], language: str) -> list[list[str]]:
    """Returns the words of each text, as they are indexed."""
    if language == ENGLISH:
        return english(list(texts), return_ids=False)
    return list(map(_tokenizer(language), texts))


def spans(text: str, language: str) -> list[tuple[int, int]]:
    """Returns where the words of a text stand, pairs of characters too: (begin, end), ascending."""
    if language not in PAIRS:
        return [word.span() for word in _WORD.finditer(text)]
    found: list[tuple[int, int]] = []
    for word in _RUN.finditer(text):
        if word["run"] is None:
            found.append(word.span())
            continue
        begin, end = word.span()
        one = [part.span() for part in regex.finditer(r"\X", text, pos=begin, endpos=end)]
        pairs = [(first[0], second[1]) for first, second in itertools.pairwise(one)]
        found += pairs or one
    return found


def english(texts: list[str], *, return_ids: bool) -> Any:
    """Returns stemmed words without stop words, as bm25s has them.

    Args:
      texts: to cut.
      return_ids: give bm25s' Tokenized of ids and vocabulary; else list[list[str]].
    """
    return bm25s().tokenize(
        texts,
        stopwords="en",
        stemmer=Stemmer.Stemmer(ENGLISH),
        return_ids=return_ids,
        show_progress=False,
    )


def evenly(count: int) -> range:
    """Returns rows evenly spaced over `count` passages, to find the language of a corpus by."""
    return range(0, count, max(1, count // SAMPLED_TEXTS))


def find_language(texts: Iterable[str]) -> str:
    """Finds the language of texts; English where nothing speaks clearly for another one.

    Args:
      texts: some of the corpus; the first SAMPLED_TEXTS are looked at.

    Returns:
      A language of `dpr_jax.config.Language`.
    """
    letters: Counter[str] = Counter()
    words: Counter[str] = Counter()
    for text in itertools.islice(texts, SAMPLED_TEXTS):
        text = unicodedata.normalize("NFC", text[:CHARACTERS_OF_A_TEXT].lower())
        if text.isascii():
            letters["Latin"] += sum(map(str.isalpha, text))
        else:
            letters.update({name: len(one.findall(text)) for name, one in _SCRIPT.items()})
        words.update(regex.findall(r"[\p{L}\p{M}]+", text))
    total = letters.total()
    kana = letters.pop("Hiragana", 0) + letters.pop("Katakana", 0)
    letters["Han"] += kana
    paired = max(_PAIRS_OF_SCRIPT, key=lambda name: letters[name])
    if total and sum(letters[name] for name in _PAIRS_OF_SCRIPT) >= LEAST_PAIRS_SHARE * total:
        return (
            "japanese"
            if paired == "Han" and kana > 0.05 * letters["Han"]
            else (_PAIRS_OF_SCRIPT[paired])
        )
    script = letters.most_common(1)[0][0] if total else "Latin"
    if script not in _FUNCTION_WORDS:
        return _OF_SCRIPT.get(script, "none")
    shares = [
        (sum(words[word] for word in listed.split()) / max(1, words.total()), language)
        for language, listed in _FUNCTION_WORDS[script]
    ]
    share, language = max(shares, key=lambda one: one[0])
    if script != "Latin":
        return language
    of_english = shares[0][0]
    return language if share >= LEAST_WORDS_SHARE and share > 1.25 * of_english else ENGLISH


def described(language: str) -> str:
    """Describes for people how words of a language are processed."""
    if language in PAIRS:
        return "pairs of characters"
    parts = ["stop words left out"] if _stop_words(language) else []
    parts += ["stemming"] if _has_stemmer(language) else []
    return " and ".join(parts) or "words as they are"


def bm25s() -> ModuleType:
    """Imports the package, which computes with JAX then: the processes of a run must have joined
    before that.
    """
    import logging

    import bm25s

    logging.getLogger("bm25s").setLevel(logging.WARNING)  # it sets itself to DEBUG
    return bm25s


@functools.cache
def _tokenizer(language: str) -> Callable[[str], list[str]]:
    assert language in typing.get_args(Language), language
    if language in PAIRS:
        return _pairs
    stop_words = _stop_words(language)
    stem = Stemmer.Stemmer(language).stemWords if _has_stemmer(language) else list

    def words(text: str) -> list[str]:
        found = _WORD.findall(unicodedata.normalize("NFC", text).lower())
        return stem([word for word in found if word not in stop_words])

    return words


def _has_stemmer(language: str) -> bool:
    return language in Stemmer.algorithms()


@functools.cache
def _stop_words(language: str) -> frozenset[str]:
    lists = bm25s().stopwords
    name = "EN" if language == ENGLISH else language.upper()
    return frozenset(getattr(lists, f"STOPWORDS_{name}", ()))


def _pairs(text: str) -> list[str]:
    """Returns pairs of neighbouring characters, and words of scripts that have spaces."""
    words: list[str] = []
    for found in _RUN.finditer(unicodedata.normalize("NFKC", text).lower()):
        run = found["run"]
        if run is None:
            words.append(found[0])
            continue
        characters = regex.findall(r"\X", run)
        if len(characters) == 1:
            words.append(run)
        words += [first + second for first, second in itertools.pairwise(characters)]
    return words
