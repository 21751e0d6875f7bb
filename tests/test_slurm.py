"""launch/slurm.sh on a real Slurm: munge, slurmctld and two slurmd on this machine, in namespaces
of their own. Debian has them: slurmctld slurmd slurm-client munge.
"""

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import quick
from test_launch import fake_command
from test_multiprocess import DPR, ROOT, write_config

from dpr_jax.config import Config
from dpr_jax.workdir import WorkDir, open_workdir

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "unshare", "mount")
SBIN = f"{os.environ['PATH']}{os.pathsep}/usr/sbin{os.pathsep}/sbin"
MISSING = [name for name in PROGRAMS if not shutil.which(name, path=SBIN)]
if os.geteuid():
    MISSING.append("the rights of root")
pytestmark = [
    pytest.mark.slurm,
    pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}"),
]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={root}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool-%n
SlurmctldPidFile={root}/ctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
SlurmctldLogFile={root}/ctld.log
SlurmdLogFile={root}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=2,batch_sched_delay=1
SlurmdParameters=config_overrides
SlurmdTimeout=10
ReturnToService=2
KillWait=5
InactiveLimit=0
GresTypes=gpu
NodeName=node1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1 Gres=gpu:1
NodeName=node2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1 Gres=gpu:1
PartitionName=all Nodes=ALL Default=YES State=UP MaxTime=30
"""
BOOT = """
set -eu
mount --bind {root}/hosts /etc/hosts
munged --force --key-file={root}/munge.key --socket={root}/munge.socket \\
  --pid-file={root}/munge.pid --log-file={root}/munge.log --seed-file={root}/munge.seed
slurmctld -c
for name in node1 node2; do slurmd -N $name; done
while sleep 1; do
  # a node that was killed and is wanted again
  if [ -e {root}/restart ]; then rm {root}/restart; slurmd -N node2; fi
done
"""
# `dpr` that takes half a second for an update until a file says that it need not
PATIENT = (
    """
import os, time
from dpr_jax.training import loop

stream = loop.batches.stream

def waiting(*args, **settings):
    for batch in stream(*args, **settings):
        if not os.path.exists(os.environ["HURRY"]):
            time.sleep(0.5)
        yield batch

loop.batches.stream = waiting
"""
    + DPR
)
STEPS = 24
FLAGS = f"{quick.FLAGS} --xla_force_host_platform_device_count=2"


class Cluster:
    """A running cluster of two nodes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.environment = os.environ | {
            "PATH": f"{fake_command(root / 'bin', 'nvidia-smi', SMI)}{os.pathsep}{SBIN}",
            "SLURM_CONF": str(root / "slurm.conf"),
            "PYTHONPATH": str(ROOT),
            "JAX_PLATFORMS": "cpu",
            "XLA_FLAGS": FLAGS,
            "HURRY": str(root / "hurry"),
        }
        host = socket.gethostname()
        ports = []
        for _ in range(3):
            with socket.socket() as one:
                one.bind(("", 0))
                ports.append(one.getsockname()[1])
        (root / "slurm.conf").write_text(CONF.format(root=root, host=host, ports=ports))
        (root / "gres.conf").write_text(f"NodeName=node[1-2] Name=gpu File={root}/gpu0\n")
        os.mknod(root / "gpu0", 0o600 | stat.S_IFCHR, os.makedev(1, 3))  # as /dev/null
        (root / "hosts").write_text(f"127.0.0.1 localhost {host} node1 node2\n")
        (root / "munge.key").write_bytes(os.urandom(1024))
        (root / "munge.key").chmod(0o400)
        (root / "state").mkdir()
        apart = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]
        with (root / "boot.log").open("w") as log:
            self._init = subprocess.Popen(
                [*apart, "bash", "-c", BOOT.format(root=root)],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def call(self, *command: str) -> str:
        done = subprocess.run(
            command, check=False, env=self.environment, capture_output=True, text=True, timeout=60
        )
        assert done.returncode == 0, (command, done.stdout, done.stderr)
        return done.stdout

    def submit(self, logs: Path, gpus: int, code: str, *command: str) -> str:
        """Submits a `dpr` command on both nodes; returns the job's number."""
        options = ("--gpus", str(gpus), "--nodes", "2", "--cpus", "1", "--log-dir", str(logs))
        script = str(ROOT / "launch" / "slurm.sh")
        said = self.call(script, *options, "--", sys.executable, "-c", code, *command)
        return re.search(r"Submitted batch job (\d+)", said)[1]

    def job(self, number: str) -> dict[str, str]:
        return dict(re.findall(r"(\w+)=(\S+)", self.call("scontrol", "show", "job", number)))

    def wait(self, number: str, timeout_s: float = 240, **wanted: str) -> dict[str, str]:
        """Returns the job when it has these values."""
        end_s = time.monotonic() + timeout_s
        while not wanted.items() <= (job := self.job(number)).items():
            assert time.monotonic() < end_s, (job, self.call("sinfo", "-N"))
            time.sleep(0.5)
        return job

    def kill_node(self, name: str) -> None:
        """Kills every process of a node, as a loss of power does."""
        spool = f"-N\0{name}\0".encode()
        for folder in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                line = (folder / "cmdline").read_bytes()
                own = f"SLURMD_NODENAME={name}\0".encode() in (folder / "environ").read_bytes()
                is_slurmd = line.startswith(b"slurmd") and spool in line
                is_step = line.startswith(b"slurmstepd") and self._is_of(folder, name)
                if own or is_slurmd or is_step:
                    os.kill(int(folder.name), signal.SIGKILL)

    def _is_of(self, folder: Path, name: str) -> bool:
        """Returns whether a step daemon has the spool folder of a node open."""
        files = [os.readlink(file) for file in (folder / "fd").iterdir()]
        return any(f"{self.root}/spool-{name}" in file or name in file for file in files)

    def stop(self) -> None:
        self._init.kill()
        self._init.wait()


SMI = "echo 'NVIDIA H100 80GB HBM3, 81559 MiB, 580.65.06'"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    cluster = Cluster(tmp_path_factory.mktemp("slurm"))
    try:
        end_s = time.monotonic() + 60
        while True:
            done = subprocess.run(
                ["sinfo", "-h", "-N", "-o", "%T"],
                check=False,
                env=cluster.environment,
                capture_output=True,
                text=True,
            )
            if done.stdout.split() == ["idle", "idle"]:
                break
            boot = (cluster.root / "boot.log").read_text()
            assert time.monotonic() < end_s, done.stdout + done.stderr + boot
            time.sleep(0.5)
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def trained(
    cluster: Cluster, tmp_path: Path, nq_small_workdir: tuple[Config, WorkDir]
) -> tuple[Path, WorkDir]:
    """A config, and a work directory with prepared data."""
    base, prepared = nq_small_workdir
    shutil.copytree(prepared.root, tmp_path / "w", symlinks=True)
    (cluster.root / "hurry").unlink(missing_ok=True)
    return write_config(tmp_path, base, "pmap", total_steps=STEPS), open_workdir(tmp_path / "w")


def steps(workdir: WorkDir) -> list[int]:
    """The updates that metrics.jsonl tells of; empty before the first."""
    folder = workdir.retriever("trained").find("checkpoints")
    if folder is None or not (folder / "metrics.jsonl").exists():
        return []
    rows = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return sorted({row["step"] for row in rows if "loss" in row})


def await_step(cluster: Cluster, job: str, workdir: WorkDir, step: int) -> None:
    end_s = time.monotonic() + 180
    while step not in steps(workdir):
        found = cluster.job(job)
        assert time.monotonic() < end_s and found["JobState"] not in ("FAILED", "COMPLETED"), found
        time.sleep(0.5)


def test_told_to_stop_it_saves_is_requeued_and_resumes(
    cluster: Cluster, trained: tuple[Path, WorkDir], tmp_path: Path
) -> None:
    config, workdir = trained
    command = ("train", str(config), "--workdir", str(workdir.root))
    job = cluster.submit(tmp_path / "logs", 1, PATIENT, *command)
    await_step(cluster, job, workdir, 3)
    cluster.call("scancel", "--signal=TERM", job)
    cluster.wait(job, Restarts="1")
    (cluster.root / "hurry").touch()
    done = cluster.wait(job, JobState="COMPLETED")
    assert done["ExitCode"] == "0:0" and done["Restarts"] == "1"
    assert steps(workdir) == list(range(1, STEPS + 1))
    log = (tmp_path / "logs" / f"slurm-{job}-0.log").read_text()
    assert "NVIDIA H100" in log and "of 2 process(es)" in log
    [stopped] = re.findall(r"stopped after step (\d+); the same command goes on", log)
    assert f"resuming after step {stopped}\n" in log
    assert "stopped and saved; requeued" in (tmp_path / "logs" / f"slurm-{job}.log").read_text()


def test_bad_input_is_not_requeued(
    cluster: Cluster, trained: tuple[Path, WorkDir], tmp_path: Path
) -> None:
    config, workdir = trained
    command = ("train", str(config), "--workdir", str(workdir.root), "--train.batch-size", "7")
    job = cluster.submit(tmp_path / "logs", 0, DPR, *command)
    done = cluster.wait(job, JobState="FAILED")
    assert done["ExitCode"] == "2:0" and done["Restarts"] == "0"
    log = (tmp_path / "logs" / f"slurm-{job}-0.log").read_text()
    assert "train.batch_size is 7" in log


def test_a_node_is_killed_and_the_run_goes_on(
    cluster: Cluster, trained: tuple[Path, WorkDir], tmp_path: Path
) -> None:
    config, workdir = trained
    command = ("train", str(config), "--workdir", str(workdir.root))
    job = cluster.submit(tmp_path / "logs", 0, PATIENT, *command)
    await_step(cluster, job, workdir, 3)
    cluster.kill_node("node2")
    log = tmp_path / "logs" / f"slurm-{job}-0.log"
    end_s = time.monotonic() + 60
    while "process 1 (" not in log.read_text():
        assert time.monotonic() < end_s, log.read_text()
        time.sleep(0.5)
    cluster.wait(job, Restarts="1")
    (cluster.root / "hurry").touch()
    (cluster.root / "restart").touch()
    done = cluster.wait(job, JobState="COMPLETED")
    assert done["ExitCode"] == "0:0"
    assert steps(workdir) == list(range(1, STEPS + 1))
    assert "resuming after step 2\n" in log.read_text()
