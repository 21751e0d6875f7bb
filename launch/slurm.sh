#!/usr/bin/env bash
# A Slurm cluster, with NVIDIA GPUs or without: submit one job whose nodes run the same dpr
# command, one process per node with all its GPUs.
#
# Run it on a login node. Before: `make install EXTRAS=gpu` in this checkout, which has to be on
# storage that the nodes see under the same path, as do the work directory, the data and the
# folder it is run in. Cost: the nodes' time, whatever it does.
set -euo pipefail

usage() {
  cat <<'END'
launch/slurm.sh --gpus G [options] -- COMMAND...

  --gpus G           GPUs of each node; 0 for a cluster without
  --nodes N          number of nodes (default: 1)
  --cpus C           take C cores of each node and leave the rest to others (default: whole nodes,
                     with all their memory)
  --time LIMIT       of one run, as sbatch takes it (default: the partition's)
  --notice SECONDS   how long before the limit the processes are told; a step and a save have to fit
                     in (default: 120)
  --sbatch OPTION    one more option of sbatch, such as --partition=gpu or --mem=200G; can be
                     repeated
  --log-dir DIR      where the logs go (default: logs): slurm-JOB.log, and slurm-JOB-PROCESS.log of
                     each process
  --dry-run          print the batch script
  -h, --help         this text

What happens at the end of a run:
  - At the limit, at a preemption with a grace time, or told by `scancel --signal=TERM JOB`,
    training saves and ends with 75. The job is requeued under its number and goes on from there. No
    other status requeues it: it is the job's status.
  - With several processes that is the highest of theirs. When one dies, the others end at once with
    75, or with its status.
  - Only training listens. Another stage that is running at the limit is killed; submit again and it
    goes on.
  - `scancel JOB` ends the job; it is not requeued, saved or not.
  - Slurm requeues it by itself when a node fails or a job with priority takes the nodes, if the
    cluster is set up so.

Example, two nodes of eight GPUs:
  launch/slurm.sh --nodes 2 --gpus 8 --time 12:00:00 --sbatch --partition=gpu -- \
    dpr pipeline --workdir /shared/runs/nq --from train --until encode
Only train and encode (and retrieve, over an exact index) use all accelerators. Run the rest
elsewhere on the same work directory, before with --until mine and after with --from index
(docs/scaling.md).
END
}

die() { echo "launch/slurm.sh: $1" >&2; exit "${2:-2}"; }

show() { # a command as it could be typed
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
      printf '%s ' "$word"
    else
      printf '%s ' "${word@Q}"
    fi
  done
  echo
}

need_count() {
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] ||
    die "$1: '$2' is not a positive whole number (see --help)"
}

# --- arguments

nodes=1 gpus="" cpus="" limit="" notice_s=120 log_dir=logs more=() dry_run=""
while (($#)); do
  case $1 in
    --gpus | --nodes | --cpus | --time | --notice | --sbatch | --log-dir)
      [[ $# -ge 2 && -n $2 && $2 != -- ]] ||
      die "$1 needs a value (see --help)" ;;&
    --gpus) gpus=$2; shift 2 ;;
    --nodes) nodes=$2; shift 2 ;;
    --cpus) cpus=$2; shift 2 ;;
    --time) limit=$2; shift 2 ;;
    --notice) notice_s=$2; shift 2 ;;
    --sbatch) more+=("$2"); shift 2 ;;
    --log-dir) log_dir=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after -- (see --help)" ;;
  esac
done
[[ -n $gpus ]] || die "--gpus is missing (see --help)"
[[ $gpus == 0 ]] || need_count --gpus "$gpus"
need_count --nodes "$nodes"
need_count --notice "$notice_s"
[[ -z $cpus ]] || need_count --cpus "$cpus"
((gpus <= 8)) || die "--gpus: a process drives up to 8 GPUs, not $gpus"
for option in "${more[@]}"; do
  [[ $option == -?* ]] || die "--sbatch: '$option' is no option; write --sbatch --partition=gpu"
done
(($#)) || die "no command after -- (see --help)"

options=("--job-name=dpr" "--nodes=$nodes" "--ntasks-per-node=1")
if ((gpus)); then options+=("--gpus-per-node=$gpus"); fi
if [[ -n $cpus ]]; then
  options+=("--cpus-per-task=$cpus")
else
  options+=("--exclusive" "--mem=0")
fi
if [[ -n $limit ]]; then options+=("--time=$limit"); fi
# Without B: the signal goes to the processes that srun started, and not to the batch shell, which
# has to outlive them.
options+=("--requeue" "--signal=TERM@$notice_s" "--open-mode=append")
options+=("--output=$log_dir/slurm-%j.log" "${more[@]}")
for option in "${options[@]}"; do # sbatch would read a part of it, or a comment
  [[ $option =~ ^[^[:space:]\'\"\\#]+$ ]] ||
    die "'$option': no spaces, quotes, backslashes or # in options of sbatch"
done

# --- the batch script

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
step=(srun "--nodes=$nodes" "--ntasks=$nodes")
node=("$root/launch/gpu_node.sh" "--skip-install")
if ((gpus)); then step+=("--gpus-per-node=$gpus"); else node+=("--cpu"); fi
step+=("--cpu-bind=none" "--kill-on-bad-exit=0" "--wait=600" "--open-mode=append")
step+=("--output=$log_dir/slurm-%j-%t.log")
node+=("--" "$@")

batch_script() {
  echo '#!/usr/bin/env bash'
  printf '#SBATCH %s\n' "${options[@]}"
  cat <<'END'
set -euo pipefail

code=0
# kill-on-bad-exit=0: else the first process that ended with 75 would have the others killed, and
# srun says the highest status.
# wait: the others end when one is lost; this is for when they do not.
# exec: Slurm signals the process that it started itself, so that has to become dpr.
END
  if ((nodes > 1)); then
    cat <<'END'
# The processes are named by hand: left to JAX's own detection of Slurm, each would take one GPU
# of its node. They may start minutes apart, where many nodes read the same disk.
mapfile -t hosts < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
export DPR_JOIN_S=${DPR_JOIN_S:-300} NUM_NODES=$SLURM_JOB_NUM_NODES
export COORDINATOR_ADDRESS=${hosts[0]}:$((20000 + SLURM_JOB_ID % 12000))
END
    # shellcheck disable=SC2016 # SLURM_PROCID is the process's
    step+=(bash -c 'NODE_RANK=$SLURM_PROCID exec "$@"' bash)
  fi
  echo "$(show "${step[@]}" "${node[@]}")|| code=\$?"
  cat <<'END'

if ((code == 75)); then
  # scontrol would also bring back a job that scancel is ending. One that Slurm preempts is
  # requeued by Slurm.
  state=$(squeue --noheader --format=%T --jobs="$SLURM_JOB_ID") || state="of unknown state"
  if [[ $state != RUNNING ]]; then
    echo "launch/slurm.sh: stopped and saved; the job is $state, so it is not requeued from here" \
      >&2
  elif scontrol requeue "$SLURM_JOB_ID"; then
    echo "launch/slurm.sh: stopped and saved; requeued" >&2
  else
    echo "launch/slurm.sh: stopped and saved, but not requeued; submit it again to go on" >&2
  fi
fi
exit "$code"
END
}

if [[ -n $dry_run ]]; then batch_script; exit; fi

# --- submit

type -P sbatch >/dev/null || die "no sbatch on PATH; run this on a login node of the cluster" 1
PATH="$root/.venv/bin:$PATH" type -P -- "$1" >/dev/null ||
  die "no command '$1' on PATH or in .venv/bin; 'make install EXTRAS=gpu' makes dpr"
mkdir -p "$log_dir" # sbatch does not make it, and the job would fail
batch_script | sbatch
