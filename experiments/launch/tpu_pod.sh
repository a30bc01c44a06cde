#!/usr/bin/env bash
# A TPU pod slice: TPU=name ZONE=zone bash this file. Every host runs the command in ~/nad_jax, installed there by
#   ${install}
# JAX tells it which one it is. No host of a slice starts without the others, so where one is interrupted all run again.
while true; do
  gcloud compute tpus tpu-vm ssh "$${TPU:?}" --zone="$${ZONE:?}" --worker=all \
    --command=${remote}
  code=$$?
  [ "$$code" -eq 75 ] || exit "$$code"
  sleep 10
done
