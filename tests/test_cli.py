"""The command line: what it parses, and one clear line for what it cannot."""

import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax import cli
from dpr_jax.errors import InputError, Preempted

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.py")


def test_overrides_are_typed() -> None:
    args = [QUICKSTART, "--workdir", "w", "--train.learning-rate", "1e-5"]
    call = cli.parse("train", [*args, "--model.shared-towers", "--evaluate.cutoffs", "1", "2"])
    assert call.workdir == Path("w")
    assert call.config.train.learning_rate == 1e-5
    assert call.config.model.shared_towers is True
    assert call.config.evaluate.cutoffs == (1, 2)
    assert call.config.train.batch_size == 24  # the file's own


def test_the_file_may_be_left_out() -> None:
    call = cli.parse("train", ["--workdir=w", "--data.passages=p.tsv"])
    assert call.config.data.passages == "p.tsv"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (
            ["--workdir", "w", "--train.lerning-rate", "1"],
            "no setting --train.lerning-rate .near: train.learning-rate",
        ),
        (["--workdir", "w", "--learning-rate", "1"], "near: train.learning-rate"),
        (["--train.total-steps", "3"], "--workdir is missing"),
        (
            ["--workdir", "w", "--train.total-steps", "three"],
            "train.total-steps.*three",
        ),
        (["--workdir", "w", "--train.total-steps", "0"], "train.total_steps is 0"),
        (["--workdir", "w", "--train.spmd", "xmap"], "xmap"),
        (["nothing.py", "--workdir", "w"], "nothing.py does not exist"),
    ],
)
def test_bad_arguments_get_one_line(args: list[str], message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        cli.parse("train", args)
    assert "\n" not in str(caught.value)


def test_unknown_command_names_the_near_one() -> None:
    with pytest.raises(InputError, match=r"no command 'retreive' \(near: retrieve"):
        cli.run(["retreive"])


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    cli.run(["--help"])
    printed = capsys.readouterr().out
    assert all(command in printed for command in cli.COMMANDS)


def dpr(*args: str) -> subprocess.CompletedProcess[str]:
    code = "from dpr_jax.cli import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, *args], capture_output=True, text=True, check=False
    )


def test_bad_input_exits_with_2_and_no_traceback(tmp_path: Path) -> None:
    done = dpr(
        "prepare",
        QUICKSTART,
        "--workdir",
        str(tmp_path / "w"),
        "--data.passages",
        "missing.tsv",
    )
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("dpr: ") and "missing.tsv" in line
    assert not (tmp_path / "w" / "data").exists()


def test_a_work_directory_of_another_config_is_refused(tmp_path: Path) -> None:
    (tmp_path / "workdir.json").write_text('{"config_name": "other"}')
    done = dpr("prepare", QUICKSTART, "--workdir", str(tmp_path))
    assert done.returncode == 2
    assert "belongs to config 'other', not 'quickstart'" in done.stderr


def test_info_names_devices_and_backends() -> None:
    done = dpr("info")
    assert done.returncode == 0, done.stderr
    assert "devices     8 x cpu" in done.stdout
    for fact in ("jax ", "scann: works", "faiss: works", "exact: works"):
        assert fact in done.stdout


def test_a_run_that_was_stopped_asks_to_be_started_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stopped(_: list[str]) -> None:
        raise Preempted("stopped after step 7")

    monkeypatch.setattr(cli, "run", stopped)
    with pytest.raises(SystemExit) as exit_of:
        cli.main()
    assert exit_of.value.code == 75
    assert capsys.readouterr().err == "dpr: stopped after step 7\n"


def test_output_that_nobody_reads_ends_in_a_line() -> None:
    code = "from dpr_jax.cli import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "train", "--help"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == "dpr: not all of the output was read\n"
    assert process.returncode == 141
