"""Programs to time that need nothing: they sleep, fill memory, or fail."""

import time

from experiments.benchmark.stopwatch import Timed, peak_host_bytes, serve


def make(spec):
    if "fail" in spec:
        raise RuntimeError(spec["fail"])
    kept = bytearray(spec.get("bytes", 0))
    print("a library that talks")
    facts = {"kept": len(kept), **spec.get("facts", {})}
    return Timed(lambda: time.sleep(spec["sleep"]), spec["work"], facts, peak_host_bytes)


if __name__ == "__main__":
    serve(make)
