"""Continuous health tests for random bytes: the two of NIST SP 800-90B.

Both detect a source that is stuck or broken; no test detects one that is predictable. The cutoffs are for full
entropy, which a host's generator has to deliver, at a false-alarm rate of 2^-64 per byte: reading a gibibyte
raises a false alarm once in 2^34 times.
"""

from __future__ import annotations

import re

RUN = 9
"""Repetition count test: this many equal bytes in a row are too many. 256^-8 is 2^-64."""

WINDOW = 512
MOST = 27
"""Adaptive proportion test: the cutoff for how often the first byte of a 512-byte window occurs in it.

Two are expected."""

_RUN = re.compile(rb"(.)\1{%d}" % (RUN - 1), re.DOTALL)


class Health:
    """The two tests, over all bytes that were fed so far, however they were split."""

    def __init__(self) -> None:
        """Start with no bytes tested."""
        self.tested = 0
        """Bytes tested so far."""
        self._before = b""
        self._window = b""

    def feed(self, data: bytes) -> str | None:
        """Test more bytes.

        Args:
            data: The next bytes of the source.

        Returns:
            What is wrong with them, in words; None if nothing is.
        """
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
                return f"{window[0]:#04x} occurs {times} times in {WINDOW} bytes"
        self._window = waiting[len(waiting) // WINDOW * WINDOW :]
        return None
