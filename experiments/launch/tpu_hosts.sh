#!/usr/bin/env bash
# TPU hosts with a slice of their own, NAME-0 … NAME-${last}: TPU=NAME ZONE=zone bash this file. Each is a shard and runs
# the command in ~/nad_jax, installed there by
#   ${install}
# One that is interrupted is run again alone.
run() {
  while true; do
    gcloud compute tpus tpu-vm ssh "$${TPU:?}-$$1" --zone="$${ZONE:?}" \
      --command=${remote}" --shard=$$1/${shards}" \
      < /dev/null
    code=$$?
    [ "$$code" -eq 75 ] || return "$$code"
    sleep 10
  done
}
for shard in $$(seq 0 ${last}); do run "$$shard" & hosts+=("$$!"); done
trap 'kill "$${hosts[@]}"' INT TERM # none is run again
for host in "$${hosts[@]}"; do wait "$$host" || failed=$$?; done
exit "$${failed:-0}"
