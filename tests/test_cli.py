"""The command line: what it parses, and one clear line for what it cannot."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from dpr_jax import cli, commands, config_file, recipes
from dpr_jax.config import Config, TrainConfig
from dpr_jax.errors import InputError, Preempted
from dpr_jax.workdir import open_workdir

QUICKSTART = str(Path(__file__).parents[1] / "configs" / "quickstart.py")


def test_overrides_are_typed() -> None:
    args = [QUICKSTART, "--workdir", "w", "--train.learning-rate", "1e-5"]
    call = cli.parse("train", [*args, "--model.shared-towers", "--evaluate.cutoffs", "1", "2"])
    assert call.workdir.root == Path("w").absolute()
    assert call.config.train.learning_rate == 1e-5
    assert call.config.model.shared_towers is True
    assert call.config.evaluate.cutoffs == (1, 2)
    assert call.config.train.batch_size == 24  # the file's own


def test_the_file_may_be_left_out() -> None:
    call = cli.parse("train", ["--workdir=w", "--data.passages=p.tsv"])
    assert call.config.data.passages == str(Path("p.tsv").absolute())


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
    assert all(command in printed for command in commands.COMMANDS)


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


def test_an_older_work_directory_is_refused_and_stays(tmp_path: Path) -> None:
    (tmp_path / "workdir.json").write_text('{"config_name": "other"}')
    done = dpr("prepare", QUICKSTART, "--workdir", str(tmp_path))
    assert done.returncode == 2
    assert "is a work directory of an older version, and stays as it is" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["workdir.json"]


@pytest.mark.parametrize("spelled", [["--mine.enabled"], ["--mine.enabled", "True"]])
def test_settings_that_are_true_false_or_none(spelled: list[str]) -> None:
    def parsed(*args: str) -> bool | None:
        return cli.parse("mine", ["--workdir", "w", *args]).config.mine.enabled

    assert parsed(*spelled) is True
    assert parsed("--mine.no-enabled") is False
    assert parsed("--mine.enabled", "None") is None
    assert parsed() is None


def test_the_config_may_stand_after_a_flag() -> None:
    call = cli.parse("train", ["--workdir", "w", QUICKSTART, "--train.remat"])
    assert call.config.train.batch_size == 24 and call.config.train.remat
    with pytest.raises(InputError, match="are two config files; give one"):
        cli.parse("train", [QUICKSTART, "--workdir", "w", QUICKSTART])
    with pytest.raises(InputError, match="does not take 'quickstart'; a config file ends in .py"):
        cli.parse("train", ["quickstart", "--workdir", "w"])


def test_stored_settings_then_the_file_then_flags(tmp_path: Path) -> None:
    workdir = open_workdir(tmp_path)
    stored = Config(seed=5, train=TrainConfig(batch_size=7, learning_rate=1e-3))
    recipes.store_workdir(workdir, stored)
    recipes.store(workdir.retriever("trained"), stored)
    args = ["--workdir", str(tmp_path), "--train.learning-rate", "1e-4"]
    call = cli.parse("train", args)
    assert call.config.seed == 5
    assert (call.config.train.batch_size, call.config.train.learning_rate) == (7, 1e-4)
    call = cli.parse("train", [*args, QUICKSTART])
    assert call.config.seed == 13
    assert (call.config.train.batch_size, call.config.train.learning_rate) == (24, 1e-4)


def test_a_mistyped_value_is_one_plain_line() -> None:
    done = dpr("train", "--workdir", "w", "--train.batch-size", "many")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert "--train.batch-size" in line and "many" in line
    assert not {*line} & {*"│╭╮╰╯─\x1b"}


def test_help_of_a_command_fits_two_screens(capsys: pytest.CaptureFixture[str]) -> None:
    for command in commands.COMMANDS:
        if command != "info":
            cli.run([*command.split(), "--help"])
            lines = capsys.readouterr().out.splitlines()
            assert len(lines) <= 104 and max(map(len, lines)) <= 100, command
    cli.run(["train", "--help-all"])
    printed = capsys.readouterr().out
    known = config_file.keys()
    assert all(f"--{key.replace('_', '-')} " in printed for key in known)


@pytest.mark.skipif(os.geteuid() == 0 and not shutil.which("unshare"), reason="needs unshare")
def test_a_read_only_folder_is_one_line(tmp_path: Path) -> None:
    """Every command that would write says so; `mount` since root may write to any folder."""
    root = tmp_path / "w"
    recipes.store_workdir(open_workdir(root), Config())
    code = f"import sys; sys.argv[1:] = [{{}}, '--workdir', {str(root)!r}]"
    code += "; from dpr_jax.cli import main; main()"
    mount = f"mount --bind {root} {root} && mount -o remount,bind,ro {root}"
    probe = ["unshare", "-m", "sh", "-c", mount]
    if subprocess.run(probe, capture_output=True, check=False).returncode:
        pytest.skip("this machine does not let a test mount a folder")
    for command in ("prepare", "mine", "train", "encode", "index", "retrieve", "evaluate", "gc"):
        script = code.format(repr(command))
        run = [*probe[:-1], f'{mount} && exec {sys.executable} -c "$0"', script]
        done = subprocess.run(run, capture_output=True, text=True, check=False)
        assert done.returncode == 2, (command, done.stderr)
        (line,) = done.stderr.strip().splitlines()
        assert line.startswith("dpr: cannot write") and "Read-only file system" in line


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
