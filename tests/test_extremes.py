"""Settings at the ends of what is allowed, through the command line: one question, odd seeds."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import quick
import tiny

ROOT = Path(__file__).resolve().parents[1]
DPR = [sys.executable, "-c", "from dpr_jax.cli import main; main()"]
LARGEST_SEED = str(2**63 - 1)


def dpr(command: str, workdir: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*DPR, command, "--workdir", str(workdir), *args],
        check=False,
        env=quick.ONE_DEVICE | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=200,
    )


def test_a_batch_of_one_question_trains_with_the_largest_seed(tmp_path: Path) -> None:
    passages, questions = tmp_path / "passages.tsv", tmp_path / "train.json"
    rows = [f"{i}\tThe metal number {i} is heavy.\tMetal {i}" for i in range(6)]
    passages.write_text("\n".join(["id\ttext\ttitle", *rows]) + "\n")
    train = [
        {
            "question": f"what is metal {i}?",
            "answers": ["heavy"],
            "positive_ctxs": [{"passage_id": str(i)}],
            "hard_negative_ctxs": [{"passage_id": str((i + 1) % 6)}],
        }
        for i in range(6)
    ]
    questions.write_text(json.dumps(train))
    tiny.write(tmp_path / "init", layers=1)
    workdir = tmp_path / "w"
    data = ("--data.passages", str(passages), "--data.train", str(questions))
    assert dpr("prepare", workdir, *data, "--seed", LARGEST_SEED).returncode == 0
    model = ("--model.init", str(tmp_path / "init"), "--model.max-question-tokens", "16")
    steps = ("--train.batch-size", "1", "--train.total-steps", "2")
    done = dpr("train", workdir, *model, "--model.max-passage-tokens", "32", *steps)
    assert done.returncode == 0, done.stderr
    assert "batch of 1 questions and 2 passages" in done.stderr
    assert (workdir / "retrievers" / "trained" / "model").exists()


@pytest.mark.parametrize("seed", ["-1", str(2**63)])
def test_a_seed_out_of_range_is_one_line(seed: str, tmp_path: Path) -> None:
    done = dpr("prepare", tmp_path / "w", "--seed", seed)
    assert done.returncode == 2
    [line] = done.stderr.splitlines()
    assert line.startswith(f"dpr: seed is {seed}; it must be 0 or more")
