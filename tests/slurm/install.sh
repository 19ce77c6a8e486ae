#!/usr/bin/env bash
# Makes sure that SLURM is there, from Debian's packages; where that is impossible, one line says why (status 1).
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin
packages=(slurmctld slurmd slurm-client munge)

there() {
  local program
  for program in munged slurmctld slurmd sbatch srun scontrol; do
    command -v "$program" >/dev/null || return 1
  done
}

there && exit 0
if ((EUID != 0)) || ! command -v apt-get >/dev/null; then
  echo "needs ${packages[*]}, which only root can install, with apt-get"
  exit 1
fi
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
trap 'rm -f "$log"' EXIT
if ! { apt-get update && apt-get install --yes --no-install-recommends "${packages[@]}"; } >"$log" 2>&1; then
  echo "apt-get cannot install ${packages[*]}: $(tail --lines=1 "$log")"
  exit 1
fi
