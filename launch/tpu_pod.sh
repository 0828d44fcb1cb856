#!/usr/bin/env bash
# Runs a training on every host of a Cloud TPU slice:
#
#   launch/tpu_pod.sh NAME ZONE --config=configs/stage1.py --workdir=/mnt/runs/stage1
#
# The slice (a TPU VM named NAME) must exist. The workdir and the recipe's data are on a file system that
# every host mounts (Filestore, or a bucket through gcsfuse). The hosts find each other (--tpu_vms).
# Run it again to continue after a preemption: it fetches the same commit and resumes.
set -euo pipefail

if [[ $# -lt 3 ]]; then
    sed -n '2,8s/^# \{0,1\}//p' "$0"
    exit 2
fi
name=$1 zone=$2
shift 2

repository=$(git remote get-url origin)
commit=$(git rev-parse HEAD)
options=$(printf ' %q' "$@")

# A host keeps its checkout and environment, so a restart costs seconds.
gcloud compute tpus tpu-vm ssh "$name" --zone "$zone" --worker=all --command "
    set -e
    test -d onedc_jax_run || git clone --quiet '$repository' onedc_jax_run
    cd onedc_jax_run
    git fetch --quiet && git checkout --quiet $commit
    test -d .venv || python3 -m venv .venv
    .venv/bin/pip install --quiet 'jax[tpu]' -e '.[train]'
    exec .venv/bin/python launch/train.py --tpu_vms$options
"
