"""The benchmarks still run at their smallest; their figures are in docs/log.md."""

import csv
import gzip
import json
import shutil
from pathlib import Path

import pytest
from prepared import retriever

from dpr_jax import cli
from dpr_jax.config import Config, RetrieveConfig
from dpr_jax.data import store
from dpr_jax.evaluation import evaluate
from dpr_jax.index import update
from dpr_jax.retrieval import retrieve
from dpr_jax.workdir import WorkDir, open_workdir

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """nq_small with its passages unpacked, and the scripts where Python finds them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = tmp_path / "data"
    found.mkdir()
    passages = gzip.decompress((NQ_SMALL / "passages.tsv.gz").read_bytes())
    (found / "passages.tsv").write_bytes(passages)
    for name in ("train.json", "test.qa.csv", "test.qrels"):
        shutil.copyfile(NQ_SMALL / name, found / name)
    return found


@pytest.fixture
def workdir(folder: Path, tmp_path: Path) -> WorkDir:
    """nq_small, prepared."""
    files = {"passages": "passages.tsv", "train": "train.json", "test": "test.qa.csv"}
    files["test-qrels"] = "test.qrels"
    named = [word for key in files for word in (f"--data.{key}", str(folder / files[key]))]
    cli.run(["prepare", "--workdir", str(tmp_path / "run"), *named])
    return open_workdir(tmp_path / "run", new=False)


@pytest.fixture
def torch() -> None:
    pytest.importorskip(
        "torch",
        reason="PyTorch is there with the extra `bench` alone",
        exc_type=ImportError,
    )


def test_our_figures_are_those_of_trec_eval(
    workdir: WorkDir, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import bm25_figures
    import trec_eval

    config = Config(retrieve=RetrieveConfig(split="test"))
    words = retriever(workdir, "bm25", config)
    update.run(config, words)
    retrieve.run(config, words)
    evaluate.run(config, workdir)
    capsys.readouterr()
    trec_eval.main(str(workdir.root), folder / "test.qrels")
    assert capsys.readouterr().out.startswith("bm25: largest gap")
    bm25_figures.main(folder)
    line = capsys.readouterr().out.splitlines()[1]
    assert line.startswith("k1 0.9, b 0.4: gold passage")
    accuracy = json.loads((workdir.metrics / "test" / "bm25.json").read_text())["gold"]["metrics"]
    ours = [f"{100 * accuracy[f'top-{k}']['value']:.1f}" for k in bm25_figures.CUTOFFS]
    assert line.split()[-1] == "/".join(ours)


@pytest.mark.parametrize("dense", [False, True])
def test_memory_of_mining_is_watched(
    workdir: WorkDir, capsys: pytest.CaptureFixture[str], dense: bool
) -> None:
    import mine_memory

    mine_memory.main(workdir.root, [12], dense=dense)
    row = capsys.readouterr().out.splitlines()[-1].split(" | ")
    assert row[0] == "12"
    assert float(row[4]) > 50  # megabytes that it held
    some = open_workdir(f"{workdir.root}-12", new=False)
    mined = store.open_questions(some, "train", mined=some.retriever("trained").current("mined"))
    assert len(mined) == 12
    assert all(question.hard_negatives for question in mined)


@pytest.mark.usefixtures("torch")
def test_losses_are_those_of_pytorch(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import loss_curve

    out = tmp_path / "docs" / "loss_curve"
    small = ["--steps", "3", "--layers", "1", "--width", "32", "--batch-size", "8"]
    loss_curve.main([str(folder), "--out", str(out), *small])
    assert "largest gap" in capsys.readouterr().out
    with out.with_suffix(".csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["update"] for row in rows] == ["1", "2", "3"]
    for row in rows:
        assert float(row["dpr_jax"]) == pytest.approx(float(row["pytorch"]), abs=1e-5)
    assert rows[0]["dpr_jax"] != rows[1]["dpr_jax"]
    assert "dpr_jax" in out.with_suffix(".svg").read_text()


@pytest.mark.usefixtures("torch")
def test_steps_are_timed_beside_pytorch(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import train_step

    small = ["--model", "tiny", "--batch-size", "8", "--passage-tokens", "64"]
    train_step.main([str(folder), *small, "--turns", "2", "--updates", "4"])
    lines = capsys.readouterr().out.splitlines()
    table = [line for line in lines if line.startswith(("PyTorch", "dpr_jax, "))]
    assert [line[:22].strip() for line in table] == [
        "PyTorch",
        "dpr_jax, padded",
        "dpr_jax, pack_rows 1",
    ]
    assert all(float(line.split()[-1]) > 0 for line in table)
