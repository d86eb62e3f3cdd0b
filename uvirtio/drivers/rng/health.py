"""Whether bytes that are said to be random could be: two tests that run along, as NIST's SP 800-90B has them.

Both find a source that is stuck or broken; no test finds one that is predictable. The cutoffs are for bytes that
are fully random, as those of a host's generator have to be, at a false alarm of 2^-64 for each byte: reading a
gibibyte alarms for nothing once in 2^34 times.
"""

from __future__ import annotations

import re

RUN = 9
"""Repetition count: so many equal bytes in a row are too many. 256^-8 is 2^-64."""

WINDOW = 512
MOST = 27
"""Adaptive proportion: the first byte of a window of 512 comes so often in it. Two are expected."""

_RUN = re.compile(rb"(.)\1{%d}" % (RUN - 1), re.DOTALL)


class Health:
    """The two tests over all bytes that were ever fed, however they were cut."""

    def __init__(self) -> None:
        self.tested = 0
        """Bytes so far."""
        self._before = b""
        self._window = b""

    def feed(self, data: bytes) -> str | None:
        """Test more bytes; what is wrong with them, or None."""
        self.tested += len(data)
        run = _RUN.search(self._before + data)
        self._before = (self._before + data)[-(RUN - 1) :]
        if run is not None:
            return f"{RUN} bytes of {run[1][0]:#04x} in a row"
        waiting = self._window + data
        for at in range(0, len(waiting) - WINDOW + 1, WINDOW):
            window = waiting[at : at + WINDOW]
            times = window.count(window[:1])
            if times >= MOST:
                return f"{window[0]:#04x} comes {times} times in {WINDOW} bytes"
        self._window = waiting[len(waiting) // WINDOW * WINDOW :]
        return None
