"""One progress line: how much is done, how fast, and how long it will take."""

import sys
import time


class Progress:
    """`progress(done)` reports on standard error: rewritten in place on a terminal, else a line every ten seconds.

    The rate is taken from the first report on, so that it does not count compilation.
    """

    def __init__(self, total: int, done: int, unit: str) -> None:
        self._total, self._unit = total, unit
        self._terminal = sys.stderr.isatty()
        self._shown = time.monotonic()
        self._base = (self._shown, done)  # where the rate is counted from
        self._reported = False

    def __call__(self, done: int) -> None:
        now = time.monotonic()
        since, base = self._base
        rate = (done - base) / max(now - since, 1e-9)
        if not self._reported:
            self._base, self._reported = (now, done), True
        last = done >= self._total
        if last or now - self._shown >= (0.2 if self._terminal else 10.0):
            self._shown = now
            eta = _clock((self._total - done) / rate) if rate > 0 else "?"
            line = f"{done}/{self._total} {self._unit}, {rate:.3g} {self._unit}/s, ETA {eta}"
            if self._terminal:
                sys.stderr.write(f"\r\x1b[K{line}" + ("\n" if last else ""))
            else:
                sys.stderr.write(line + "\n")
            sys.stderr.flush()


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
