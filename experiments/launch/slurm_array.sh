#!/usr/bin/env bash
# A Slurm array: sbatch this file from the root of the repository, installed by
#   ${install}
# Every task is a shard: --shard=auto reads which one. Two minutes before its time is up, or when it is preempted, it
# gets SIGTERM, ends with 75 and is put into the queue again. What scancel has ended stays ended.
#SBATCH --job-name=nad_jax
#SBATCH --array=0-${last}
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=${cpus}${gpus}
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --signal=TERM@120
#SBATCH --output=slurm-%A_%a.log
#SBATCH --open-mode=append
srun --cpus-per-task="$$SLURM_CPUS_PER_TASK" ${python} -m experiments.main ${arguments} --shard=auto
code=$$?
if [ "$$code" -eq 75 ]; then
  scontrol requeue incomplete "$${SLURM_ARRAY_JOB_ID}_$${SLURM_ARRAY_TASK_ID}"
fi
exit "$$code"
