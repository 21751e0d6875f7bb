#!/usr/bin/env bash
# A Cloud TPU VM or a pod slice: install dpr_jax on every worker, then run the same dpr command on all of them.
#
# Run it from your own machine, with gcloud logged in and the TPU created. One process per worker drives its chips; they find
# each other by themselves. Cost: the TPU is billed from its creation to its deletion, not by this script. When the
# connection breaks, start the same command again: dpr goes on where it was (use tmux to keep it).
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh --name NAME --zone ZONE [options] -- COMMAND...

  --name NAME        the TPU
  --zone ZONE        its zone
  --project ID       its project (default: gcloud's)
  --repo URL         clone this repository on the workers (default: copy the last commit of this checkout)
  --ref REF          branch, tag or commit to take from URL (default: its default branch)
  --skip-install     only run the command
  --dry-run          print what would be done
  -h, --help         this text

COMMAND runs in ~/dpr_jax on every worker. With more than one worker, every path in it (--workdir, data) has to be on storage
that all workers see under the same path: NFS (Filestore), or a bucket mounted with gcsfuse. Set that up first. Large
slices: run ssh-add ~/.ssh/google_compute_engine before.

Example:
  launch/tpu_vm.sh --name my-v5e-16 --zone us-central1-a -- \
    dpr pipeline --workdir /mnt/bucket/runs/nq --from train --until encode
Only train and encode use all accelerators. Run the rest elsewhere on the same work directory, before
with --until mine and after with --from index (docs/scaling.md).
END
}

die() { echo "launch/tpu_vm.sh: $1" >&2; exit "${2:-2}"; }

show() { # a command as it could be typed
  for word; do
    if [[ $word =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then printf '%s ' "$word"; else printf '%s ' "${word@Q}"; fi
  done
  echo
}

# --- arguments

name="" zone="" project="" repo="" ref="" skip_install="" dry_run=""
while (($#)); do
  case $1 in
    --name | --zone | --project | --repo | --ref) [[ $# -ge 2 && $2 != -* && -n $2 ]] || die "$1 needs a value (see --help)" ;;&
    --name) name=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --repo) repo=$2; shift 2 ;;
    --ref) ref=$2; shift 2 ;;
    --skip-install) skip_install=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after -- (see --help)" ;;
  esac
done
[[ -n $name ]] || die "--name is missing (see --help)"
[[ -n $zone ]] || die "--zone is missing (see --help)"
[[ -z $ref || -n $repo ]] || die "--ref belongs to --repo URL"
(($#)) || die "no command after -- (see --help)"
[[ -n $dry_run ]] || type -P gcloud >/dev/null || die "no gcloud on PATH; install the Google Cloud CLI and run 'gcloud auth login'" 1

where=("--zone=$zone" "--worker=all")
if [[ -n $project ]]; then where+=("--project=$project"); fi

step() { # print a command, and run it unless this is a dry run
  show "$@"
  if [[ -z $dry_run ]]; then "$@"; fi
}
on_all_workers() { step gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--command=set -e; $1"; }

# --- the code

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
if [[ -n $skip_install ]]; then
  :
elif [[ -n $repo ]]; then
  # shellcheck disable=SC2016 # $HOME is the worker's
  printf -v fetch 'mkdir -p "$HOME/dpr_jax" && cd "$HOME/dpr_jax" && git init -q && git fetch -q --depth 1 %q %q && git checkout -q --force --detach FETCH_HEAD' \
    "$repo" "${ref:-HEAD}"
  on_all_workers "$fetch"
else
  if [[ -n $(git -C "$root" status --porcelain --untracked-files=no) ]]; then
    echo "launch/tpu_vm.sh: uncommitted changes are not sent" >&2
  fi
  archive=$(mktemp -d)/dpr_jax.tar.gz
  trap 'rm -rf "$(dirname "$archive")"' EXIT
  step git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  step gcloud compute tpus tpu-vm scp "$archive" "$name:dpr_jax.tar.gz" "${where[@]}"
  # shellcheck disable=SC2016 # $HOME is the worker's
  on_all_workers 'mkdir -p "$HOME/dpr_jax" && tar -xzf dpr_jax.tar.gz -C "$HOME/dpr_jax"'
fi

# --- install: the image's Python is 3.10 on the usual runtimes, so uv brings one

if [[ -z $skip_install ]]; then
  # shellcheck disable=SC2016
  on_all_workers 'export PATH="$HOME/.local/bin:$PATH"; uv --version >/dev/null 2>&1 || python3 -m pip install --user --quiet uv; cd "$HOME/dpr_jax"; uv python install --quiet 3.12; make install EXTRAS=tpu PYTHON="$(uv python find --system 3.12)"'
fi

# --- run. DPR_COORDINATOR=auto: each worker asks its machine for the others. Naming both platforms makes it an error, not a slow run on the CPU, when the TPU does not start.

printf -v command '%q ' "$@"
on_all_workers "cd \"\$HOME/dpr_jax\"; export PATH=\"\$HOME/dpr_jax/.venv/bin:\$PATH\" JAX_PLATFORMS=tpu,cpu DPR_COORDINATOR=auto; ${command% }"
