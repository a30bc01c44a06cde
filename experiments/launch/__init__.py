"""Job descriptions for engines that exist: a Slurm array, a Kubernetes JobSet, a TPU pod.

    python -m experiments.launch --template=slurm_array.sh --shards=8 -- --config=... --workdir=...
    > job.sh

prints a template of this folder, filled in for a command of `experiments.main`. The run folder must
be one that all hosts see, on a file system whose renames are atomic (NFS, Lustre, Filestore; not an
object store).
"""
