#!/usr/bin/env bash
# Google Kubernetes Engine, on TPU slices or on GPU nodes: run a dpr command as one Indexed Job,
# one pod per host; on several slices or GPU nodes as one JobSet.
#
# Run it from your own machine, with kubectl on the cluster. Before: an image with dpr on its PATH
# (this repository installed with the extra tpu or gpu; launch/docker/), and a claim of storage
# that all pods may write (ReadWriteMany, such as Filestore). A JobSet needs its controller on the
# cluster (https://jobset.sigs.k8s.io). Cost: the nodes while the job runs, and longer where the
# node pool does not shrink by itself.
set -euo pipefail

usage() {
  cat <<'END'
launch/gke.sh --name NAME --image IMAGE --claim CLAIM --tpu TYPE --topology TxT [options] -- \
  COMMAND...
launch/gke.sh --name NAME --image IMAGE --claim CLAIM --gpu TYPE --gpus G [--hosts N] [options] -- \
  COMMAND...

  --name NAME        of the job, and of the headless service by which its pods find each other
  --image IMAGE      holds dpr, on its PATH
  --claim CLAIM      PersistentVolumeClaim of the storage with configs, data and work directory
  --mount PATH       where the pods see it; COMMAND runs there (default: /mnt/shared)
  --tpu TYPE         label gke-tpu-accelerator of the nodes, such as tpu-v5-lite-podslice or
                     tpu-v6e-slice
  --topology TxT     of the slice in chips, such as 4x4 or 2x2x4
  --chips C          chips of each host (default: 4)
  --slices S         number of such slices, each a node pool of its own (default: 1); between them
                     goes the data center's network
  --gpu TYPE         label gke-accelerator of the nodes, such as nvidia-h100-80gb
  --gpus G           GPUs of each host
  --hosts N          number of hosts with GPUs (default: 1)
  --node-pool POOL   run in this one; needed where several slices have the same type and topology,
                     or pods may be spread over two
  --namespace NS     (default: kubectl's)
  --grace SECONDS    from the request to stop to the kill; a step and a save have to fit in
                     (default: 120)
  --retries R        how often the run may crash (default: 3)
  --dry-run          print the manifest
  -h, --help         this text

What happens when a pod ends:
  - Told to stop (drained or preempted node), training on all hosts saves and ends with 75: every
    pod is replaced, the run goes on, and nothing is counted. Only training listens. Spot VMs may
    give 15 seconds, whatever --grace says.
  - With 2 (bad input; on several hosts also an error of process 0 while the others wait for it),
    the job fails at once, and its other pods are stopped.
  - When one crashes or its node is lost, the others notice at once and end with 75. All are
    replaced, wait until all can be found, and go on from the last checkpoint. After more than R
    crashed pods (of a slice) the job fails.
  - A host that crashes after others have ended well waits for them in vain. Delete the job and
    start it again: dpr finds what is done. So too after any failure; `kubectl delete job NAME` (or
    jobset) also stops a running job, after a save.

Example, a v5e slice of 16 chips (4 hosts):
  launch/gke.sh --name nq --image IMAGE --claim shared --tpu tpu-v5-lite-podslice \
    --topology 4x4 -- dpr pipeline --workdir runs/nq --from train --until encode
Another way to the same: xpk workload create --command "dpr ..."
(https://github.com/AI-Hypercomputer/xpk), which makes clusters too; it does not know that 75 means
again and 2 never. Only train and encode (and retrieve, over an exact index) use all accelerators.
Run the rest elsewhere on the same work directory, before with --until mine and after with --from
index (docs/scaling.md).
END
}

die() { echo "launch/gke.sh: $1" >&2; exit "${2:-2}"; }
need_count() {
  [[ $2 =~ ^[1-9][0-9]{0,4}$ ]] ||
    die "$1: '$2' is not a positive whole number (see --help)"
}

# --- arguments

name="" image="" claim="" mount=/mnt/shared pool="" namespace="" grace_s=120 retries=3 dry_run=""
tpu="" topology="" chips="" slices=1 gpu="" gpus="" hosts=""
while (($#)); do
  case $1 in
    --name | --image | --claim | --mount | --tpu | --topology | --chips | --slices | --gpu | \
      --gpus | --hosts | --node-pool | --namespace | --grace | --retries)
      [[ $# -ge 2 && $2 != -* && -n $2 ]] || die "$1 needs a value (see --help)" ;;&
    --name) name=$2; shift 2 ;;
    --image) image=$2; shift 2 ;;
    --claim) claim=$2; shift 2 ;;
    --mount) mount=$2; shift 2 ;;
    --tpu) tpu=$2; shift 2 ;;
    --topology) topology=$2; shift 2 ;;
    --chips) chips=$2; shift 2 ;;
    --slices) slices=$2; shift 2 ;;
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
[[ $name =~ ^[a-z]([a-z0-9-]{0,50}[a-z0-9])?$ ]] ||
  die "--name: '$name' has to be lower-case letters, digits and -, at most 52, a letter first"
[[ -n $image ]] || die "--image is missing (see --help)"
[[ -n $claim ]] || die "--claim is missing (see --help)"
[[ $mount == /?* ]] || die "--mount: '$mount' is no absolute path"
need_count --grace "$grace_s"
need_count --slices "$slices"
[[ $retries == 0 ]] || need_count --retries "$retries"
(($#)) || die "no command after -- (see --help)"

if [[ -n $tpu && -z $gpu$gpus$hosts ]]; then
  [[ $topology =~ ^[1-9][0-9]{0,2}(x[1-9][0-9]{0,2}){1,2}$ ]] ||
    die "--topology: '$topology' is not of the form 4x4 or 2x2x4"
  need_count --chips "${chips:=4}"
  total=$((${topology//x/*}))
  ((total % chips == 0)) ||
    die "--chips: $total chips of topology $topology cannot be split over hosts of $chips"
  hosts=$((total / chips)) platform=tpu resource="google.com/tpu" count=$chips
  selector=("cloud.google.com/gke-tpu-accelerator" "$tpu")
  selector+=("cloud.google.com/gke-tpu-topology" "$topology")
elif [[ -n $gpu && -z $tpu$topology$chips && $slices == 1 ]]; then
  need_count --gpus "$gpus"
  need_count --hosts "${hosts:=1}"
  platform=cuda resource="nvidia.com/gpu" count=$gpus
  selector=("cloud.google.com/gke-accelerator" "$gpu")
else
  die "name either --tpu TYPE --topology TxT [--chips C] or --gpu TYPE --gpus G [--hosts N]"
fi
# processes of the run, and how it is made: a JobSet has a network for its pods, and places each
# slice in one node pool
all=$((slices * hosts)) kind=job
if ((slices > 1)) || [[ -n $gpu && $hosts -gt 1 ]]; then kind=jobset; fi
((${#name} <= 40)) || [[ $kind == job ]] ||
  die "--name: '$name' has to be at most 40 long where it names a JobSet"
((slices == 1)) || [[ -z $pool ]] || die "--node-pool: $slices slices lie in as many node pools"
if [[ -n $pool ]]; then selector+=("cloud.google.com/gke-nodepool" "$pool"); fi

# --- the manifest

quoted() { # TEXT as a string of YAML
  local text=${1//\\/\\\\}
  text=${text//\"/\\\"} text=${text//$'\n'/\\n} text=${text//$'\t'/\\t}
  printf '"%s"' "$text"
}

variable() { printf '          - {name: %s, value: %s}\n' "$1" "$(quoted "$2")"; }

# SPACES: lines of stdin, the empty ones as they are
indented() { sed "s/^./$(printf '%*s' "$1" '')&/"; }

pods_of_slice() { # NAME of pod 0, without its number; JobSet and Job name them so
  if [[ $kind == jobset ]]; then echo "$name-slice-$1"; else echo "$name"; fi
}

from_annotation() { # VARIABLE ANNOTATION
  local path="metadata.annotations['$2']"
  printf '          - {name: %s, valueFrom: {fieldRef: {fieldPath: "%s"}}}\n' "$1" "$path"
}

job_spec() { # COMMAND: of an Indexed Job, one pod per host
  local i word names
  cat <<END
completionMode: Indexed
completions: $hosts
parallelism: $hosts
backoffLimit: $retries # of crashed pods
podReplacementPolicy: Failed # never two pods with one number
podFailurePolicy:
  rules: # the first that fits; what fits none counts towards backoffLimit
    - action: FailJob # bad input stays bad
      onExitCodes: {containerName: dpr, operator: In, values: [2]}
    - action: Ignore # stopped by SIGTERM, and saved; or another process is lost
      onExitCodes: {containerName: dpr, operator: In, values: [75]}
    - action: Ignore # evicted, preempted, or its node is gone
      onPodConditions: [{type: DisruptionTarget, status: "True"}]
template:
  spec:
    restartPolicy: Never # podFailurePolicy asks for it
    terminationGracePeriodSeconds: $grace_s
END
  if [[ $kind == job ]] && ((hosts > 1)); then echo "    subdomain: $name"; fi
  if ((slices > 1)); then # GKE's advice for several slices
    printf '    hostNetwork: true\n    dnsPolicy: ClusterFirstWithHostNet\n'
  fi
  echo '    nodeSelector:'
  for ((i = 0; i < ${#selector[@]}; i += 2)); do
    printf '      %s: %s\n' "${selector[i]}" "$(quoted "${selector[i + 1]}")"
  done
  if ((all > 1)); then
    names=""
    for ((i = 0; i < slices; i++)); do names+=" $(pods_of_slice $i)"; done
    # nodes and images of some may take longer than processes wait for each other
    cat <<END
    initContainers:
      - name: wait-for-all
        image: $(quoted "$image")
        command:
          - sh
          - -c
          - "trap 'exit 1' TERM;
            for n in$names; do for i in \$\$(seq 0 $((hosts - 1))); do
            until getent hosts \$\$n-\$\$i.$name; do sleep 2; done; done; done"
END
  fi
  cat <<END
    containers:
      - name: dpr
        image: $(quoted "$image")
        workingDir: $(quoted "$mount")
        command:
END
  if ((slices > 1)); then # its number in the run, from those of slice and host
    set -- sh -c "DPR_PROCESS_ID=\$((MEGASCALE_SLICE_ID * $hosts + DPR_HOST)) exec \"\$@\"" sh "$@"
  fi
  for word; do # Kubernetes replaces $(NAME), and takes $$ for $
    printf '          - %s\n' "$(quoted "${word//\$/\$\$}")"
  done
  echo '        env:'
  # JAX would run on the CPU, slowly and with no more than a warning, where the accelerator does
  # not start.
  variable JAX_PLATFORMS "$platform,cpu"
  # where GKE puts the driver
  if [[ -n $gpu ]]; then
    variable LD_LIBRARY_PATH /usr/local/nvidia/lib64
  fi
  if ((all > 1)); then
    variable DPR_COORDINATOR "$(pods_of_slice 0)-0.$name:8476"
    variable DPR_NUM_PROCESSES "$all"
    variable DPR_JOIN_S 300
    # what JOB_COMPLETION_INDEX holds; but that is added behind this list, where
    # $(JOB_COMPLETION_INDEX) is not known yet
    word=DPR_PROCESS_ID
    if ((slices > 1)); then
      word=DPR_HOST
      variable MEGASCALE_NUM_SLICES "$slices"
      variable MEGASCALE_COORDINATOR_ADDRESS "$(pods_of_slice 0)-0.$name"
      from_annotation MEGASCALE_SLICE_ID jobset.sigs.k8s.io/job-index
    fi
    from_annotation $word batch.kubernetes.io/job-completion-index
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

manifest() { # COMMAND
  if [[ $kind == jobset ]]; then
    printf 'apiVersion: jobset.x-k8s.io/v1alpha2\nkind: JobSet\nmetadata:\n  name: %s\n' "$name"
    if ((slices > 1)); then
      printf '  annotations:\n    alpha.jobset.sigs.k8s.io/exclusive-topology: %s\n' \
        cloud.google.com/gke-nodepool
    fi
    # A child job fails with 2, or after too many crashes: the others cannot go on, and are stopped.
    cat <<END
spec:
  network: {enableDNSHostnames: true, publishNotReadyAddresses: true}
  failurePolicy: {maxRestarts: 0}
  replicatedJobs:
    - name: slice
      replicas: $slices
      template:
        spec:
END
    job_spec "$@" | indented 10
    return
  fi
  if ((hosts > 1)); then
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
  printf 'apiVersion: batch/v1\nkind: Job\nmetadata:\n  name: %s\nspec:\n' "$name"
  job_spec "$@" | indented 2
}

if [[ -n $dry_run ]]; then manifest "$@"; exit; fi

# --- apply

type -P kubectl >/dev/null ||
  die "no kubectl on PATH; install it and run 'gcloud container clusters get-credentials'" 1
kubectl=(kubectl)
if [[ -n $namespace ]]; then kubectl+=("--namespace=$namespace"); fi
# a job is not run again by applying it again, and its pods cannot be changed
there=$("${kubectl[@]}" get "$kind" "$name" --ignore-not-found --output=name) ||
  die "kubectl does not reach the cluster, or that does not know a $kind" 1
[[ -z $there ]] ||
  die "there is a $kind $name; wait for it, or '${kubectl[*]} delete $kind $name' first" 1
manifest "$@" | "${kubectl[@]}" apply -f -
label=job-name=$name
if [[ $kind == jobset ]]; then
  label=jobset.sigs.k8s.io/jobset-name=$name,jobset.sigs.k8s.io/job-index=0
fi
echo "watch:  ${kubectl[*]} get pods --selector=${label%,*}"
label+=,batch.kubernetes.io/job-completion-index=0
echo "follow: ${kubectl[*]} logs --follow --selector=$label"
