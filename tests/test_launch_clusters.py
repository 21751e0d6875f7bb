"""launch/slurm.sh and launch/gke.sh against stand-ins for sbatch, srun, scontrol, squeue and
kubectl: no cluster was asked.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_launch import environment, fake_command, launch

SLURM = ("--gpus", "8")
GKE = ("--name", "nq", "--image", "i", "--claim", "c")
TPU = ("--tpu", "tpu-v5-lite-podslice", "--topology", "4x4")
GPU = ("--gpu", "nvidia-h100-80gb", "--gpus", "8")
RUN = ("--", "dpr", "train")


@pytest.mark.parametrize(
    ("script", "args", "message"),
    [
        ("slurm.sh", RUN, "--gpus is missing"),
        ("slurm.sh", SLURM, "no command after --"),
        ("slurm.sh", ("--gpus", *RUN), "--gpus needs a value"),
        ("slurm.sh", ("--gpus", "16", *RUN), "up to 8 GPUs, not 16"),
        ("slurm.sh", (*SLURM, "--nodes", "0", *RUN), "--nodes: '0' is not a positive"),
        ("slurm.sh", (*SLURM, "--sbatch", "gpu", *RUN), "'gpu' is no option"),
        ("slurm.sh", (*SLURM, "--log-dir", "a b", *RUN), "no spaces"),
        ("slurm.sh", (*SLURM, "--node", "2", *RUN), "unknown argument '--node'"),
        ("gke.sh", (*TPU, *RUN), "--name is missing"),
        ("gke.sh", ("--name", "Nq", *TPU, *RUN), "'Nq' has to be lower-case"),
        ("gke.sh", (*GKE[:2], *TPU, *RUN), "--image is missing"),
        ("gke.sh", (*GKE[:4], *TPU, *RUN), "--claim is missing"),
        ("gke.sh", (*GKE, *TPU), "no command after --"),
        ("gke.sh", (*GKE, *RUN), "name either --tpu"),
        ("gke.sh", (*GKE, *TPU, *GPU, *RUN), "name either --tpu"),
        ("gke.sh", (*GKE, *TPU, "--hosts", "2", *RUN), "name either --tpu"),
        ("gke.sh", (*GKE, *GPU[:2], *RUN), "--gpus: '' is not a positive"),
        ("gke.sh", (*GKE, *TPU[:3], "16", *RUN), "'16' is not of the form 4x4"),
        ("gke.sh", (*GKE, *TPU, "--chips", "3", *RUN), "16 chips of topology 4x4"),
        ("gke.sh", (*GKE, *TPU, "--mount", "data", *RUN), "no absolute path"),
        ("gke.sh", (*GKE, *TPU, "--slices", "0", *RUN), "--slices: '0' is not a positive"),
        ("gke.sh", (*GKE, *GPU, "--slices", "2", *RUN), "name either --tpu"),
        ("gke.sh", (*GKE, *TPU, "--slices", "2", "--node-pool", "p", *RUN), "2 slices lie in"),
    ],
)
def test_bad_arguments_give_one_line_and_exit_2(
    script: str, args: tuple[str, ...], message: str, tmp_path: Path
):
    result = launch(script, *args, cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.startswith(f"launch/{script}: ")
    assert result.stderr.count("\n") == 1 and message in result.stderr
    assert not any(tmp_path.iterdir())


# --- Slurm

# A process of the job: says what it was given, and ends with the status meant for it.
PROCESS = """
import json, os, pathlib, sys
me = int(os.environ.get("DPR_PROCESS_ID", "0"))
pathlib.Path(sys.argv[1], f"process-{me}.json").write_text(json.dumps(dict(os.environ)))
sys.exit(int(sys.argv[2 + me]))
"""
# As srun does: the command once a task, and the highest status.
SRUN = """
while :; do case $1 in --ntasks=*) count=${1#*=}; shift;; --*) shift;; *) break;; esac; done
highest=0 i=0
while [ $i -lt $count ]; do
  code=0; SLURM_PROCID=$i "$@" || code=$?
  if [ $code -gt $highest ]; then highest=$code; fi
  i=$((i + 1))
done
exit $highest
"""
# As srun and Slurm's notice: the one process that was started here is signalled, not what it
# starts.
SRUN_AND_NOTICE = """
while :; do case $1 in --*) shift;; *) break;; esac; done
"$@" & task=$!
while [ ! -e {ready} ]; do sleep 0.05; done
kill -TERM $task
wait $task
"""


def run_job(
    tmp_path: Path,
    nodes: int,
    srun: str,
    *command: str,
    state: str = "RUNNING",
    requeue: str = "echo $2 >>{}",
) -> tuple[subprocess.CompletedProcess[str], str]:
    """Submits, runs what was submitted, and gives how it ended and what was requeued."""
    requeued = tmp_path / "requeued"
    for name, script in {
        "sbatch": f"cat >{tmp_path}/batch.sh",
        "srun": srun,
        "squeue": f"echo {state}",
        "scontrol": (
            f"""case $1 in
          show) echo node7; echo node8;;
          requeue) {requeue.format(requeued)};;
        esac"""
        ),
        "nvidia-smi": "echo 'NVIDIA H200, 143771 MiB, 580.65.06'",
    }.items():
        path = fake_command(tmp_path / "bin", name, script)
    logs = tmp_path / "logs"
    options = ("--nodes", str(nodes), *SLURM, "--log-dir", str(logs), "--")
    submitted = launch("slurm.sh", *options, *command, PATH=path)
    assert submitted.returncode == 0, submitted.stderr
    assert logs.is_dir()
    job = {"SLURM_JOB_ID": "24001", "SLURM_JOB_NUM_NODES": str(nodes)}
    result = subprocess.run(
        ["bash", tmp_path / "batch.sh"],
        check=False,
        env=environment(PATH=path, SLURM_JOB_NODELIST="node[7-8]", **job),
        capture_output=True,
        text=True,
        timeout=60,
    )
    return result, requeued.read_text() if requeued.exists() else ""


@pytest.mark.parametrize(
    ("statuses", "state", "expected", "requeued"),
    [
        ((0, 0), "RUNNING", 0, ""),
        ((75, 75), "RUNNING", 75, "24001\n"),
        ((75,), "RUNNING", 75, "24001\n"),
        ((2, 2), "RUNNING", 2, ""),
        ((2,), "RUNNING", 2, ""),
        ((137, 75), "RUNNING", 137, ""),
        ((75, 75), "COMPLETING", 75, ""),
    ],
)
def test_slurm_requeues_75_and_nothing_else(
    statuses: tuple[int, ...], state: str, expected: int, requeued: str, tmp_path: Path
):
    """Nor a job that scancel is ending, which Slurm calls COMPLETING."""
    command = (sys.executable, "-c", PROCESS, str(tmp_path), *map(str, statuses))
    result, found = run_job(tmp_path, len(statuses), SRUN, *command, state=state)
    assert (result.returncode, found) == (expected, requeued), result.stderr
    for i in range(len(statuses)):
        given = json.loads((tmp_path / f"process-{i}.json").read_text())
        assert given["JAX_PLATFORMS"] == "cuda,cpu"
        if len(statuses) == 1:
            assert not any(name.startswith("DPR_") for name in given)
        else:
            assert given["DPR_COORDINATOR"] == "node7:20001"
            assert given["DPR_NUM_PROCESSES"] == str(len(statuses))
            assert given["DPR_PROCESS_ID"] == str(i)


def test_slurm_says_that_a_requeue_failed(tmp_path: Path):
    command = (sys.executable, "-c", PROCESS, str(tmp_path), "75")
    result, _ = run_job(tmp_path, 1, SRUN, *command, requeue="exit 1")
    assert result.returncode == 75
    assert "stopped and saved, but not requeued; submit it again" in result.stderr


@pytest.mark.parametrize("nodes", [1, 2])
def test_slurms_notice_reaches_the_command(nodes: int, tmp_path: Path):
    code = """if True:
        import pathlib, signal, sys, time
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(75))
        pathlib.Path(sys.argv[1]).touch()
        time.sleep(50)"""
    ready = tmp_path / "ready"
    srun = SRUN_AND_NOTICE.format(ready=ready)
    srun = f"export SLURM_PROCID=0\n{srun}"
    command = (sys.executable, "-c", code, str(ready))
    result, requeued = run_job(tmp_path, nodes, srun, *command)
    assert (result.returncode, requeued) == (75, "24001\n"), result.stderr


def test_slurm_dry_run_prints_the_batch_script(tmp_path: Path):
    """Whole nodes, or a share of them; sbatch's own options come last, where they win."""
    options = ("--nodes", "2", *SLURM, "--time", "1:00:00", "--notice", "90")
    more = ("--sbatch", "--partition=gpu", "--dry-run", "--", "dpr", "train", "a b")
    for cpus in ((), ("--cpus", "32")):
        result = launch("slurm.sh", *options, *cpus, *more, cwd=tmp_path)
        assert result.returncode == 0, result.stderr
        lines = result.stdout.splitlines()
        last = max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
        asked = [line.removeprefix("#SBATCH ") for line in lines[1 : last + 1]]
        share = {"--cpus-per-task=32"} if cpus else {"--exclusive", "--mem=0"}
        assert set(asked) == share | {
            "--job-name=dpr",
            "--nodes=2",
            "--ntasks-per-node=1",
            "--gpus-per-node=8",
            "--time=1:00:00",
            "--requeue",
            "--signal=TERM@90",
            "--open-mode=append",
            "--output=logs/slurm-%j.log",
            "--partition=gpu",
        }
        assert asked[-1] == "--partition=gpu"
        (step,) = (line for line in lines if line.startswith("srun "))
        assert " --kill-on-bad-exit=0 " in step and " --ntasks=2 " in step
        assert step.endswith(" --skip-install -- dpr train 'a b' || code=$?")
    assert not any(tmp_path.iterdir())


# --- GKE


def manifest(*args: str) -> tuple[list[dict], dict, dict]:
    """What would be applied, the job's spec and its pods' spec."""
    result = launch("gke.sh", *GKE, *args)
    assert result.returncode == 0, result.stderr
    objects = list(yaml.safe_load_all(result.stdout))
    made = objects[-1]
    assert made["metadata"]["name"] == "nq"
    job = made["spec"]
    if made["kind"] == "JobSet":
        check_jobset(made)
        job = made["spec"]["replicatedJobs"][0]["template"]["spec"]
    check_with_kubernetes(objects, job)
    return objects, job, job["template"]["spec"]


def check_jobset(made: dict) -> None:
    """The rules of JobSet that its documentation names; it is no part of Kubernetes."""
    assert made["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    spec = made["spec"]
    assert spec.keys() <= {"network", "failurePolicy", "successPolicy", "replicatedJobs"}
    assert spec["network"].keys() <= {
        "enableDNSHostnames",
        "publishNotReadyAddresses",
        "subdomain",
    }
    assert spec["failurePolicy"] == {"maxRestarts": 0}
    [replicated] = spec["replicatedJobs"]
    assert replicated.keys() == {"name", "replicas", "template"}
    # the name of a pod is a host name: JOBSET-REPLICATED-JOB-POD, and Kubernetes adds -xxxxx
    assert len(f"{'n' * 40}-{replicated['name']}-99-999-xxxxx") <= 63
    assert replicated["template"].keys() == {"spec"}


def check_with_kubernetes(objects: list[dict], job: dict) -> None:
    """Against the schemas of Kubernetes, where kubernetes-validate is there."""
    try:
        import kubernetes_validate as validate
    except ImportError:
        return
    for one in objects:
        if one["kind"] == "JobSet":
            one = one | {"apiVersion": "batch/v1", "kind": "Job", "spec": job}
        validate.validate(one, "1.30", strict=True)


@pytest.mark.parametrize(
    ("topology", "chips", "hosts"),
    [("2x2", "4", 1), ("2x4", "8", 1), ("2x4", "4", 2), ("2x2x4", "4", 4)],
)
def test_gke_takes_a_pod_for_each_host_of_a_tpu_slice(topology: str, chips: str, hosts: int):
    args = ("--tpu", "tpu-x", "--topology", topology, "--chips", chips)
    _, job, pod = manifest(*args, "--node-pool", "p", "--dry-run", *RUN)
    assert job["completionMode"] == "Indexed"
    assert (job["completions"], job["parallelism"]) == (hosts, hosts)
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-x",
        "cloud.google.com/gke-tpu-topology": topology,
        "cloud.google.com/gke-nodepool": "p",
    }
    (container,) = pod["containers"]
    assert container["resources"]["limits"] == {"google.com/tpu": int(chips)}


def variables(container: dict, annotations: dict[str, str]) -> dict[str, str]:
    """The environment as the kubelet fills it in."""
    found = {}
    for entry in container["env"]:
        if "value" in entry:
            found[entry["name"]] = entry["value"]
        else:
            path = entry["valueFrom"]["fieldRef"]["fieldPath"]
            (name,) = re.fullmatch(r"metadata\.annotations\['(.+)'\]", path).groups()
            found[entry["name"]] = annotations[name]
    return found


def waits_for(pod: dict, tmp_path: Path) -> list[str]:
    """The names that the init container looks up until each is found; every second try finds it."""
    (waiting,) = pod["initContainers"]
    path = fake_command(
        tmp_path / "bin",
        "getent",
        f"echo $2 >>{tmp_path}/asked; [ $(($(wc -l <{tmp_path}/asked) % 2)) = 0 ]",
    )
    fake_command(tmp_path / "bin", "sleep", "")
    command = [word.replace("$$", "$") for word in waiting["command"]]
    subprocess.run(command, check=True, env=environment(PATH=path), timeout=30)
    return (tmp_path / "asked").read_text().split()


def test_gke_pods_find_each_other(tmp_path: Path):
    """By the names that Kubernetes gives the pods of an Indexed Job: JOB-INDEX.SUBDOMAIN, where a
    headless service has that name.
    """
    objects, job, pod = manifest(*TPU, "--dry-run", *RUN)
    service = objects[0]
    assert service["kind"] == "Service" and service["spec"]["clusterIP"] == "None"
    assert service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": "nq"}
    assert service["metadata"]["name"] == pod["subdomain"]
    names = [f"nq-{i}.{pod['subdomain']}" for i in range(job["completions"])]

    (container,) = pod["containers"]
    annotation = {"batch.kubernetes.io/job-completion-index": "2"}
    found = variables(container, annotation)
    assert found["DPR_COORDINATOR"].split(":")[0] == names[0]
    assert (found["DPR_NUM_PROCESSES"], found["DPR_PROCESS_ID"]) == ("4", "2")
    assert found["JAX_PLATFORMS"] == "tpu,cpu"
    assert container["command"] == ["dpr", "train"]
    assert waits_for(pod, tmp_path) == [name for name in names for _ in range(2)]


def test_gke_gpu_nodes_are_a_jobset(tmp_path: Path):
    """JobSet names the pods JOBSET-REPLICATED-JOB-POD.JOBSET, and keeps a service of that name."""
    objects, job, pod = manifest(*GPU, "--hosts", "2", "--dry-run", *RUN)
    [made] = objects
    assert made["kind"] == "JobSet" and made["spec"]["replicatedJobs"][0]["replicas"] == 1
    assert made["spec"]["network"]["publishNotReadyAddresses"] is True
    assert (job["completions"], job["parallelism"]) == (2, 2) and "subdomain" not in pod
    (container,) = pod["containers"]
    found = variables(container, {"batch.kubernetes.io/job-completion-index": "1"})
    assert found["DPR_COORDINATOR"] == "nq-slice-0-0.nq:8476"
    assert (found["DPR_NUM_PROCESSES"], found["DPR_PROCESS_ID"]) == ("2", "1")
    assert found["JAX_PLATFORMS"] == "cuda,cpu"
    assert container["resources"]["limits"] == {"nvidia.com/gpu": 8}
    names = ["nq-slice-0-0.nq", "nq-slice-0-1.nq"]
    assert waits_for(pod, tmp_path) == [name for name in names for _ in range(2)]


def test_gke_several_slices_are_one_run(tmp_path: Path):
    """Processes are numbered slice by slice, so that neighbours share a slice."""
    code = "import os; print(os.environ['DPR_PROCESS_ID'])"
    command = ("--", sys.executable, "-c", code, "a $(b)")
    objects, job, pod = manifest(*TPU, "--slices", "3", "--dry-run", *command)
    [made] = objects
    assert made["spec"]["replicatedJobs"][0]["replicas"] == 3
    (placement,) = made["metadata"]["annotations"].items()
    assert placement == (
        "alpha.jobset.sigs.k8s.io/exclusive-topology",
        "cloud.google.com/gke-nodepool",
    )
    assert job["completions"] == 4 and pod["hostNetwork"] is True
    (container,) = pod["containers"]
    numbers = []
    for piece, host in ((0, 0), (0, 3), (2, 1)):
        index = {"batch.kubernetes.io/job-completion-index": str(host)}
        found = variables(container, index | {"jobset.sigs.k8s.io/job-index": str(piece)})
        assert found["MEGASCALE_SLICE_ID"] == str(piece)
        run = [word.replace("$$", "$") for word in container["command"]]
        assert run[-1] == "a $(b)"
        done = subprocess.run(
            run, check=True, env=environment(**found), capture_output=True, text=True
        )
        numbers.append(int(done.stdout))
    assert numbers == [0, 3, 9]
    assert found["DPR_NUM_PROCESSES"] == "12" and found["MEGASCALE_NUM_SLICES"] == "3"
    assert found["MEGASCALE_COORDINATOR_ADDRESS"] == "nq-slice-0-0.nq"
    names = [f"nq-slice-{piece}-{host}.nq" for piece in range(3) for host in range(4)]
    assert waits_for(pod, tmp_path) == [name for name in names for _ in range(2)]


def test_gke_one_host_is_one_process():
    objects, _, pod = manifest(*GPU, "--dry-run", *RUN)
    assert len(objects) == 1 and "initContainers" not in pod
    found = variables(pod["containers"][0], {})
    assert not any(name.startswith("DPR_") for name in found)


@pytest.mark.parametrize(
    ("status", "disrupted", "expected"),
    [
        (2, False, "FailJob"),
        (75, False, "Ignore"),
        (75, True, "Ignore"),
        (137, True, "Ignore"),
        (134, False, "Count"),
        (1, False, "Count"),
    ],
)
def test_gke_what_a_pods_end_means(status: int, disrupted: bool, expected: str):
    _, job, pod = manifest(*TPU, "--retries", "5", "--dry-run", *RUN)
    # what Kubernetes asks of a job with a failure policy
    assert pod["restartPolicy"] == "Never"
    assert job["podReplacementPolicy"] == "Failed"
    assert job["backoffLimit"] == 5  # the other pods end with 75
    action = "Count"
    for rule in job["podFailurePolicy"]["rules"]:
        codes, conditions = rule.get("onExitCodes"), rule.get("onPodConditions")
        if codes:
            assert codes["operator"] == "In"
            assert codes["containerName"] == pod["containers"][0]["name"]
            fits = status in codes["values"]
        else:
            assert conditions == [{"type": "DisruptionTarget", "status": "True"}]
            fits = disrupted
        if fits:
            action = rule["action"]
            break
    assert action == expected


def test_gke_gives_the_command_intact_on_shared_storage():
    """Kubernetes puts a variable's value for $(NAME), and $ for $$."""
    args = ["a b", "it's", '"q"', "$(JAX_PLATFORMS)", "$$", "back\\slash", "x: #y", "*"]
    storage = ("--mount", "/data", "--grace", "300")
    _, _, pod = manifest(*TPU, *storage, "--dry-run", "--", "dpr", *args, "two\nlines")
    (container,) = pod["containers"]
    assert not any(re.search(r"(?<!\$)(\$\$)*\$\(", w) for w in container["command"])
    given = [word.replace("$$", "$") for word in container["command"]]
    assert given == ["dpr", *args, "two\nlines"]
    assert pod["terminationGracePeriodSeconds"] == 300
    assert container["workingDir"] == container["volumeMounts"][0]["mountPath"]
    assert container["volumeMounts"] == [{"name": "shared", "mountPath": "/data"}]
    claim = {"name": "shared", "persistentVolumeClaim": {"claimName": "c"}}
    assert pod["volumes"] == [claim]


@pytest.mark.parametrize("there", ["", "job.batch/nq"])
def test_gke_applies_what_it_prints_unless_the_job_is_there(there: str, tmp_path: Path):
    path = fake_command(
        tmp_path / "bin",
        "kubectl",
        f"""[ "$1" = --namespace=team ] || exit 9
        case $2 in get) echo {there};; apply) cat >{tmp_path}/applied;; esac""",
    )
    args = (*GKE, *TPU, "--namespace", "team")
    result = launch("gke.sh", *args, *RUN, PATH=path)
    applied = tmp_path / "applied"
    if there:
        assert (result.returncode, applied.exists()) == (1, False)
        assert "delete job nq' first" in result.stderr
    else:
        assert result.returncode == 0, result.stderr
        printed = launch("gke.sh", *args, "--dry-run", *RUN)
        assert applied.read_text() == printed.stdout
