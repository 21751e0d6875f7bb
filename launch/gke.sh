#!/usr/bin/env bash
# Google Kubernetes Engine, on a TPU slice or on GPU nodes: run a dpr command as one Indexed Job, one pod per host.
#
# Run it from your own machine, with kubectl on the cluster. Before: an image with dpr on its PATH (this repository installed
# with the extra tpu or gpu), and a claim of storage that all pods may write (ReadWriteMany, such as Filestore). Cost: the nodes
# while the job runs, and longer where the node pool does not shrink by itself.
set -euo pipefail

usage() {
  cat <<'END'
launch/gke.sh --name NAME --image IMAGE --claim CLAIM --tpu TYPE --topology TxT [options] -- COMMAND...
launch/gke.sh --name NAME --image IMAGE --claim CLAIM --gpu TYPE --gpus G [--hosts N] [options] -- COMMAND...

  --name NAME        of the job, and of the headless service by which its pods find each other
  --image IMAGE      holds dpr, on its PATH
  --claim CLAIM      PersistentVolumeClaim of the storage with configs, data and work directory
  --mount PATH       where the pods see it; COMMAND runs there (default: /mnt/shared)
  --tpu TYPE         label gke-tpu-accelerator of the nodes, such as tpu-v5-lite-podslice or tpu-v6e-slice
  --topology TxT     of the slice in chips, such as 4x4 or 2x2x4
  --chips C          chips of each host (default: 4)
  --gpu TYPE         label gke-accelerator of the nodes, such as nvidia-h100-80gb
  --gpus G           GPUs of each host
  --hosts N          number of hosts with GPUs (default: 1)
  --node-pool POOL   run in this one; needed where several slices have the same type and topology, or pods may be spread over two
  --namespace NS     (default: kubectl's)
  --grace SECONDS    from the request to stop to the kill; a step and a save have to fit in (default: 120)
  --retries R        how often the run may crash (default: 3)
  --dry-run          print the manifest
  -h, --help         this text

What happens when a pod ends:
  - Told to stop (drained or preempted node), training on all hosts saves and ends with 75: every pod is replaced, the run goes
    on, and nothing is counted. Only training listens. Spot VMs may give 15 seconds, whatever --grace says.
  - With 2 (bad input; on several hosts also an error of process 0 while the others wait for it), the job fails at once, and its
    other pods are stopped.
  - When one crashes or its node is lost, the others cannot go on: JAX ends them within minutes. All are replaced, wait until all
    can be found, and go on from the last checkpoint. Kubernetes counts pods, not crashes, and a replacement may come while the
    others still end, and crash too. So a job of N > 1 hosts fails after more than 2 x N x R crashed pods, of 1 host after R.
  - A host that crashes after others have ended well waits for them in vain. Delete the job and start it again: dpr finds what is
    done. So too after any failure; `kubectl delete job NAME` also stops a running job, after a save.

Example, a v5e slice of 16 chips (4 hosts):
  launch/gke.sh --name nq --image IMAGE --claim shared --tpu tpu-v5-lite-podslice --topology 4x4 -- \
    dpr pipeline --workdir runs/nq --from train --until encode
Only train and encode use all accelerators. Run the rest elsewhere on the same work directory, before
with --until mine and after with --from index (docs/scaling.md).
END
}

die() { echo "launch/gke.sh: $1" >&2; exit "${2:-2}"; }
need_count() { [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] || die "$1: '$2' is not a positive whole number (see --help)"; }

# --- arguments

name="" image="" claim="" mount=/mnt/shared tpu="" topology="" chips="" gpu="" gpus="" hosts="" pool="" namespace="" grace_s=120 retries=3 dry_run=""
while (($#)); do
  case $1 in
    --name | --image | --claim | --mount | --tpu | --topology | --chips | --gpu | --gpus | --hosts | --node-pool | --namespace | --grace | --retries)
      [[ $# -ge 2 && $2 != -* && -n $2 ]] || die "$1 needs a value (see --help)" ;;&
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --claim) claim=$2; shift 2 ;;
    --mount) mount=$2; shift 2 ;;
    --tpu) tpu=$2; shift 2 ;;
    --topology) topology=$2; shift 2 ;;
    --chips) chips=$2; shift 2 ;;
    --gpu) gpu=$2; shift 2 ;;
    --gpus) gpus=$2; shift 2 ;;
    --hosts) hosts=$2; shift 2 ;;
    --node-pool) pool=$2; shift 2 ;;
    --namespace) namespace=$2; shift 2 ;;
    --grace) grace_s=$2; shift 2 ;;
    --retries) retries=$2; shift 2 ;;
    --dry-run) dry_run=yes; shift ;;
    -h | --help) usage; exit ;;
    --) shift; break ;;
    *) die "unknown argument '$1'; the command stands after -- (see --help)" ;;
  esac
done
[[ -n $name ]] || die "--name is missing (see --help)"
# with the number of a pod behind it, it is a host name
[[ $name =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] || die "--name: '$name' has to be lower-case letters, digits and -, at most 52, a letter first"
[[ -n $image ]] || die "--image is missing (see --help)"
[[ -n $claim ]] || die "--claim is missing (see --help)"
[[ $mount == /?* ]] || die "--mount: '$mount' is no absolute path"
need_count --grace "$grace_s"
[[ $retries == 0 ]] || need_count --retries "$retries"
(($#)) || die "no command after -- (see --help)"

if [[ -n $tpu && -z $gpu$gpus$hosts ]]; then
  [[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] || die "--topology: '$topology' is not of the form 4x4 or 2x2x4"
  need_count --chips "${chips:=4}"
  total=$((${topology//x/*}))
  ((total % chips == 0)) || die "--chips: $total chips of topology $topology cannot be split over hosts of $chips"
  hosts=$((total / chips)) platform=tpu resource="google.com/tpu" count=$chips
  selector=("cloud.google.com/gke-tpu-accelerator" "$tpu" "cloud.google.com/gke-tpu-topology" "$topology")
elif [[ -n $gpu && -z $tpu$topology$chips ]]; then
  need_count --gpus "$gpus"
  need_count --hosts "${hosts:=1}"
  platform=cuda resource="nvidia.com/gpu" count=$gpus
  selector=("cloud.google.com/gke-accelerator" "$gpu")
else
  die "name either --tpu TYPE --topology TxT [--chips C] or --gpu TYPE --gpus G [--hosts N]"
fi
if [[ -n $pool ]]; then selector+=("cloud.google.com/gke-nodepool" "$pool"); fi

# --- the manifest

quoted() { # TEXT as a string of YAML
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

variable() { printf '            - {name: %s, value: %s}\n' "$1" "$(quoted "$2")"; }

manifest() {
  local i word crashes=$retries
  if ((hosts > 1)); then
    crashes=$((2 * hosts * retries))
    # A name for each pod, from its start on: they look for each other before any of them is ready.
    cat <<END
apiVersion: v1
kind: Service
metadata:
  name: $name
spec:
  clusterIP: None
  publishNotReadyAddresses: true
  selector: {job-name: $name}
---
END
  fi
  cat <<END
apiVersion: batch/v1
kind: Job
metadata:
  name: $name
spec:
  completionMode: Indexed
  completions: $hosts
  parallelism: $hosts
  backoffLimit: $crashes
  podReplacementPolicy: Failed # never two pods with one number
  podFailurePolicy:
    rules: # the first that fits; what fits none counts towards backoffLimit
      - action: FailJob # bad input stays bad
        onExitCodes: {containerName: dpr, operator: In, values: [2]}
      - action: Ignore # stopped by SIGTERM, and saved
        onExitCodes: {containerName: dpr, operator: In, values: [75]}
      - action: Ignore # evicted, preempted, or its node is gone
        onPodConditions: [{type: DisruptionTarget, status: "True"}]
  template:
    spec:
      restartPolicy: Never # podFailurePolicy asks for it
      terminationGracePeriodSeconds: $grace_s
END
  if ((hosts > 1)); then echo "      subdomain: $name"; fi
  echo '      nodeSelector:'
  for ((i = 0; i < ${#selector[@]}; i += 2)); do
    printf '        %s: %s\n' "${selector[i]}" "$(quoted "${selector[i + 1]}")"
  done
  if ((hosts > 1)); then
    # JAX waits five minutes for the others, and nodes and images may take longer.
    cat <<END
      initContainers:
        - name: wait-for-all
          image: $(quoted "$image")
          command: [sh, -c, "trap 'exit 1' TERM; for i in \$\$(seq 0 $((hosts - 1))); do until getent hosts $name-\$i.$name; do sleep 2; done; done"]
END
  fi
  cat <<END
      containers:
        - name: dpr
          image: $(quoted "$image")
          workingDir: $(quoted "$mount")
          command:
END
  for word; do # Kubernetes replaces $(NAME), and takes $$ for $
    printf '            - %s\n' "$(quoted "${word//\$/\$\$}")"
  done
  echo '          env:'
  # JAX would run on the CPU, slowly and with no more than a warning, where the accelerator does not start.
  variable JAX_PLATFORMS "$platform,cpu"
  if [[ -n $gpu ]]; then variable LD_LIBRARY_PATH /usr/local/nvidia/lib64; fi # where GKE puts the driver
  if ((hosts > 1)); then
    variable DPR_COORDINATOR "$name-0.$name:8476"
    variable DPR_NUM_PROCESSES "$hosts"
    # what JOB_COMPLETION_INDEX holds; but that is added behind this list, where $(JOB_COMPLETION_INDEX) is not known yet
    cat <<END
            - name: DPR_PROCESS_ID
              valueFrom: {fieldRef: {fieldPath: "metadata.annotations['batch.kubernetes.io/job-completion-index']"}}
END
  fi
  cat <<END
          resources:
            requests: {$resource: $count}
            limits: {$resource: $count}
          volumeMounts:
            - {name: shared, mountPath: $(quoted "$mount")}
      volumes:
        - name: shared
          persistentVolumeClaim: {claimName: $(quoted "$claim")}
END
}

if [[ -n $dry_run ]]; then manifest "$@"; exit; fi

# --- apply

type -P kubectl >/dev/null || die "no kubectl on PATH; install it and run 'gcloud container clusters get-credentials'" 1
kubectl=(kubectl)
if [[ -n $namespace ]]; then kubectl+=("--namespace=$namespace"); fi
# a job is not run again by applying it again, and its pods cannot be changed
there=$("${kubectl[@]}" get job "$name" --ignore-not-found --output=name) || die "kubectl does not reach the cluster" 1
[[ -z $there ]] || die "there is a job $name; wait for it, or '${kubectl[*]} delete job $name' first" 1
manifest "$@" | "${kubectl[@]}" apply -f -
echo "watch:  ${kubectl[*]} get pods --selector=job-name=$name"
echo "follow: ${kubectl[*]} logs --follow --selector=job-name=$name,batch.kubernetes.io/job-completion-index=0"
