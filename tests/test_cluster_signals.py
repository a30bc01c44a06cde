"""Signals as engines send them."""

from tests.commands import script

WORK = """
import os, signal, sys, threading, time
from experiments.run import interruption

def send():
    time.sleep(0.2)
    for pause in sys.argv[1:]:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(float(pause))

interruption.watch()
threading.Thread(target=send, daemon=True).start()
try:
    with interruption.resumable():
        while not interruption.requested():
            time.sleep(0.01)
        time.sleep(1)
        print("a snapshot is kept", flush=True)
except interruption.Interrupted:
    interruption.leave()
"""


def _work(*pauses):
    process = script(WORK, *pauses)
    return process.wait(30), process.output


def test_a_signal_that_slurm_sends_twice_leaves_time_for_a_snapshot():
    # Where it preempts without grace time, srun hands on its own SIGTERM after 20 ms.
    assert _work("0.02", "9") == (75, "a snapshot is kept\n")


def test_a_signal_that_is_sent_again_ends_the_work_at_once():
    assert _work("0.5", "9") == (75, "")
