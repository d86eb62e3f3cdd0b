"""The options for opening a device as keywords, for type checkers: ``open(address, timeout=1)``.

In a module of their own, which a start does not import: ``typing``, which makes the TypedDict, takes ten times as
long to import as this module.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Literal, TypedDict

from uvirtio.host.roots import Roots
from uvirtio.interfaces.recording import Records, Replays
from uvirtio.interfaces.values import InterruptMode, Trace

RingChoice = Literal["auto", "split", "packed"]
"""The ring format: ``auto`` is packed where it is offered, as 6.1 recommends."""


class OpenKeywords(TypedDict, total=False):
    """The fields of ``OpenOptions`` as keywords, each with the same meaning; all are optional."""

    backend: str
    timeout: float
    interrupts: Sequence[InterruptMode]
    ring: RingChoice
    poll_us: float
    force_legacy: bool
    unsafe_dma: bool
    vf_token: str | None
    without: Sequence[str]
    roots: Roots | None
    trace: Trace | None
    record: str | os.PathLike[str] | Records | None
    replay: Replays | None
