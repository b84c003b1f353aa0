#!/usr/bin/env bash
# Copy this source tree to every host of a Cloud TPU VM, install it there and train; the same command goes on.
#
#   TPU=my-tpu ZONE=us-central2-b launch/tpu_vm.sh
#   DRY_RUN=1 launch/tpu_vm.sh                      prints what would run
set -euo pipefail

TPU="${TPU:-ssad-jax}"
ZONE="${ZONE:-us-central2-b}"
CONFIG="${CONFIG:-configs/openstack.py}"
WORKDIR="${WORKDIR:-/mnt/data/runs/openstack}" # on a disk or bucket that all hosts mount
PREPARED_DIR="${PREPARED_DIR:-/mnt/data/prepared/openstack}" # likewise
REMOTE="${REMOTE:-ssad_jax_source}" # folder in the remote home
DRY_RUN="${DRY_RUN:-0}"

cd "$(dirname "${BASH_SOURCE[0]}")/.."
archive="${TMPDIR:-/tmp}/ssad_jax-$$.tar.gz"

run() {
    if [[ "$DRY_RUN" == "1" ]]; then
        printf '%q ' "$@"
        echo
    else
        "$@"
    fi
}

train=(SSAD_DISTRIBUTED=auto python3 -m ssad_jax.main "--config=$CONFIG" "--workdir=$WORKDIR"
    "--config.data.prepared_dir=$PREPARED_DIR" "$@")
remote="mkdir -p $REMOTE && tar -xzf $REMOTE.tar.gz -C $REMOTE && cd $REMOTE"
remote+=" && python3 -m pip install -q -e '.[tpu]' && $(printf '%q ' "${train[@]}")"

trap 'rm -f "$archive"' EXIT
run git archive --format=tar.gz --output="$archive" HEAD
run gcloud compute tpus tpu-vm scp "$archive" "$TPU:$REMOTE.tar.gz" --zone="$ZONE" --worker=all
run gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$remote"
