#!/usr/bin/env bash
# Made by places/render.py from places/resources.toml: change that, and make this again.
#SBATCH --job-name=gristmill-train
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=64
#SBATCH --mem=512G
#SBATCH --time=24:00:00
#SBATCH --output=%x-%j.log
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail
# One torchrun on each node. The same script again goes on from the newest checkpoint.
shared="${GRISTMILL_SHARED:?a folder that all nodes see}"
export PATH="$PWD/.venv/bin:$PATH"
head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
srun --kill-on-bad-exit=1 torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$SLURM_GPUS_ON_NODE" \
  --rdzv-backend c10d --rdzv-endpoint "$head:29500" --rdzv-id "$SLURM_JOB_ID" \
  -m gristmill.trainer run --config pipelines/training/sixteen_gpus.toml --mixture web40_code20 --data "$shared/shards" --output "$shared/runs/gristmill" --price-per-hour 63.1872 --require-check
