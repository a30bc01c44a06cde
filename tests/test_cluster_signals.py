"""Signals as engines send them."""

from tests.commands import script

WORK = """
import os, signal, sys, threading, time
from experiments.run import interruption

def send(pause):
    os.kill(os.getpid(), signal.SIGTERM)
    while not interruption.requested():
        time.sleep(0.001)
    time.sleep(float(pause))
    os.kill(os.getpid(), signal.SIGTERM)

interruption.watch()
try:
    with interruption.resumable():
        threading.Thread(target=send, args=sys.argv[1:], daemon=True).start()
        time.sleep(2)
        print("a snapshot is kept", flush=True)
except interruption.Interrupted:
    interruption.leave()
"""


def _work(pause):
    """The exit code and what is said, where a second signal follows after so many seconds."""
    process = script(WORK, pause)
    return process.wait(30), process.output


def test_a_signal_that_slurm_sends_twice_leaves_time_for_a_snapshot():
    # Where it preempts without grace time, srun hands on its own SIGTERM after 20 ms.
    assert _work("0.02") == (75, "a snapshot is kept\n")


def test_a_signal_that_is_sent_again_ends_the_work_at_once():
    assert _work("0.6") == (75, "")
