#!/usr/bin/env bash
# Trains on a TPU host of Compute Engine (its own instances; Cloud TPU's queued resources are legacy):
#   PROJECT=… ZONE=… MACHINE=… IMAGE=… launch/tpu_vm.sh NAME -- --gin_file=scratch_r50.gin \
#     --gin_param="MODEL_DIR='gs://bucket/runs/r50'" --gin_param="DATA_DIR='gs://bucket/coco'"
# Makes the instance if it is not there, runs the container IMAGE on it, starts it again after exit
# code 75, and deletes the instance at the end (KEEP=1 keeps it). DRY_RUN=1 prints the commands.
# MACHINE is a host that has all chips of its slice, such as ct6e-standard-4t.
set -euo pipefail

usage() {
  sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
  exit 1
}

if [ $# -lt 3 ] || [ "$2" != "--" ]; then usage; fi
name=$1
shift 2
for variable in PROJECT ZONE MACHINE IMAGE; do
  if [ -z "${!variable:-}" ]; then
    echo "error: set $variable" >&2
    exit 1
  fi
done
case " $* " in
  *"MODEL_DIR='gs://"* | *'MODEL_DIR="gs://'*) ;;
  *)
    echo "error: MODEL_DIR must be on gs://: the instance's disk is lost with it" >&2
    exit 1
    ;;
esac

again=75 # rethink_tf/exit_codes.py
where=(--project="$PROJECT" --zone="$ZONE")

run() {
  if [ -n "${DRY_RUN:-}" ]; then
    printf '%q ' "$@"
    printf '\n'
  else
    "$@"
  fi
}

create() {
  if [ -z "${DRY_RUN:-}" ] && gcloud compute instances describe "$name" "${where[@]}" \
    --format='value(name)' >/dev/null 2>&1; then
    return
  fi
  run gcloud compute instances create "$name" "${where[@]}" \
    --machine-type="$MACHINE" \
    --image-family="${IMAGE_FAMILY:-ubuntu-accel-2204-amd64-tpu-v5e-v5p-v6e}" \
    --image-project="${IMAGE_PROJECT:-ubuntu-os-accelerator-images}" \
    --metadata=startup-script='command -v docker || { apt-get update; apt-get install -y docker.io; }' \
    --boot-disk-size=200GB --scopes=cloud-platform --maintenance-policy=TERMINATE \
    --provisioning-model="${PROVISIONING:-STANDARD}"
}

train() {
  local command
  # --privileged and the host's network: the container drives the TPU's devices.
  command=$(printf '%q ' sudo docker run --rm --privileged --network=host "$IMAGE" \
    python -m rethink_tf.train "--gin_param=make_strategy.name='tpu'" "$@")
  run gcloud compute ssh "$name" "${where[@]}" \
    --command="until sudo docker info >/dev/null 2>&1; do sleep 5; done; $command"
}

# Called by the trap.
# shellcheck disable=SC2329,SC2317
delete() {
  if [ -z "${KEEP:-}" ]; then
    run gcloud compute instances delete "$name" "${where[@]}" --quiet
  fi
}
trap delete EXIT

for attempt in $(seq 0 "${RESTARTS:-20}"); do
  create
  status=0
  train "$@" || status=$?
  # 255 is ssh's own: the connection is lost, as when the instance is taken away.
  if [ "$status" -ne "$again" ] && [ "$status" -ne 255 ] && [ "$status" -ne 137 ]; then
    exit "$status"
  fi
  echo "tpu_vm.sh: ended with $status; start $((attempt + 1)) of ${RESTARTS:-20} again" >&2
  sleep "${BACKOFF:-10}"
done
exit "$again"
