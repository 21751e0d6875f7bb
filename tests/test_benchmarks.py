"""The benchmarks that compare with PyTorch still run; their figures are in docs/log.md."""

import csv
import gzip
from pathlib import Path

import pytest

pytest.importorskip(
    "torch",
    reason="PyTorch is there with the extra `bench` alone",
    exc_type=ImportError,
)
BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
NQ_SMALL = Path(__file__).parent / "fixtures" / "nq_small"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """passages.tsv and train.json, and the scripts where Python finds them."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    found = tmp_path / "data"
    found.mkdir()
    passages = gzip.decompress((NQ_SMALL / "passages.tsv.gz").read_bytes())
    (found / "passages.tsv").write_bytes(passages)
    (found / "train.json").write_bytes((NQ_SMALL / "train.json").read_bytes())
    return found


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
