#!/usr/bin/env bash
# A Cloud TPU VM or a pod slice: install dpr_jax on every worker, then run the same dpr command on
# all of them.
#
# Run it from your own machine, with gcloud logged in. One process per worker drives its chips;
# they find each other by themselves. Cost: the TPU is billed from its creation to its deletion:
# --create makes one where there is none, --delete ends it. When the connection breaks, start the
# same command again: dpr goes on where it was (use tmux to keep it).
set -euo pipefail

usage() {
  cat <<'END'
launch/tpu_vm.sh --name NAME --zone ZONE [options] -- COMMAND...

  --name NAME        the TPU
  --zone ZONE        its zone
  --project ID       its project (default: gcloud's)
  --create TYPE      where there is no TPU of that name, ask for one (a queued resource), such as
                     v5litepod-16 or v4-32, and wait
  --runtime VERSION  its software (default: the usual one of TYPE)
  --spot             with --create: a cheap one, which may be taken away at any time; then another
                     one is asked for
  --restarts R       how often the command is started again: on a new TPU, after 75, or a broken
                     connection (default: 10)
  --delete           delete the TPU when the command has ended, however it ended
  --sync             send this checkout as it is, uncommitted changes and new files too
  --repo URL         clone this repository on the workers (default: copy the last commit of this
                     checkout)
  --ref REF          branch, tag or commit to take from URL (default: its default branch)
  --skip-install     only run the command
  --print-cost-hints PLAN.json
                     print the device-hours of what `dpr plan --json PLAN.json` planned, and end
  --price P          what an hour of a device costs, as your provider's list says: print costs too
  --dry-run          print what would be done
  -h, --help         this text

COMMAND runs in ~/dpr_jax on every worker, and what it says is added to logs/tpu_vm.log there. With
more than one worker --workdir has to be gs://BUCKET/..., or on storage that all workers see under
the same path (Filestore), which is set up first. Large slices: run ssh-add
~/.ssh/google_compute_engine before.

Example:
  launch/tpu_vm.sh --name my-v5e-16 --zone us-central1-a -- \
    dpr pipeline --workdir gs://BUCKET/nq --from train --until encode
  launch/tpu_vm.sh --name nq --zone us-central1-a --create v5litepod-8 --spot --delete -- dpr info
Only train and encode (and retrieve, over an exact index) use all accelerators. Run the rest
elsewhere on the same work directory, before with --until mine and after with --from index
(docs/scaling.md).
END
}

die() { echo "launch/tpu_vm.sh: $1" >&2; exit "${2:-2}"; }

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

name="" zone="" project="" type="" runtime="" spot="" restarts=10 delete="" sync="" repo="" ref=""
skip_install="" dry_run="" plan="" price=""
while (($#)); do
  case $1 in
    --name | --zone | --project | --create | --runtime | --restarts | --repo | --ref | \
      --print-cost-hints | --price)
      [[ $# -ge 2 && $2 != -* && -n $2 ]] ||
      die "$1 needs a value (see --help)" ;;&
    --name) name=$2; shift 2 ;;
    --zone) zone=$2; shift 2 ;;
    --project) project=$2; shift 2 ;;
    --create) type=$2; shift 2 ;;
    --runtime) runtime=$2; shift 2 ;;
    --spot) spot=yes; shift ;;
    --restarts) restarts=$2; shift 2 ;;
    --delete) delete=yes; shift ;;
    --sync) sync=yes; shift ;;
    --print-cost-hints) plan=$2; shift 2 ;;
    --price) price=$2; shift 2 ;;
    --repo) repo=$2; shift 2 ;;
    --ref) ref=$2; shift 2 ;;
    --skip-install) skip_install=yes; shift ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after -- (see --help)" ;;
  esac
done

cost_hints() { # PLAN.json PRICE: hours are those of the devices, without waiting and compiling
  python3 - "$@" <<'END'
import json, sys

plan, price = json.load(open(sys.argv[1], encoding="utf-8")), sys.argv[2]
total = 0.0
for stage in ("train", "encode"):
    hours = plan[stage]["hours"]
    if hours is None:
        print(f"{stage}: the plan gives no hours on {plan['devices']} x {plan['chip']['name']}")
        continue
    total += hours * plan["devices"]
    costs = f", {hours * plan['devices'] * float(price):.2f} at {price} an hour" if price else ""
    print(f"{stage}: {hours:.2f} h on {plan['devices']} x {plan['chip']['name']},"
          f" {hours * plan['devices']:.1f} device-hours{costs}")
costs = f", {total * float(price):.2f} at {price} an hour of a device" if price else ""
print(f"together: {total:.1f} device-hours{costs}; compiling, waiting and restarts come on top")
END
}

[[ -z $price || -n $plan ]] || die "--price belongs to --print-cost-hints PLAN.json"
[[ -z $price || $price =~ ^[0-9]{1,6}(\.[0-9]{1,6})?$ ]] || die "--price: '$price' is no number"
if [[ -n $plan ]]; then
  [[ -r $plan ]] || die "--print-cost-hints: no file $plan; dpr plan --json $plan writes it"
  cost_hints "$plan" "$price" 2>/dev/null ||
    die "--print-cost-hints: $plan is not what dpr plan --json writes"
  exit
fi
[[ -n $name ]] || die "--name is missing (see --help)"
[[ -n $zone ]] || die "--zone is missing (see --help)"
[[ -z $ref || -n $repo ]] || die "--ref belongs to --repo URL"
[[ -z $sync || -z $repo ]] || die "--sync sends this checkout, --repo takes another; give one"
[[ -n $type || -z $spot$runtime ]] || die "--spot and --runtime belong to --create TYPE"
[[ $restarts =~ ^[0-9]{1,5}$ ]] || die "--restarts: '$restarts' is no whole number"
case $type in # the software that Google names for each
  *' '*) die "--create: '$type' is no type, such as v5litepod-16" ;;
  v5litepod-*) default=v2-alpha-tpuv5-lite ;;
  v5p-*) default=v2-alpha-tpuv5 ;;
  v6e-*) default=v2-alpha-tpuv6e ;;
  *) default=tpu-ubuntu2204-base ;;
esac
runtime=${runtime:-$default}
(($#)) || die "no command after -- (see --help)"
[[ -n $dry_run ]] || type -P gcloud >/dev/null ||
  die "no gcloud on PATH; install the Google Cloud CLI and run 'gcloud auth login'" 1

place=("--zone=$zone")
if [[ -n $project ]]; then place+=("--project=$project"); fi
where=("--zone=$zone" "--worker=all" "${place[@]:1}")

step() { # print a command, and run it unless this is a dry run
  show "$@"
  if [[ -z $dry_run ]]; then "$@"; fi
}
on_all_workers() {
  step gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--command=set -e; $1"
}

# --- the TPU

say() { echo "launch/tpu_vm.sh: $1" >&2; }
queued() { echo gcloud compute tpus queued-resources "$1" "$name" "${place[@]}"; }

state() { # of the queued resource; empty where there is none
  local words
  read -ra words <<<"$(queued describe)"
  "${words[@]}" "--format=value(state.state)" 2>/dev/null || true
}

remove() {
  local words
  read -ra words <<<"$(queued delete)"
  step "${words[@]}" --force --quiet
}

fresh="" # a TPU that has nothing installed
ensure() { # that there is a TPU: the one of before, or a new one
  local now words
  read -ra words <<<"$(queued create)"
  words+=("--node-id=$name" "--accelerator-type=$type" "--runtime-version=$runtime")
  if [[ -n $spot ]]; then words+=(--spot); fi
  if [[ -n $dry_run ]]; then step "${words[@]}"; return; fi
  while :; do
    now=$(state)
    case $now in
      ACTIVE) return ;;
      "") fresh=yes; step "${words[@]}" ;;
      FAILED | SUSPENDED | SUSPENDING) say "the TPU is $now"; remove ;;
      *) say "waiting for the TPU, which is $now" ;;
    esac
    sleep "${TPU_VM_POLL_S:-20}"
  done
}

# --- the code

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tmp=""
trap 'if [[ -n $tmp ]]; then rm -rf "$tmp"; fi' EXIT

send() {
  local fetch
  if [[ -n $repo ]]; then
    # shellcheck disable=SC2016 # $HOME is the worker's
    fetch='mkdir -p "$HOME/dpr_jax" && cd "$HOME/dpr_jax" && git init -q && git fetch -q --depth 1'
    printf -v fetch '%s %q %q && git checkout -q --force --detach FETCH_HEAD' \
      "$fetch" "$repo" "${ref:-HEAD}"
    on_all_workers "$fetch"
    return
  fi
  if [[ -z $tmp ]]; then tmp=$(mktemp -d); fi
  if [[ -n $sync ]]; then
    git -C "$root" ls-files -z --cached --others --exclude-standard --deduplicate >"$tmp/files"
    # files that git knows and that are not there were deleted
    step tar -C "$root" --null --files-from="$tmp/files" --ignore-failed-read \
      --warning=no-failed-read -czf "$tmp/dpr_jax.tar.gz"
  else
    if [[ -n $(git -C "$root" status --porcelain --untracked-files=no) ]]; then
      say "uncommitted changes are not sent (--sync does)"
    fi
    step git -C "$root" archive --format=tar.gz --output="$tmp/dpr_jax.tar.gz" HEAD
  fi
  step gcloud compute tpus tpu-vm scp "$tmp/dpr_jax.tar.gz" "$name:dpr_jax.tar.gz" "${where[@]}"
  # shellcheck disable=SC2016 # $HOME is the worker's
  on_all_workers 'mkdir -p "$HOME/dpr_jax" && tar -xzf dpr_jax.tar.gz -C "$HOME/dpr_jax"'
}

install() { # the image's Python is 3.10 on the usual runtimes, so uv brings one
  # shellcheck disable=SC2016
  local steps='export PATH="$HOME/.local/bin:$PATH"; uv --version >/dev/null 2>&1 ||'
  # shellcheck disable=SC2016
  steps+=' python3 -m pip install --user --quiet uv; cd "$HOME/dpr_jax"; uv python install --quiet'
  # shellcheck disable=SC2016
  steps+=' 3.12; make install EXTRAS=tpu,gcs PYTHON="$(uv python find --system 3.12)"'
  on_all_workers "$steps"
}

# --- run. DPR_COORDINATOR=auto: each worker asks its machine for the others. Naming both platforms
# makes it an error, not a slow run on the CPU, when the TPU does not start.

printf -v command '%q ' "$@"
run="cd \"\$HOME/dpr_jax\"; mkdir -p logs; set -o pipefail;"
run+=" export PATH=\"\$HOME/dpr_jax/.venv/bin:\$PATH\" JAX_PLATFORMS=tpu,cpu DPR_COORDINATOR=auto;"
run+=" { ${command% }; } 2>&1 | tee -a logs/tpu_vm.log"

code=0 sent=""
for ((try = 0; ; try++)); do
  if [[ -n $type ]]; then ensure; fi
  code=0
  if [[ -n $fresh || (-z $skip_install && -z $sent) ]]; then { send && install; } || code=$?; fi
  if ((!code)); then
    sent=yes fresh=""
    on_all_workers "$run" || code=$?
  fi
  if ((!code)) || [[ -z $type ]] || ((try >= restarts)); then break; fi
  # bad input and bugs stay; what was told to stop, or lost its TPU or connection, goes on from
  # where it was
  if ((code != 75 && code != 255)) && [[ $(state) == ACTIVE ]]; then break; fi
  say "ended with $code; starting it again ($((try + 1)) of $restarts)"
done
if [[ -n $delete ]]; then remove; fi
exit "$code"
