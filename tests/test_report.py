"""The page: self-contained, escaped, with every number; its examples by rule; its plots."""

import functools
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from dpr_jax.config import Config, EvaluateConfig
from dpr_jax.data.raw import Passage
from dpr_jax.data.store import Question
from dpr_jax.evaluation import plots, report, table
from dpr_jax.evaluation.examples import Choice, Example, Shown, choose_examples
from dpr_jax.evaluation.metrics import Estimate

EVIL = '<script>alert("x")</script>'


def summary(run: str, value: float, against: dict[str, float]) -> dict:
    return {
        "run": run,
        "questions": 1234,
        "depth": 100,
        "compared_with": list(against),
        "gold": {
            "questions": 1234,
            "metrics": {
                name: {"value": value, "low": value - 0.0211, "high": value + 0.0173}
                for name in ("top-1", "top-5", "MRR@10", "recall@1", "recall@5")
            },
            "difference": {
                other: {
                    name: {
                        "value": gap,
                        "low": gap - 0.05,
                        "high": gap + 0.05,
                        "p_value": 0.0123,
                    }
                    for name in ("top-1", "top-5", "MRR@10", "recall@1", "recall@5")
                }
                for other, gap in against.items()
            },
            "first_hit_rank": [],
        },
    }


SUMMARIES = [
    summary("bm25", 0.3711, {}),
    summary("trained", 0.8288, {"bm25": 0.4577}),
    summary(EVIL, 0.1234, {"bm25": 0.0111}),
]
CURVES = {
    "gold": {
        facts["run"]: [Estimate(v, v - 0.02, v + 0.02) for v in (0.4, 0.5, 0.6, 0.7)]
        for facts in SUMMARIES
    }
}
SHOWN = Shown(1, EVIL, [("see ", False), (EVIL, True)], "all of it " + EVIL, True, True)
EXAMPLES = Choice("trained", "bm25", 700, 30, [
    Example(f"who {EVIL}?", why, (EVIL,), SHOWN, {"bm25": (0, []), "trained": (2, [SHOWN])})
    for why in ("win", "loss", "chance")
])  # fmt: skip
TRAINING = [
    *({"step": step, "loss": 1 / step, "accuracy": 0.5} for step in range(1, 40)),
    {"step": 39, "validation_nll": 0.4321, "validation_accuracy": 0.9},
]


@functools.cache
def default_page() -> str:
    return render()


def render(**changes: object) -> str:
    parts = {
        "title": EVIL,
        "corpus_size": 56789,
        "summaries": SUMMARIES,
        "curves": CURVES,
        "examples": EXAMPLES,
        "training": {"trained": TRAINING},
        "indexes": {
            "index": {
                "kind": "scann",
                "count": 56789,
                "dimension": 384,
                "recall_at_100": 0.9876,
                "queries_per_s": 4321.9,
            }
        },
        "manifests": {
            "bm25": {
                "kind": "bm25",
                "made_from": {"settings": {"k1": EVIL}},
                "files": {"b.trec": 1},
            },
            "trained": {},
            EVIL: {},
        },
    }
    config = Config(seed=77, evaluate=EvaluateConfig(cutoffs=(1, 4)))
    return report.render(config, **{**parts, **changes})


class Page(HTMLParser):
    """Tags with their attributes, ids, and whether every element is closed in order."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "link"):
            self._open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def test_page_needs_nothing_else() -> None:
    text = default_page()
    page = Page(text)
    for tag, attributes in page.tags:
        assert tag not in ("script", "iframe", "object", "embed", "img", "base")
        for name in ("src", "href", "xlink:href", "data", "action"):
            target = attributes.get(name) or ""
            assert target.startswith(("#", "data:")) or not target
        assert not any(name.startswith("on") for name in attributes)
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\((.*?)\)", text))
    addresses = set(re.findall(r"https?://[^\"'<> ]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}


def test_ids_are_unique_and_references_lead_somewhere() -> None:
    text = default_page()
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    targets = re.findall(r'href="#([^"]*)"', text) + re.findall(r"url\(#(.*?)\)", text)
    assert targets
    assert set(targets) <= set(ids)


def test_everything_is_escaped() -> None:
    text = default_page()
    assert "<script" not in text
    assert text.count("&lt;script&gt;") > 10


def test_every_number_is_there() -> None:
    words = " ".join(Page(default_page()).text.split())
    for number in (
        "37.1 35.0–38.8", "82.9 80.8–84.6", "12.3 10.2–14.1",  # values
        "+45.8 ▲ +40.8 to +50.8", "+1.1 ≈ −3.9 to +6.1",  # differences
        "1,234 test questions", "56,789 passages", "98.8 %", "384", "scann", "4,322",
        "trained is right and bm25 wrong in 700", "the other way round in 30",
        "NLL 0.4321", "seed 77",
    ):  # fmt: skip
        assert number in words, number
    assert "recall@5" in words
    assert "recall@1 " not in words


def test_optional_parts_can_be_missing() -> None:
    alone = [summary("mine", 0.5, {})]
    curves = {"gold": {"mine": CURVES["gold"]["bm25"]}}
    nothing = Choice("", "", 0, 0, [])
    text = render(
        summaries=alone,
        curves=curves,
        examples=nothing,
        training={},
        indexes={},
        manifests={"mine": {}},
    )
    words = Page(text).text
    for title in ("Training", "Index", "Questions to read", "Differences"):
        assert title not in words
    index = {"index": {"kind": "exact"}}
    assert "not measured" in Page(render(indexes=index)).text


def test_every_round_of_training_is_shown() -> None:
    later = [{"step": 7, "loss": 0.1, "validation_nll": 0.1357}]
    text = render(training={"trained": TRAINING, "round-2": later})
    for name in ("loss", "in-batch accuracy, %"):
        assert f'aria-label="Training of trained: {name} over the steps"' in text
    assert 'aria-label="Training of round-2: loss over the steps"' in text
    words = " ".join(Page(text).text.split())
    assert "round-2 " in words and "NLL 0.1357" in words and "NLL 0.4321" in words
    ids = re.findall(r'\bid="([^"]*)"', text)
    assert len(ids) == len(set(ids))
    assert "not comparable" in words
    assert "not comparable" not in Page(default_page()).text


def test_settings_that_differ_come_first() -> None:
    rows = report._settings(Config(seed=77))
    assert rows[0] == ("seed", "77", True)
    assert not any(differs for _, _, differs in rows[1:])


@pytest.mark.parametrize(
    ("low", "high", "p_value", "said"),
    [
        (0.01, 0.2, 0.01, "beats"),
        (-0.2, -0.01, 0.049, "is behind"),
        (-0.1, 0.1, 0.3, "no clear difference"),
        (0.0, 0.2, 0.04, "no clear difference"),
        (0.01, 0.2, 0.06, "no clear difference"),  # five wins, no loss
    ],
)
def test_verdict(low: float, high: float, p_value: float, said: str) -> None:
    difference = {"low": low, "high": high, "p_value": p_value}
    assert table.verdict(difference) == said


def test_table_on_stdout(capsys: pytest.CaptureFixture) -> None:
    table.show(SUMMARIES[:2])
    out = capsys.readouterr().out
    for text in (
        "82.9 [80.8, 84.6]",
        "+45.8 [+40.8, +50.8]",
        "beats",
        "1,234 questions",
        "trained against bm25",
    ):
        assert text in out


# --- examples

PASSAGES = [Passage(str(i), f"title {i}", f"text {i}") for i in range(50)]


def choose(
    right: list[bool],
    base_right: list[bool],
    *,
    count: int,
    seed: int = 0,
    **changes: object,
) -> Choice:
    """Question i has gold passage i; a run that is right has it first, else second."""
    n = len(right)
    questions = [Question(str(i), f"q{i}", (), (i,), (), ()) for i in range(n)]

    def run(hits: list[bool]) -> tuple[list[np.ndarray], np.ndarray]:
        rows = [np.array([i, 49, 48, 47] if hit else [49, i]) for i, hit in enumerate(hits)]
        return rows, np.array([1 if hit else 2 for hit in hits])

    runs = {"bm25": run(base_right), "trained": run(right)}
    settings = {
        "judged": np.arange(n),
        "baseline": "bm25",
        "match": "string",
        "count": count,
        "seed": seed,
        **changes,
    }
    return choose_examples(
        questions,
        PASSAGES,
        {k: r for k, (r, _) in runs.items()},
        {k: q for k, (_, q) in runs.items()},
        **settings,
    )


def whys(choice: Choice) -> list[str]:
    return [example.why for example in choice.examples]


def test_wins_and_losses_in_proportion() -> None:
    # 24 wins, 8 losses, 8 alike
    choice = choose([True] * 24 + [False] * 8 + [True] * 8, [False] * 24 + [True] * 16, count=16)
    assert (choice.wins, choice.losses) == (24, 8)
    assert whys(choice) == ["win"] * 6 + ["loss"] * 2 + ["chance"] * 8
    questions = [example.question for example in choice.examples]
    assert len(set(questions)) == 16
    for example in choice.examples[:6]:
        assert example.runs["trained"][0] == 1
        assert example.runs["bm25"][0] == 2
        assert example.runs["trained"][1][0].is_gold
        assert len(example.runs["trained"][1]) == 3


def test_a_single_loss_is_shown() -> None:
    choice = choose([True] * 39 + [False], [False] * 39 + [True], count=10)
    assert whys(choice)[:5] == ["win"] * 4 + ["loss"]


def test_a_single_win_is_shown() -> None:
    choice = choose([True] + [False] * 39, [False] + [True] * 39, count=10)
    assert whys(choice)[:5] == ["win"] + ["loss"] * 4


def test_no_differences_leaves_all_to_chance() -> None:
    assert whys(choose([True] * 9, [True] * 9, count=4)) == ["chance"] * 4


def test_fewer_questions_than_asked_for() -> None:
    choice = choose([True, False], [False, True], count=10)
    assert sorted(whys(choice)) == ["loss", "win"]
    assert choose([True], [False], count=0).examples == []


def test_the_draw_depends_on_the_seed_alone() -> None:
    right, base = [True] * 20 + [False] * 20, [False] * 20 + [True] * 20
    assert choose(right, base, count=8) == choose(right, base, count=8)
    assert choose(right, base, count=8) != choose(right, base, count=8, seed=1)


def test_only_judged_questions_and_without_a_baseline() -> None:
    choice = choose([True] * 9, [False] * 9, count=9, judged=np.array([2, 5]), baseline="none")
    assert (choice.run, choice.wins) == ("", 0)
    assert sorted(example.question for example in choice.examples) == ["q2", "q5"]


def test_window_shows_the_answer_and_the_whole_text_is_there() -> None:
    text = "word " * 200 + "Zoë, <b>Paris</b> " + "word " * 200
    questions = [Question("0", "q", ("paris", "Zoë"), (0,), (), ())]
    choice = choose_examples(
        questions, [Passage("0", "", text)], {"r": [np.array([0])]}, {"r": np.array([1])},
        judged=np.array([0]), baseline="bm25", match="string", count=1, seed=0,
    )  # fmt: skip
    [shown] = choice.examples[0].runs["r"][1]
    assert [piece for piece, is_answer in shown.parts if is_answer] == ["Zoë", "Paris"]
    assert shown.parts[0][0] == "… "
    assert shown.parts[-1][0] == " …"
    assert "".join(piece for piece, _ in shown.parts[1:-1]) in text
    assert shown.rest == text
    assert shown.has_answer


# --- plots


def test_plot_names_runs_and_takes_the_pages_ink() -> None:
    svg = plots.accuracy_over_k({"a $x$ <b>": CURVES["gold"]["bm25"]}, (1, 4))
    assert "a $x$ &lt;b&gt;" in svg
    assert "currentColor" in svg
    assert "#010203" not in svg
    assert plots.accuracy_over_k(CURVES["gold"], (1,)) == plots.accuracy_over_k(
        CURVES["gold"], (1,)
    )


def test_training_plots_only_what_was_recorded() -> None:
    assert plots.training([], "a") == []
    assert len(plots.training([{"step": 1, "loss": 0.5}], "a")) == 1
    assert len(plots.training(TRAINING, "a")) == 2


def test_what_was_tried_for_an_index_is_plotted() -> None:
    tried = [
        {
            "leaves": leaves,
            "build_s": 1.5,
            "reorder": reorder,
            "recall_at_100": 0.9 + reorder / 10_000,
            "standard_error": 0.002,
            "queries_per_cpu_s": 5e5 / leaves / reorder,
        }
        for leaves in (100, 200)
        for reorder in (200, 400)
    ]
    facts = {
        "kind": "scann",
        "tried": tried,
        "tuning_queries": 1400,
        "target_recall": 0.93,
        "settings": {"count": 5, "leaves": 200, "reorder": 400},
    }
    page = Page(render(indexes={"index": facts}))
    assert "leaves 100" in page.text and "leaves 200" in page.text
    assert "4 settings measured with 1,400 other questions" in page.text
    assert "93.0 %" in page.text
    assert "settings measured" not in default_page()
