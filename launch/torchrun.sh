#!/usr/bin/env bash
# distill train on several machines without a scheduler: run this on every one of them, with the same arguments but NODE.
#
#   launch/torchrun.sh NODES NODE HEAD DEVICES KEY=VALUE...
#   launch/torchrun.sh 2 0 10.0.0.1 8 trainer=zero3 hydra.run.dir=/shared/runs/one   # on 10.0.0.1
#   launch/torchrun.sh 2 1 10.0.0.1 8 trainer=zero3 hydra.run.dir=/shared/runs/one   # on the other machine
#
# HEAD is the address of node 0 as the others reach it; PORT=29500 and PYTHON=python can be set beside it.
set -euo pipefail
if (($# < 4)); then
  sed -n '2,/^set/s/^# \{0,1\}//p' "$0" >&2
  exit 2
fi
nodes=$1 node=$2 head=$3 devices=$4
shift 4
# Without it every rank would start as many threads as the machine has cores.
export OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}"
exec "${PYTHON:-python}" -m torch.distributed.run \
  --nnodes="$nodes" --node-rank="$node" --nproc-per-node="$devices" \
  --master-addr="$head" --master-port="${PORT:-29500}" \
  -m distill train resume=auto "$@"
