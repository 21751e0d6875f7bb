"""The stage that describes the prepared data: counts, lengths in tokens, repeats, overlap of
test with train.
"""

from pathlib import Path
from typing import Any

from dpr_jax import artifacts, console
from dpr_jax.config import Config, ModelConfig
from dpr_jax.data import store
from dpr_jax.data.store import Corpus
from dpr_jax.inspection import show, survey
from dpr_jax.model import description, hf, tokenizer
from dpr_jax.model.description import EncoderSettings
from dpr_jax.model.dual_encoder import Side
from dpr_jax.workdir import WorkDir

PAIRS = (("test", "train"), ("test", "dev"), ("dev", "train"))
UNCUT_TOKENS = 1_000_000


def run(config: Config, workdir: WorkDir) -> None:
    """Writes inspection/inspection.json and inspection.html of the prepared data, and tables to
    stdout.

    Raises:
      InputError: the prepared data are missing or damaged, or the encoder's tokenizer cannot be
        had.
    """
    folder, model = workdir.root / "inspection", config.model
    data = workdir.data / "manifest.json"
    corpus = store.open_corpus(workdir)
    towers = _settings(model)
    sets = [(name, len(rows)) for name, rows in store.train_sets(workdir)]
    origin = artifacts.made_from(
        "inspect",
        {
            "init": model.init,
            **{f"max_{side}_tokens": own.max_tokens for side, own in towers.items()},
            **{f"{side}_prompt": own.prompt for side, own in towers.items() if own.prompt},
            "answer_match": config.evaluate.answer_match,
        }
        | ({"train_sets": [[*names] for names in sets]} if sets else {}),
        {"data": artifacts.fingerprint(data)},
    )
    if not artifacts.is_fresh(folder / "manifest.json", origin):
        facts = _measure(config, workdir, corpus)
        with artifacts.atomic_dir(folder) as partial:
            files = [partial / "inspection.json", partial / "inspection.html"]
            artifacts.write_json(files[0], facts)
            files[1].write_text(show.page(facts), encoding="utf-8")
            artifacts.write_manifest(partial / "manifest.json", origin, files)
    show.tables(artifacts.read_json(folder / "inspection.json"))
    console.say(f"inspect: {folder / 'inspection.html'}")


def _settings(model: ModelConfig) -> dict[Side, EncoderSettings]:
    """Returns how the texts of each side are read."""
    sides: tuple[Side, Side] = ("question", "passage")
    return {side: description.read(hf.resolve(model.init, side), side, model) for side in sides}


def _measure(config: Config, workdir: WorkDir, corpus: Corpus) -> dict[str, Any]:
    splits = {name: store.open_questions(workdir, name) for name in store.splits(workdir)}
    for number, (name, rows) in enumerate(store.train_sets(workdir), 1):
        splits[f"train/{number} {Path(name).name}"] = splits["train"].part(rows)
    towers = _settings(config.model)
    question_tokens, passage_tokens = (
        tokenizer.load(hf.resolve(config.model.init, side), UNCUT_TOKENS, own.prompt)
        for side, own in towers.items()
    )
    with console.progress("inspect corpus", len(corpus), "passages") as advance:
        corpus_facts = survey.corpus(
            corpus,
            lambda texts: [len(ids) for ids in passage_tokens.ids(texts)],
            towers["passage"].max_tokens,
            advance,
        )
    facts, asked = {}, {}
    for name, questions in splits.items():
        console.say(f"inspect {name}: {len(questions):,} questions")
        facts[name], asked[name] = survey.split(
            questions,
            corpus,
            lambda texts: [len(ids) for ids in question_tokens.ids(texts)],
            towers["question"].max_tokens,
            config.evaluate.answer_match,
        )
    return {
        "name": workdir.root.name,
        "model": config.model.init,
        "corpus": corpus_facts,
        "splits": facts,
        "overlap": [
            {"split": name, "seen": seen} | survey.overlap(splits[name], asked[name], asked[seen])
            for name, seen in PAIRS
            if name in splits and seen in splits
        ],
    }
