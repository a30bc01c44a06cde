"""Rolling snapshots of a computation that takes minutes: two files written in turn, so that one is
always whole.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from nad_jax import store
from nad_jax.errors import InputError, as_path, check_function, check_number, plain
from nad_jax.store import DamagedError


class Snapshots:
    """Keeps the state of one computation, and gives back the newest that is intact.

    Args:
      path: the two files are this path followed by .0.npz and .1.npz; its folder is created when
        needed.
      identity: JSON values that determine the computation; what another one has left is not taken
        up. `bind` adds to them.
      seconds: between snapshots; a computation that is done sooner writes none. Where writing one
        is slow, it is fifty times what that took.
      urgent: says that a snapshot is wanted now, because the process is about to end.
      clock: the seconds that are counted by `elapsed`.

    Raises:
      InputError: for a path that has no name, an identity that is not JSON, and bad values of the
        others.
    """

    def __init__(
        self,
        path: str | Path,
        identity: dict[str, Any],
        seconds: float,
        urgent: Callable[[], bool] = lambda: False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        path = as_path("path", path)
        if not path.name:
            raise InputError(f"path: must end in a name, got {str(path)!r}")
        check_function("urgent", urgent, optional=False)
        check_function("clock", clock, optional=False)
        self._paths = [path.with_name(f"{path.name}.{slot}.npz") for slot in (0, 1)]
        self._identity = "{}"
        self.bind(identity)
        self._seconds, self._urgent = check_number("seconds", seconds, 0.0), urgent
        self._next, self._kept, self._cost = 0, time.monotonic(), 0.0
        self._clock, self._begun = clock, clock()

    def bind(self, identity: dict[str, Any]) -> None:
        """Adds what determines the computation and is not known before it begins; raises
        `InputError` as above.
        """
        try:
            self._identity = json.dumps(
                {**json.loads(self._identity), **plain(identity)}, sort_keys=True
            )
        except (TypeError, ValueError) as error:
            raise InputError(f"identity: must be JSON values ({error})") from error

    def elapsed(self) -> float:
        """The seconds that the computation has taken, up to the snapshot it was taken up from
        included.
        """
        return self._clock() - self._begun

    def load(
        self, check: Callable[[dict[str, np.ndarray]], None] = lambda arrays: None
    ) -> dict[str, np.ndarray] | None:
        """The arrays that were saved at the highest position.

        A damaged file is moved aside, and the other taken; `check` raises `DamagedError` for arrays
        that are not what the computation saved.
        """
        newest, highest = None, -1
        for slot, path in enumerate(self._paths):
            if not path.exists():
                continue
            try:
                arrays = store.read_npz(path)
                identity, position = str(arrays.pop("identity")), int(arrays.pop("position"))
                elapsed = float(arrays.pop("elapsed", 0.0))  # which earlier versions did not say
                if identity != self._identity or position <= highest:
                    continue
                check(arrays)
            except (DamagedError, KeyError, TypeError, ValueError) as error:
                aside = store.quarantine(path).name
                logging.warning(
                    "snapshot %s is not taken up: %s; kept as %s", path.name, error, aside
                )
                continue
            newest, highest, self._next = arrays, position, 1 - slot
            self._begun = self._clock() - elapsed
        return newest

    def due(self) -> bool:
        """Whether it is time for the next one."""
        wait = max(self._seconds, 50 * self._cost)
        return time.monotonic() - self._kept >= wait or self._urgent()

    def save(self, position: int, arrays: dict[str, np.ndarray]) -> None:
        """Keeps arrays at a position, which grows as the computation goes on, in place of the older
        of the two.
        """
        begun = time.monotonic()
        store.make_folder(self._paths[0].parent)
        added = {"identity": np.asarray(self._identity), "position": np.asarray(position)}
        added["elapsed"] = np.asarray(self.elapsed())
        store.write_npz(self._paths[self._next], {**arrays, **added})
        self._next = 1 - self._next
        self._kept = time.monotonic()
        self._cost = self._kept - begun

    def clear(self) -> None:
        """Removes both: the computation has come to its end."""
        for path in self._paths:
            store.remove(path)
