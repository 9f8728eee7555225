#!/usr/bin/env bash
#SBATCH --job-name=dori
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=4
#SBATCH --time=04:00:00
set -euo pipefail

# The environment that has dori: of `make book`, in the directory that sbatch was called from, or another venv.
# With conda instead: source "$(conda info --base)/etc/profile.d/conda.sh"; conda activate dori
source "${DORI_ENV:-.venv}/bin/activate"

export GPUS=${SLURM_GPUS_ON_NODE:-4}
export FIRST=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export PORT=$((20000 + SLURM_JOB_ID % 20000))

# in quotes: each node fills in its own rank
srun bash -c 'accelerate launch --multi_gpu \
  --num_machines "$SLURM_NNODES" --num_processes "$((SLURM_NNODES * GPUS))" \
  --machine_rank "$SLURM_PROCID" \
  --main_process_ip "$FIRST" --main_process_port "$PORT" \
  -m dori attack --model my-org/my-model --benchmark prompts.csv \
  --out runs/attacked'
