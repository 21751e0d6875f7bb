"""has_answer against a table worked out by hand from the published rule."""

import unicodedata

import pytest
import regex

from dpr_jax.data.answers import has_answer, matcher, tokens

NFC_CAFE, NFD_CAFE = "caf\u00e9", "cafe\u0301"

# (what is tried, answers, text, found)
STRING_CASES = [
    # plain runs of tokens
    ("word", ["Paris"], "He lives in Paris today", True),
    ("several words", ["New York City"], "in New York City since 1990", True),
    ("at the start", ["He lives"], "He lives in Paris", True),
    ("at the end", ["in Paris"], "He lives in Paris", True),
    ("whole text", ["in Paris"], "in Paris", True),
    ("words in another order", ["City York"], "York City", False),
    ("words with one between", ["New City"], "New York City", False),
    ("part of a word, front", ["art"], "an artist", False),
    ("part of a word, back", ["art"], "a smart move", False),
    ("last word cut", ["New Yor"], "in New York", False),
    ("plural is another word", ["dog"], "many dogs", False),
    ("longer than the text", ["in New York City"], "New York City", False),
    ("same length, other words", ["in Paris"], "in Rome", False),
    ("second answer of three", ["Rome", "Paris", "Oslo"], "in Paris", True),
    ("none of three", ["Rome", "Bern", "Oslo"], "in Paris", False),
    ("no answers", [], "in Paris", False),
    ("run that starts after a false start", ["a a b"], "a a a b", True),
    # case
    ("answer in capitals", ["PARIS"], "in paris", True),
    ("text in capitals", ["paris"], "IN PARIS", True),
    ("lower-cased, not folded: sharp s", ["Strasse"], "die Straße", False),
    ("sharp s against itself", ["STRAßE"], "die Straße", True),
    ("capital sharp s lower-cases to the small one", ["STRAẞE"], "straße", True),
    ("final sigma as written", ["ΟΔΟΣ"], "η οδος εδω", True),
    ("final sigma against medial one", ["οδοσ"], "ΟΔΟΣ", False),
    ("sigma is final at its token's end", ["ΑΣ"], "ας'α", True),
    ("sigma: token by token, not the text as a whole", ["ας"], "ΑΣ'Α", True),
    ("Turkish dotted capital I decomposes", ["İ"], "i\u0307", True),
    ("dotless i is another letter", ["ISIK"], "ışık", False),
    # punctuation: a token of its own, one a character
    ("comma in the text between", ["New York"], "New, York", False),
    ("comma in both", ["Paris, France"], "from Paris , France", True),
    ("comma in the answer alone", ["Paris, France"], "Paris France", False),
    ("full stop after the answer", ["Paris"], "It is Paris.", True),
    ("abbreviation against the plain letters", ["US"], "the U.S. army", False),
    ("abbreviation with its dots", ["U.S."], "the U.S. army", True),
    ("abbreviation without the last dot", ["U.S"], "the U.S. army", True),
    ("dots without blanks equal dots with blanks", ["U . S ."], "the U.S. army", True),
    ("quotes around", ["Hamlet"], 'in "Hamlet" he', True),
    ("bracket in the answer", ["C (language)"], "the C (language) book", True),
    ("ellipsis character is not three dots", ["wait..."], "wait…", False),
    ("three dots are three tokens", ["wait . . ."], "wait...", True),
    ("only punctuation", ["?"], "Who is it?", True),
    ("currency sign", ["$5"], "it cost $ 5", True),
    ("percent sign left out", ["5"], "it fell by 5%", True),
    ("underscore is punctuation", ["snake case"], "snake_case", False),
    ("underscore against itself", ["snake _ case"], "snake_case", True),
    ("plus signs", ["C++"], "written in C + +", True),
    ("ampersand", ["AT&T"], "at AT & T today", True),
    # hyphens, dashes, apostrophes
    ("hyphen against blank", ["twenty one"], "twenty-one", False),
    ("hyphen with blanks", ["twenty-one"], "twenty - one", True),
    ("hyphen against en dash", ["1914-1918"], "1914–1918", False),
    ("non-breaking hyphen is another character", ["a-b"], "a\u2011b", False),
    ("part of a hyphenated word is a word", ["one"], "twenty-one", True),
    ("soft hyphen is a control: it splits a word", ["co", "x"], "co\u00adop", True),
    ("word with a soft hyphen is two", ["coop"], "co\u00adop", False),
    ("straight against curly apostrophe", ["don't"], "don’t", False),
    ("straight apostrophe", ["don't"], "I don't know", True),
    ("possessive s left out", ["John"], "John's house", True),
    ("s is a token", ["s house"], "John's house", True),
    # numbers
    ("year", ["1969"], "in 1969 they", True),
    ("digits inside a number", ["969"], "in 1969 they", False),
    ("thousands comma in one of them", ["1000"], "about 1,000 men", False),
    ("thousands comma in both", ["1,000"], "about 1,000 men", True),
    ("number before the comma", ["1"], "about 1,000 men", True),
    ("decimal point", ["3.14"], "pi is 3.14159", False),
    ("letters stick to digits", ["5"], "5km away", False),
    ("ordinal", ["20th century"], "the 20th century", True),
    ("superscript is a number and keeps its form", ["m2"], "in m²", False),
    ("fraction is a number", ["½"], "about ½ cup", True),
    ("Roman numeral character is a number", ["Ⅷ"], "Henry ⅷ", True),
    ("Arabic-Indic digits are other digits", ["2024"], "عام ٢٠٢٤", False),
    # Unicode forms, marks
    ("composed answer, decomposed text", [NFC_CAFE], f"a {NFD_CAFE} there", True),
    ("decomposed answer, composed text", [NFD_CAFE], f"a {NFC_CAFE} there", True),
    ("accent left out", ["cafe"], f"a {NFC_CAFE} there", False),
    ("two marks in the other order", ["a\u0323\u0302"], "a\u0302\u0323", True),
    ("Angstrom sign is A with ring", ["\u212b"], "10 Å wide", True),
    ("ligature is one letter in NFD", ["office"], "o\ufb03ce", False),
    ("full-width letters stay so", ["ABC"], "ＡＢＣ", False),
    ("mark alone after a blank is a token", ["\u0301"], "a \u0301 b", True),
    ("Devanagari vowel signs belong to the word", ["हिन्दी"], "यह हिन्दी है", True),
    ("Devanagari without its vowel sign", ["हिन्द"], "यह हिन्दी है", False),
    ("Hangul decomposes on both sides", ["한국"], "서울 한국 사람", True),
    ("Hangul: first syllable alone", ["한"], "한국", False),
    ("Arabic", ["القاهرة"], "في القاهرة اليوم", True),
    # scripts without blanks: a run of letters is one token
    ("Chinese inside a sentence", ["北京"], "我住在北京市", False),
    ("Chinese set off by blanks", ["北京"], "我住在 北京 市", True),
    ("Chinese set off by its comma", ["北京"], "北京，中国", True),
    ("Japanese long mark is a letter", ["ラーメン"], "「ラーメン」を食べる", True),
    ("Thai inside a sentence", ["ไทย"], "ประเทศไทย", False),
    # blanks, controls, symbols
    ("newline between words", ["New York"], "New\nYork", True),
    ("tab and many blanks", ["New York"], "New \t  York", True),
    ("no-break space", ["New York"], "New\u00a0York", True),
    ("ideographic space", ["東京 大学"], "東京\u3000大学", True),
    ("zero-width space splits", ["New York"], "New\u200bYork", True),
    ("zero-width joiner splits", ["ab"], "a\u200db", False),
    ("byte order mark in front", ["Paris"], "\ufeffParis", True),
    ("null between words", ["New York"], "New\x00York", True),
    ("private use is a control", ["a b"], "a\ue000b", True),
    ("emoji is a token", ["😀"], "so 😀 happy", True),
    ("emoji of two characters, its first alone", ["👍"], "👍🏽", True),
    ("degree sign", ["20 °C"], "at 20°C", True),
    # answers without tokens are in every text
    ("empty answer", [""], "some text", True),
    ("empty answer, empty text", [""], "", True),
    ("blanks alone", ["  \t"], "some text", True),
    ("zero-width space alone", ["\u200b"], "some text", True),
    ("one empty among others", ["Rome", ""], "in Paris", True),
    ("empty text", ["Paris"], "", False),
    ("text of blanks", ["Paris"], " \n ", False),
]

REGEX_CASES = [
    ("literal", ["Paris"], "in Paris", True),
    ("inside a word", ["art"], "a smart move", True),
    ("case", ["pARIS"], "in PARIS", True),
    ("choice", ["Rome|Oslo"], "from Oslo", True),
    ("optional part", [r"colou?r"], "the color", True),
    ("digits", [r"19\d\d"], "in 1969", True),
    ("digits of other scripts are digits", [r"\d+"], "عام ٢٠٢٤", True),
    ("caret at a line's start", ["^second"], "first\nsecond", True),
    ("dollar at a line's end", ["first$"], "first\nsecond", True),
    ("caret not inside a line", ["^lives"], "he lives", False),
    ("dot stops at a newline", ["first.second"], "first\nsecond", False),
    ("blank class crosses lines", [r"first\s+second"], "first\nsecond", True),
    ("word boundary", [r"\bart\b"], "a smart move", False),
    ("composed pattern, decomposed text", [NFC_CAFE], NFD_CAFE, True),
    ("Unicode property", [r"\p{Lu}\p{Ll}+ov"], "by Chekhov", True),
    ("not found", [r"Rome"], "in Paris", False),
    ("empty pattern", [""], "some text", True),
    ("no patterns", [], "some text", False),
    ("does not compile: bracket", ["(Paris"], "in (Paris", False),
    ("does not compile: star", ["*"], "a * b", False),
    ("does not compile: back-slash", ["Paris\\"], "Paris\\", False),
    ("does not compile: flags that exclude ours", ["(?L)Paris"], "Paris", False),
    ("does not compile: too deep", ["(" * 5000 + ")" * 5000], "Paris", False),
    ("bad one first, good one second", ["(", "Paris"], "in Paris", True),
]


@pytest.mark.parametrize(
    ("answers", "text", "found"),
    [c[1:] for c in STRING_CASES],
    ids=[c[0] for c in STRING_CASES],
)
def test_string_match(answers: list[str], text: str, found: bool) -> None:
    assert has_answer(answers, text) is found


@pytest.mark.parametrize(
    ("answers", "text", "found"),
    [c[1:] for c in REGEX_CASES],
    ids=[c[0] for c in REGEX_CASES],
)
def test_regex_match(answers: list[str], text: str, found: bool) -> None:
    assert has_answer(answers, text, match="regex") is found


@pytest.mark.parametrize(
    ("answers", "text", "found"),
    [c[1:] for c in STRING_CASES],
    ids=[c[0] for c in STRING_CASES],
)
def test_quick_ways_change_nothing(answers: list[str], text: str, found: bool) -> None:
    """The rule word for word: lists of tokens, every start."""

    def slow_tokens(string: str) -> list[str]:
        string = unicodedata.normalize("NFD", string)
        pattern = r"([\p{L}\p{N}\p{M}]+)|([^\p{Z}\p{C}])"
        found = regex.finditer(pattern, string, regex.I | regex.U | regex.M)
        return [token.group().lower() for token in found]

    text_tokens = slow_tokens(text)
    runs = [slow_tokens(answer) for answer in answers]
    slow = any(
        run == text_tokens[start : start + len(run)]
        for run in runs
        for start in range(len(text_tokens) - len(run) + 1)
    )
    assert slow is found


def test_tokens() -> None:
    assert tokens("Don't stop, Zoë!") == [
        "don",
        "'",
        "t",
        "stop",
        ",",
        "zoe\u0308",
        "!",
    ]


def test_a_prepared_matcher_remembers_nothing_of_other_texts() -> None:
    found = matcher(("Paris",), "string")
    assert [found(text) for text in ("Paris", "Rome", "in Paris", "")] == [
        True,
        False,
        True,
        False,
    ]
