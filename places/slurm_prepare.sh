#!/usr/bin/env bash
# Made by places/render.py from places/resources.toml: change that, and make this again.
#SBATCH --job-name=gristmill-prepare
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --mem=32G
#SBATCH --time=4:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
# Shards and checks, where an hour is cheap. The other script waits for it:
#   job=$(sbatch --parsable places/slurm_prepare.sh)
#   sbatch --dependency=afterok:"$job" places/slurm_train.sh
shared="${GRISTMILL_SHARED:?a folder that all nodes see}"
export PATH="$PWD/.venv/bin:$PATH"
shards pull hf://datasets/ORG/NAME "$shared/shards" --mixture web40_code20 --tokens 99999940608 --sequence-length 2048 --batch-tokens 131072 --packing concat
trainer check --config pipelines/training/sixteen_gpus.toml --mixture web40_code20 --data "$shared/shards" --output "$shared/runs/gristmill" --price-per-hour 0.3784 --threads 8
