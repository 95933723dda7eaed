#!/usr/bin/env bash
# Tests on several processes: GPUs by NCCL, CPUs by gloo where there is no GPU.
#   tools/dist_test.sh CONFIG CHECKPOINT PROCESSES [flags of tools/test.py]
# On several machines, on each: NNODES=2 NODE_RANK=0 MASTER_ADDR=first-machine PORT=29500 tools/dist_test.sh …
set -euo pipefail
if [ $# -lt 3 ]; then
    sed -n '2,4s/^# \?//p' "$0" >&2
    exit 2
fi
tools=$(cd "$(dirname "$0")" && pwd)
export PYTHONPATH="$tools/..${PYTHONPATH:+:$PYTHONPATH}"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
python=${PYTHON:-python}
"$python" "$tools/test.py" "$1" "$2" "${@:4}" --check  # one process says what is missing, before others start
exec "$python" "$tools/dist_run.py" \
    --nnodes="${NNODES:-1}" \
    --node_rank="${NODE_RANK:-0}" \
    --master_addr="${MASTER_ADDR:-127.0.0.1}" \
    --master_port="${PORT:-29500}" \
    --nproc_per_node="$3" \
    "$tools/test.py" "$1" "$2" --launcher pytorch "${@:4}"
