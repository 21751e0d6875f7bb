#!/usr/bin/env bash
# Several dpr processes on this machine, joined as one cluster: what several hosts do, tried on one.
#
# For tests and for debugging what only several processes show. One process already drives all
# accelerators of a machine: for real runs on one machine use plain `dpr`. Cost: N processes share
# this machine's cores and memory.
set -euo pipefail

usage() {
  cat <<'END'
launch/local.sh -n N [options] -- COMMAND...

Starts COMMAND N times with DPR_COORDINATOR, DPR_NUM_PROCESSES and DPR_PROCESS_ID set. Process 0
prints here; each process writes LOG_DIR/process-ID.log. When one fails the others are stopped. The
exit code is the first one that is not 0.

  -n N               number of processes
  --cpu-devices D    simulate D CPU devices in each process (otherwise: whatever accelerators there
                     are), with huge pages for large memory unless GLIBC_TUNABLES is set
  --log-dir DIR      where the logs go; those of an earlier run are replaced (default: logs)
  --port PORT        of the coordinator on 127.0.0.1 (default: a free one)
  --grace SECONDS    between asking processes to stop and killing them (default: 15)
  --dry-run          print what would be started
  -h, --help         this text

Example, 2 processes with 2 simulated devices each:
  launch/local.sh -n 2 --cpu-devices 2 -- dpr train configs/quickstart.py --workdir runs/two
END
}

die() { echo "launch/local.sh: $* (see --help)" >&2; exit 2; }

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

is_count() { [[ $1 =~ ^[1-9][0-9]{0,4}$ ]]; }

# --- arguments

processes="" cpu_devices="" log_dir=logs port="" grace_s=15 dry_run=""
while (($#)); do
  case $1 in
    -n | --cpu-devices | --log-dir | --port | --grace) [[ $# -ge 2 && $2 != -- ]] ||
      die "$1 needs a value" ;;&
    -n) processes=$2; shift 2 ;;
    --cpu-devices) cpu_devices=$2; shift 2 ;;
    --log-dir) log_dir=$2; shift 2 ;;
    --port) port=$2; shift 2 ;;
    --grace) grace_s=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after --" ;;
  esac
done
[[ -n $processes ]] || die "-n N is missing"
is_count "$processes" || die "-n: '$processes' is not a positive whole number"
[[ -z $cpu_devices ]] || is_count "$cpu_devices" ||
  die "--cpu-devices: '$cpu_devices' is not a positive whole number"
[[ -z $port ]] || is_count "$port" || die "--port: '$port' is not a port"
is_count "$grace_s" || die "--grace: '$grace_s' is not a positive whole number of seconds"
(($#)) || die "no command after --"

# --- environment of the processes

# below the range from which Linux takes ports for outgoing connections
while [[ -z $port ]]; do
  port=$((20000 + RANDOM % 12000))
  if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then port=""; fi
done
settings=("DPR_COORDINATOR=127.0.0.1:$port" "DPR_NUM_PROCESSES=$processes")
if [[ -n $cpu_devices ]]; then
  flags="${XLA_FLAGS:-} --xla_force_host_platform_device_count=$cpu_devices"
  # huge pages: without them a fifth of a training step on a CPU goes into page faults (docs/log.md)
  settings+=("JAX_PLATFORMS=cpu" "XLA_FLAGS=${flags# }")
  settings+=("GLIBC_TUNABLES=${GLIBC_TUNABLES-glibc.malloc.hugetlb=1}")
fi
# `dpr` out of an active environment, else out of the one that `make install` made
PATH="$PATH:$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)/.venv/bin"

if [[ -n $dry_run ]]; then
  for ((i = 0; i < processes; i++)); do
    show env "${settings[@]}" "DPR_PROCESS_ID=$i" "$@"
  done
  exit
fi

type -P -- "$1" >/dev/null ||
  die "no command '$1' on PATH or in .venv/bin; 'make install' makes dpr"

# --- start: each process leads a group of its own, so that what it starts is stopped with it

mkdir -p "$log_dir"
set -m
exec {terminal}> >(trap '' HUP INT TERM; exec tee -- "$log_dir/process-0.log")
tee_pid=$!
declare -A pid_of=() # of the processes still running
signal_all() {
  local pid
  for pid in "${pid_of[@]}"; do kill -s "$1" -- "-$pid" 2>/dev/null || true; done
}

exit_code=0 received="" deadline=""
# SIGNAL: ask every process to stop, once; the loop below kills what is left at the deadline
stop_all() {
  if [[ -z $deadline ]]; then deadline=$((SECONDS + grace_s)); else deadline=$SECONDS; fi
  signal_all "$1"
}
trap 'received=129; stop_all TERM' HUP
trap 'received=130; stop_all INT' INT
trap 'received=143; stop_all TERM' TERM

for ((i = 0; i < processes; i++)); do
  output=$terminal
  if ((i)); then exec {output}>"$log_dir/process-$i.log"; fi
  env "${settings[@]}" "DPR_PROCESS_ID=$i" "$@" </dev/null >&"$output" 2>&1 {terminal}>&- &
  pid_of[$i]=$!
  if ((i)); then exec {output}>&-; fi
done
if [[ -n $received ]]; then signal_all TERM; fi # for those started after the signal came

# --- wait

exec {errors}>&2 2>/dev/null # hides the shell's own notices of ended jobs
while ((${#pid_of[@]})); do
  for i in "${!pid_of[@]}"; do
    pid=${pid_of[$i]}
    if kill -0 "$pid" 2>/dev/null; then continue; fi
    code=0
    wait "$pid" || code=$?
    kill -s KILL -- "-$pid" 2>/dev/null || true # what it left behind
    unset "pid_of[$i]"
    if ((code)); then
      if [[ -z $deadline ]]; then
        echo "launch/local.sh: process $i ended with exit code $code, stopping the others;" \
          "see $log_dir/process-$i.log" >&"$errors"
        stop_all TERM
      fi
      if ((!exit_code)); then exit_code=$code; fi
    fi
  done
  if [[ -n $deadline ]] && ((SECONDS >= deadline)); then signal_all KILL; fi
  if ((${#pid_of[@]})); then sleep 0.2 & wait $! || true; fi
done

exec {terminal}>&-
wait "$tee_pid" || true
if ((!exit_code)) && [[ -n $received ]]; then exit_code=$received; fi
exit "$exit_code"
