"""The scripts in launch/: what they would run, what they refuse, and local.sh with real processes.

slurm.sh and gke.sh: test_launch_clusters.py.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = ("local.sh", "gpu_node.sh", "tpu_vm.sh", "slurm.sh", "gke.sh")
CLUSTER_VARIABLES = (
    "NUM_NODES",
    "NODE_RANK",
    "COORDINATOR_ADDRESS",
    "XLA_FLAGS",
    "GLIBC_TUNABLES",
    "JAX_PLATFORMS",
)


def environment(**changes: str) -> dict[str, str]:
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in CLUSTER_VARIABLES and not name.startswith(("DPR_", "SLURM_"))
    }
    return kept | changes


def launch(
    script: str, *args: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "launch" / script, *args],
        check=False,
        cwd=cwd,
        env=environment(**env),
        capture_output=True,
        text=True,
        timeout=60,
    )


def local_python(tmp_path: Path, *options: str, code: str, args: tuple[str, ...] = (), **env: str):
    return launch(
        "local.sh",
        *options,
        "--log-dir",
        str(tmp_path / "logs"),
        "--",
        sys.executable,
        "-c",
        code,
        *args,
        **env,
    )


def test_shellcheck_finds_nothing():
    shellcheck = shutil.which(
        "shellcheck",
        path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
    )
    if shellcheck is None:
        pytest.skip("no shellcheck; the dev extra brings it")
    files = [*sorted((ROOT / "launch").rglob("*.sh")), ROOT / ".ci" / "run"]
    result = subprocess.run([shellcheck, *files], check=False, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout


def test_lines_are_no_longer_than_100():
    for file in [*(ROOT / "launch").rglob("*.sh"), ROOT / "launch" / "docker" / "Dockerfile"]:
        long = [line for line in file.read_text().splitlines() if len(line) > 100]
        assert not long, file


PLAN = {
    "devices": 8,
    "chip": {"name": "TPU v5e"},
    "train": {"hours": 0.5},
    "encode": {"hours": 0.25},
}


@pytest.mark.parametrize(
    ("plan", "price", "said"),
    [
        (PLAN, (), "together: 6.0 device-hours; compiling"),
        (PLAN, ("--price", "1.5"), "together: 6.0 device-hours, 9.00 at 1.5 an hour of a device;"),
        (
            PLAN | {"train": {"hours": None}},
            (),
            "train: the plan gives no hours on 8 x TPU v5e\nencode: 0.25 h on 8 x TPU v5e, 2.0 d",
        ),
    ],
)
def test_tpu_vm_prints_what_a_plan_costs(
    plan: dict[str, object], price: tuple[str, ...], said: str, tmp_path: Path
):
    file = tmp_path / "plan.json"
    file.write_text(json.dumps(plan))
    result = launch("tpu_vm.sh", "--print-cost-hints", str(file), *price)
    assert result.returncode == 0, result.stderr
    assert said in result.stdout
    file.write_text("{}")
    result = launch("tpu_vm.sh", "--print-cost-hints", str(file), *price)
    assert result.returncode == 2 and "is not what dpr plan --json writes" in result.stderr


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_has_an_example_and_is_executable(script: str):
    result = launch(script, "--help")
    assert result.returncode == 0
    assert (
        "Example" in result.stdout
        and f"launch/{script}" in result.stdout
        and "--dry-run" in result.stdout
    )


@pytest.mark.parametrize(
    ("script", "args", "env", "message"),
    [
        ("local.sh", ["-n", "2"], {}, "no command after --"),
        ("local.sh", ["--", "true"], {}, "-n N is missing"),
        (
            "local.sh",
            ["-n", "0", "--", "true"],
            {},
            "'0' is not a positive whole number",
        ),
        (
            "local.sh",
            ["-n", "two", "--", "true"],
            {},
            "'two' is not a positive whole number",
        ),
        ("local.sh", ["-n", "--", "true"], {}, "-n needs a value"),
        (
            "local.sh",
            ["-n", "2", "--cpu-devices", "-1", "--", "true"],
            {},
            "'-1' is not a positive whole number",
        ),
        (
            "local.sh",
            ["-n", "2", "--cpu", "1", "--", "true"],
            {},
            "unknown argument '--cpu'",
        ),
        (
            "local.sh",
            ["-n", "2", "--", "no-such-command"],
            {},
            "no command 'no-such-command'",
        ),
        ("gpu_node.sh", ["dpr", "info"], {}, "unknown argument 'dpr'"),
        ("gpu_node.sh", ["--dry-run", "--"], {}, "no command after --"),
        (
            "gpu_node.sh",
            ["--dry-run", "--", "dpr"],
            {"NUM_NODES": "2"},
            "NODE_RANK is ''",
        ),
        (
            "gpu_node.sh",
            ["--dry-run", "--", "dpr"],
            {"NUM_NODES": "2", "NODE_RANK": "2", "COORDINATOR_ADDRESS": "h:1"},
            "NODE_RANK 2 must be less than NUM_NODES 2",
        ),
        (
            "gpu_node.sh",
            ["--dry-run", "--", "dpr"],
            {"NUM_NODES": "2", "NODE_RANK": "1", "COORDINATOR_ADDRESS": "host"},
            "COORDINATOR_ADDRESS is 'host', not HOST:PORT",
        ),
        ("tpu_vm.sh", ["--zone", "z", "--", "dpr"], {}, "--name is missing"),
        (
            "tpu_vm.sh",
            ["--name", "--zone", "z", "--", "dpr"],
            {},
            "--name needs a value",
        ),
        ("tpu_vm.sh", ["--name", "n", "--", "dpr"], {}, "--zone is missing"),
        (
            "tpu_vm.sh",
            ["--name", "n", "--zone", "z", "--ref", "v1", "--", "dpr"],
            {},
            "--ref belongs to --repo",
        ),
        ("tpu_vm.sh", ["--print-cost-hints", "none.json"], {}, "no file none.json; dpr plan"),
        ("tpu_vm.sh", ["--price", "1"], {}, "--price belongs to --print-cost-hints"),
        ("tpu_vm.sh", ["--name", "n", "--zone", "z"], {}, "no command after --"),
        ("tpu_vm.sh", ["--name", "n", "--zone", "z", "--spot", "--", "dpr"], {}, "belong to"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_2(
    script: str, args: list[str], env: dict[str, str], message: str, tmp_path: Path
):
    result = launch(script, *args, cwd=tmp_path, **env)
    assert result.returncode == 2
    assert result.stderr.startswith(f"launch/{script}: ") and result.stderr.count("\n") == 1
    assert message in result.stderr
    assert not any(tmp_path.iterdir())


def test_gpu_node_dry_run_prints_each_command():
    cluster = {
        "NUM_NODES": "2",
        "NODE_RANK": "1",
        "COORDINATOR_ADDRESS": "10.0.0.2:8476",
    }
    result = launch("gpu_node.sh", "--dry-run", "--", "dpr", "train", "a b", **cluster)
    assert result.returncode == 0, result.stderr
    query, install, run = result.stdout.splitlines()
    assert query.startswith("nvidia-smi ")
    assert install.startswith("make ") and "EXTRAS=gpu" in install
    for setting in (
        "DPR_COORDINATOR=10.0.0.2:8476",
        "DPR_NUM_PROCESSES=2",
        "DPR_PROCESS_ID=1",
        "JAX_PLATFORMS=cuda,cpu",
    ):
        assert f" {setting} " in run
    assert run.rstrip().endswith("dpr train 'a b'")


def fake_command(folder: Path, name: str, script: str) -> str:
    """Puts a shell script called `name` first on PATH; gives that PATH."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n")
    (folder / name).chmod(0o755)
    return f"{folder}{os.pathsep}{os.environ['PATH']}"


def test_gpu_node_refuses_an_old_driver(tmp_path: Path):
    path = fake_command(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 550.54.15'")
    result = launch("gpu_node.sh", "--skip-install", "--", "true", PATH=path)
    assert result.returncode == 1
    assert "550.54.15 is too old" in result.stderr


def test_gpu_node_runs_the_command_with_its_arguments_intact(tmp_path: Path):
    path = fake_command(tmp_path, "nvidia-smi", "echo 'NVIDIA H200, 143771 MiB, 580.65.06'")
    code = "import os, sys; print(sys.argv[1:], os.environ['JAX_PLATFORMS'])"
    result = launch(
        "gpu_node.sh",
        "--skip-install",
        "--",
        sys.executable,
        "-c",
        code,
        "a b",
        "$x",
        PATH=path,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "['a b', '$x'] cuda,cpu"


def test_tpu_vm_dry_run_installs_and_runs_on_all_workers():
    where = ("--name", "my-tpu", "--zone", "us-central1-a", "--project", "my-project")
    result = launch(
        "tpu_vm.sh",
        *where,
        "--repo",
        "https://example.org/dpr_jax.git",
        "--dry-run",
        "--",
        "dpr",
        "info",
    )
    assert result.returncode == 0, result.stderr
    fetch, install, run = result.stdout.splitlines()
    for line in (fetch, install, run):
        assert line.startswith(
            "gcloud compute tpus tpu-vm ssh my-tpu --zone=us-central1-a --worker=all "
        )
        assert "--project=my-project" in line
    assert "git fetch -q --depth 1 https://example.org/dpr_jax.git HEAD" in fetch
    assert "make install EXTRAS=tpu,gcs " in install
    assert run.rstrip().endswith("{ dpr info; } 2>&1 | tee -a logs/tpu_vm.log'")


def test_tpu_vm_hands_arguments_to_the_workers_shell_intact(tmp_path: Path):
    """A gcloud that runs --command=... here, as sshd would with the worker's shell."""
    path = fake_command(
        tmp_path / "bin",
        "gcloud",
        'for a; do case $a in --command=*) exec bash -c "${a#*=}";; esac; done',
    )
    (tmp_path / "dpr_jax").mkdir()
    args = ["a b", "it's", "$HOME", "*"]
    code = "import sys, json; print(json.dumps(sys.argv[1:])); sys.exit(5)"
    command = [sys.executable, "-c", code, *args]
    where = ("--name", "n", "--zone", "z", "--skip-install")
    result = launch("tpu_vm.sh", *where, "--", *command, PATH=path, HOME=str(tmp_path))
    assert json.loads(result.stdout.splitlines()[-1]) == args
    assert result.returncode == 5


# a gcloud that keeps the state of a queued resource, and ends the runs of the command as told
GCLOUD = """
echo "$*" >>{0}/calls
case "$*" in
  *queued-resources\\ describe*) cat {0}/state 2>/dev/null || exit 1 ;;
  *queued-resources\\ create*) echo PROVISIONING >{0}/state ;;
  *queued-resources\\ delete*) rm {0}/state ;;
  *"dpr train"*)
    read -r code state <{0}/runs; sed -i 1d {0}/runs
    if [ -n "$state" ]; then echo $state >{0}/state; fi
    exit $code ;;
esac
"""
# time passes: what was asked for is there
SLEEP = "if grep -q PROVISIONING {0}/state; then echo ACTIVE >{0}/state; fi"


def with_gcloud(tmp_path: Path, runs: str, *args: str) -> tuple[int, list[str]]:
    """Returns how tpu_vm.sh ended, and what it asked of gcloud: the verb, or what ran."""
    (tmp_path / "runs").write_text(runs)
    path = fake_command(tmp_path / "bin", "gcloud", GCLOUD.format(tmp_path))
    fake_command(tmp_path / "bin", "sleep", SLEEP.format(tmp_path))
    where = ("--name", "n", "--zone", "z", "--create", "v5litepod-16")
    result = launch("tpu_vm.sh", *where, *args, "--", "dpr", "train", PATH=path)
    verbs = {"describe": "", "create": "create", "delete": "delete", "scp": "send"}
    calls = []
    for line in (tmp_path / "calls").read_text().splitlines():
        found = next((name for verb, name in verbs.items() if f" {verb} " in f"{line} "), None)
        if found is None and "make install" in line:
            found = "install"
        if found is None and "dpr train" in line:
            found = "run"
        if found:
            calls.append(found)
    return result.returncode, calls


@pytest.mark.parametrize(
    ("runs", "status", "calls"),
    [
        ("0", 0, "create send install run delete"),
        ("2", 2, "create send install run delete"),
        ("75\n0", 0, "create send install run run delete"),
        # taken away: another one, where all has to be installed
        ("255 SUSPENDED\n0", 0, "create send install run delete create send install run delete"),
        ("1 SUSPENDED\n0", 0, "create send install run delete create send install run delete"),
    ],
)
def test_tpu_vm_asks_for_a_tpu_and_starts_again(runs: str, status: int, calls: str, tmp_path: Path):
    found = with_gcloud(tmp_path, runs, "--spot", "--delete")
    assert found == (status, calls.split())
    created = [line for line in (tmp_path / "calls").read_text().splitlines() if "create" in line]
    assert created[0] == (
        "compute tpus queued-resources create n --zone=z --node-id=n"
        " --accelerator-type=v5litepod-16 --runtime-version=v2-alpha-tpuv5-lite --spot"
    )


def test_tpu_vm_uses_the_tpu_that_is_there(tmp_path: Path):
    (tmp_path / "state").write_text("ACTIVE\n")
    assert with_gcloud(tmp_path, "0", "--skip-install") == (0, ["run"])


def test_tpu_vm_gives_up_after_so_many_restarts(tmp_path: Path):
    (tmp_path / "state").write_text("ACTIVE\n")
    args = ("--skip-install", "--restarts", "2")
    assert with_gcloud(tmp_path, "75\n75\n75\n75", *args) == (75, ["run"] * 3)


def test_tpu_vm_sends_the_checkout_as_it_is(tmp_path: Path):
    checkout = tmp_path / "checkout"
    (checkout / "launch").mkdir(parents=True)
    shutil.copy(ROOT / "launch" / "tpu_vm.sh", checkout / "launch")
    (checkout / "gone.py").touch()
    (checkout / ".gitignore").write_text("runs/\n")
    git = ["git", "-C", str(checkout), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "first"]):
        subprocess.run([*git, *command], check=True)
    (checkout / "gone.py").unlink()
    (checkout / "new.py").touch()
    (checkout / "runs").mkdir()
    (checkout / "runs" / "large").touch()
    script = (
        f"for a; do case $a in *.tar.gz) [ -e $a ] && tar -tzf $a >{tmp_path}/sent;; esac; done"
    )
    path = fake_command(tmp_path / "bin", "gcloud", script + "; true")
    command = [checkout / "launch" / "tpu_vm.sh", "--name", "n", "--zone", "z", "--sync", "--"]
    done = subprocess.run(
        [*command, "dpr", "info"],
        check=False,
        env=environment(PATH=path),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    sent = {name.removeprefix("./") for name in (tmp_path / "sent").read_text().split()}
    assert sent == {".gitignore", "new.py", "launch/tpu_vm.sh"}


@pytest.mark.parametrize("chosen", [None, "glibc.malloc.hugetlb=0", ""])
def test_local_uses_huge_pages_unless_told(chosen: str | None, tmp_path: Path):
    changes = {} if chosen is None else {"GLIBC_TUNABLES": chosen}
    code = "import os; print(repr(os.environ['GLIBC_TUNABLES']))"
    result = local_python(tmp_path, "-n", "1", "--cpu-devices", "1", code=code, **changes)
    expected = "glibc.malloc.hugetlb=1" if chosen is None else chosen
    assert result.stdout == f"{expected!r}\n", result.stderr


def test_local_gives_each_process_its_place(tmp_path: Path):
    code = "import os, sys, json; print(json.dumps([dict(os.environ), sys.argv[1:]]))"
    result = local_python(
        tmp_path,
        "-n",
        "2",
        "--cpu-devices",
        "3",
        code=code,
        args=("a b", "$x"),
        XLA_FLAGS="--xla_a=1",
    )
    assert result.returncode == 0, result.stderr
    logs = [(tmp_path / "logs" / f"process-{i}.log").read_text() for i in range(2)]
    assert result.stdout == logs[0]
    coordinators = set()
    for i, log in enumerate(logs):
        env, args = json.loads(log)
        assert args == ["a b", "$x"]
        assert (env["DPR_NUM_PROCESSES"], env["DPR_PROCESS_ID"]) == ("2", str(i))
        assert env["XLA_FLAGS"] == "--xla_a=1 --xla_force_host_platform_device_count=3"
        assert env["JAX_PLATFORMS"] == "cpu"
        coordinators.add(env["DPR_COORDINATOR"])
    assert len(coordinators) == 1 and coordinators.pop().startswith("127.0.0.1:")


def test_local_leaves_the_accelerators_alone_unless_asked(tmp_path: Path):
    result = launch(
        "local.sh",
        "-n",
        "2",
        "--port",
        "23456",
        "--dry-run",
        "--",
        "dpr",
        "info",
        cwd=tmp_path,
    )
    assert result.stdout.splitlines() == [
        f"env DPR_COORDINATOR=127.0.0.1:23456 DPR_NUM_PROCESSES=2 DPR_PROCESS_ID={i} dpr info "
        for i in range(2)
    ]
    assert not any(tmp_path.iterdir())


WAIT = """
import os, pathlib, signal, subprocess, sys, time
folder, mode = pathlib.Path(sys.argv[1]), sys.argv[2]
me = os.environ["DPR_PROCESS_ID"]
if mode == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if mode == "saves":
    signal.signal(signal.SIGTERM, lambda *_: ((folder / f"saved-{me}").touch(), sys.exit(0)))
child = subprocess.Popen(["sleep", "50"])
(folder / f"pids-{me}").write_text(f"{os.getpid()} {child.pid}")
if mode != "saves" and me == "1":
    while not (folder / "pids-0").exists():
        time.sleep(0.02)
    sys.exit(7)
time.sleep(50)
"""


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def assert_all_ended(folder: Path) -> None:
    pids = [int(pid) for file in folder.glob("pids-*") for pid in file.read_text().split()]
    assert len(pids) == 4
    deadline = time.monotonic() + 5
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not [pid for pid in pids if alive(pid)]


@pytest.mark.parametrize("mode", ["plain", "deaf"])
def test_local_ends_all_when_one_fails(mode: str, tmp_path: Path):
    """Also the processes they started, and those that do not listen to SIGTERM."""
    start = time.monotonic()
    result = local_python(
        tmp_path, "-n", "2", "--grace", "1", code=WAIT, args=(str(tmp_path), mode)
    )
    assert result.returncode == 7
    assert time.monotonic() - start < 30
    log = tmp_path / "logs" / "process-1.log"
    failure = "process 1 ended with exit code 7, stopping the others"
    assert result.stderr == f"launch/local.sh: {failure}; see {log}\n"
    assert_all_ended(tmp_path)


def test_local_passes_signals_on(tmp_path: Path):
    command = [ROOT / "launch" / "local.sh", "-n", "2", "--log-dir", tmp_path / "logs"]
    with subprocess.Popen(
        [*command, "--", sys.executable, "-c", WAIT, tmp_path, "saves"],
        env=environment(),
    ) as process:
        deadline = time.monotonic() + 30
        while len(list(tmp_path.glob("pids-*"))) < 2 and time.monotonic() < deadline:
            time.sleep(0.05)
        time.sleep(0.1)  # a file exists a moment before it is filled
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 128 + signal.SIGTERM
    assert (tmp_path / "saved-0").exists() and (tmp_path / "saved-1").exists()
    assert_all_ended(tmp_path)
