#!/usr/bin/env bash
# A TPU pod slice: TPU=name ZONE=zone bash this file. Every host runs the command in ~/nad_jax; JAX tells it which one
# it is. Interrupted hosts are run again.
while true; do
  gcloud compute tpus tpu-vm ssh "$${TPU:?}" --zone="$${ZONE:?}" --worker=all \
    --command=${remote}
  code=$$?
  [ "$$code" -eq 75 ] || exit "$$code"
done
