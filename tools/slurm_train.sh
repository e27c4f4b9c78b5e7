#!/usr/bin/env bash
# Train on a slurm cluster:
#   GPUS=16 GPUS_PER_NODE=8 bash tools/slurm_train.sh PARTITION JOB_NAME CONFIG [options of tools/train.py]
# CPUS_PER_TASK and SRUN_ARGS may be set too.
set -euo pipefail
[ $# -ge 3 ] || { echo "usage: $0 PARTITION JOB_NAME CONFIG [options of tools/train.py]" >&2; exit 2; }
GPUS=${GPUS:-8}
GPUS_PER_NODE=${GPUS_PER_NODE:-$((GPUS < 8 ? GPUS : 8))}
# shellcheck disable=SC2086
exec srun --partition="$1" --job-name="$2" ${SRUN_ARGS:-} \
    --gres="gpu:$GPUS_PER_NODE" --ntasks="$GPUS" --ntasks-per-node="$GPUS_PER_NODE" \
    --cpus-per-task="${CPUS_PER_TASK:-5}" --kill-on-bad-exit=1 \
    python -u "$(dirname "$0")/train.py" "$3" --launcher slurm "${@:4}"
