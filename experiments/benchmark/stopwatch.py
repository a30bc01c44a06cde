"""Timing programs that live in processes of their own, in rounds that alternate between them.

A process is started with specifications of programs, builds them, says what there is to know of
each, and then runs the one whose number it is sent and answers with the seconds it took. So
programs of different libraries are timed within one run, none computes while another does, and the
peak memory of each is its own. Needs the standard library alone, as the baseline may run in an
environment that has nothing else of this project.
"""

import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parents[2]
Specification = dict[str, Any]  # of a program, JSON values


class Timed(NamedTuple):
    """A program that can be timed: `call()` does `work` units of work and returns when they are
    done.

    facts: what else is to be known of it, as JSON values. peak_bytes(): memory that it has needed
      at most.
    """

    call: Callable[[], Any]
    work: int
    facts: dict[str, Any]
    peak_bytes: Callable[[], int]


class FailedError(Exception):
    """A timed process ended before it answered; the message has its exit code and the last line
    written, `said` is all that it has written.
    """

    def __init__(self, message: str, said: str = "") -> None:
        super().__init__(message)
        self.said = said


def peak_host_bytes() -> int:
    """The most memory this process has had."""
    try:
        status = Path("/proc/self/status").read_text(encoding="ascii")
        return 1024 * int(status.split("VmHWM:")[1].split()[0])
    except (OSError, IndexError):  # not Linux
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (
            1 if sys.platform == "darwin" else 1024
        )


def serve(make: Callable[[Specification], Timed]) -> None:
    """The timed process: builds the programs specified on the command line, then answers until its
    input ends.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print is no answer
    threading.Thread(target=_end_with, args=(int(sys.argv[2]),), daemon=True).start()

    def say(**fields: Any) -> None:
        answers.write(json.dumps(fields) + "\n")
        answers.flush()

    specifications = json.loads(sys.argv[1])
    programs = list(map(make, specifications))
    repeats = list(map(_repeats, programs, specifications))
    say(facts=[program.facts for program in programs])
    for line in sys.stdin:
        program, times = programs[int(line)], repeats[int(line)]
        begun = time.perf_counter()
        for _ in range(times):
            program.call()
        say(
            seconds=(time.perf_counter() - begun) / (times * program.work),
            peak_bytes=program.peak_bytes(),
        )


def _end_with(parent: int) -> None:
    """Ends this process soon after its parent was killed."""
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def _repeats(program: Timed, specification: Specification) -> int:
    """How many calls take about as long as specified; the first ones warm up."""
    seconds = specification["seconds"]
    for _ in range(2):
        begun = time.perf_counter()
        program.call()
        once = time.perf_counter() - begun
        if once > seconds:
            return 1
    return math.ceil(seconds / once) if once else 1


class Stopwatch:
    """One or several equal processes that run the programs of `module` as specified; to be closed
    after use.

    Args:
      module: one of this project that calls `serve`, e.g. "experiments.benchmark.jax_programs".
      specifications: of its programs, JSON objects with `seconds`, about how long one timing should
        take.
      python: the interpreter.
      processes: how many run the same at once.
      environment: variables set beside those of this process.
    """

    def __init__(
        self,
        module: str,
        specifications: list[Specification],
        python: str,
        processes: int = 1,
        environment: Any = (),
    ) -> None:
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115, closed by close
        command = [python, "-m", module, json.dumps(specifications), str(os.getpid())]
        self._processes: list[subprocess.Popen] = []
        self.peak_bytes = 0
        try:
            for _ in range(processes):
                process = subprocess.Popen(
                    command,
                    cwd=ROOT,
                    env=os.environ | dict(environment),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=self._errors,
                    text=True,
                    start_new_session=True,  # a Ctrl-C is for the process that watches
                )
                self._processes.append(process)
            self.facts = self._answers()[0]["facts"]
        except BaseException:
            self.close()
            raise

    def run(self, program: int = 0) -> float:
        """Seconds per unit of work of a program: where several processes share the work, of all
        together.
        """
        for process in self._processes:
            with contextlib.suppress(BrokenPipeError):  # the answer says why
                process.stdin.write(f"{program}\n")
                process.stdin.flush()
        answers = self._answers()
        self.peak_bytes = sum(answer["peak_bytes"] for answer in answers)
        return max(answer["seconds"] for answer in answers) / len(answers)

    def _answers(self) -> list[dict[str, Any]]:
        lines = [process.stdout.readline() for process in self._processes]
        if not all(lines):
            ended = self._processes[lines.index("")].wait()
            self._errors.seek(0)
            said = self._errors.read().strip()
            last = f", {said.splitlines()[-1]}" if said else ""
            raise FailedError(f"exit code {ended}{last}", said)
        return [json.loads(line) for line in lines]

    def close(self) -> None:
        """Ends the processes."""
        for process in self._processes:
            process.kill()
            process.wait()
            with contextlib.suppress(BrokenPipeError):  # what it was sent and did not read
                process.stdin.close()
            process.stdout.close()
        self._errors.close()
