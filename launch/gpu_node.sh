#!/usr/bin/env bash
# One machine with 1 to 8 NVIDIA GPUs: install what is missing, then run a dpr command. One
# process drives all its GPUs.
#
# Several machines: run the same on each, with three environment variables (see --help). Cost: the
# first installation downloads about 3 GB of CUDA libraries; no CUDA toolkit has to be on the
# machine, only the driver.
set -euo pipefail

usage() {
  cat <<'END'
launch/gpu_node.sh [options] -- COMMAND...

  --skip-install     take .venv as it is
  --cpu              use no GPU: for trying things, and for clusters without any
  --dry-run          print what would be done
  -h, --help         this text

Environment, for several machines (all three or none; each machine one process):
  NUM_NODES              how many machines
  NODE_RANK              which one this is, from 0
  COORDINATOR_ADDRESS    HOST:PORT of machine 0, reachable from the others
Then the work directory and the data have to be on storage that all machines see under the same
path.

Example, one machine:
  launch/gpu_node.sh -- dpr pipeline configs/nq_bert_base.py --workdir runs/nq
Example, the second of two:
  NUM_NODES=2 NODE_RANK=1 COORDINATOR_ADDRESS=10.0.0.2:8476 \
    launch/gpu_node.sh -- dpr pipeline --workdir /mnt/shared/runs/nq --from train --until encode
Only train and encode (and retrieve, over an exact index) use all accelerators. Run the rest
elsewhere on the same work directory, before with --until mine and after with --from index
(docs/scaling.md).
END
}

die() { echo "launch/gpu_node.sh: $1" >&2; exit "${2:-2}"; }

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

# --- arguments

skip_install="" cpu="" dry_run=""
while (($#)); do
  case $1 in
    --skip-install) skip_install=yes; shift ;;
    --cpu) cpu=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after -- (see --help)" ;;
  esac
done
(($#)) || die "no command after -- (see --help)"

# JAX would run on the CPU, slowly and with no more than a warning, where CUDA does not start:
# naming both makes that an error.
settings=("JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}")
if [[ -n $cpu ]]; then settings=("JAX_PLATFORMS=cpu"); fi
if [[ -n ${NUM_NODES:-}${NODE_RANK:-}${COORDINATOR_ADDRESS:-} ]]; then
  [[ ${NUM_NODES:-} =~ ^[1-9][0-9]{0,4}$ ]] ||
    die "NUM_NODES is '${NUM_NODES:-}', not a positive whole number (see --help)"
  [[ ${NODE_RANK:-} =~ ^(0|[1-9][0-9]{0,4})$ ]] ||
    die "NODE_RANK is '${NODE_RANK:-}', not a whole number from 0 (see --help)"
  ((NODE_RANK < NUM_NODES)) || die "NODE_RANK $NODE_RANK must be less than NUM_NODES $NUM_NODES"
  [[ ${COORDINATOR_ADDRESS:-} =~ ^[^[:space:]]+:[0-9]+$ ]] ||
    die "COORDINATOR_ADDRESS is '${COORDINATOR_ADDRESS:-}', not HOST:PORT (see --help)"
  settings+=("DPR_COORDINATOR=$COORDINATOR_ADDRESS")
  settings+=("DPR_NUM_PROCESSES=$NUM_NODES" "DPR_PROCESS_ID=$NODE_RANK")
fi

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
query=(nvidia-smi "--query-gpu=name,memory.total,driver_version" "--format=csv,noheader")
install=(make -C "$root" install "EXTRAS=gpu")
if [[ -n $cpu ]]; then query=() install=(make -C "$root" install); fi
run=(env "PATH=$root/.venv/bin:$PATH" "${settings[@]}" "$@")

if [[ -n $dry_run ]]; then
  if [[ -z $cpu ]]; then show "${query[@]}"; fi
  if [[ -z $skip_install ]]; then show "${install[@]}"; fi
  show env "PATH=$root/.venv/bin:..." "${settings[@]}" "$@"
  exit
fi

# --- the GPUs and their driver

if [[ -z $cpu ]]; then
  type -P nvidia-smi >/dev/null ||
    die "no nvidia-smi: this machine has no NVIDIA driver. Without a GPU, run dpr itself" 1
  gpus=$("${query[@]}") || die "nvidia-smi found no usable GPU: $gpus" 1
  echo "$gpus"
  count=$(wc -l <<<"$gpus")
  ((count <= 8)) || die "$count GPUs; this script was made for 1 to 8" 1
  driver=${gpus##*, }
  ((${driver%%.*} >= 580)) || die "NVIDIA driver $driver is too old: CUDA 13 needs 580 or newer" 1
fi

# --- install and run

if [[ -z $skip_install ]]; then "${install[@]}"; fi
exec "${run[@]}"
