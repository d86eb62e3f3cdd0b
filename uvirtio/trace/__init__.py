"""Records of devices: everything that a driver sees of the outside, in a file, and the driver run again from it.

    with uvirtio.open("0000:03:00.0", record="run.jsonl") as device, uvirtio.Rng(device) as rng:
        rng.read(16)

    with uvirtio.open(uvirtio.trace.replayed("run.jsonl")) as device, uvirtio.Rng(device) as rng:
        rng.read(16)  # the same bytes, or the same error; no device is needed

The seam is the object that a back end hands over (``interfaces/backend.py``). A tape is put there: ``Recorder``
writes down each register access, kick, interrupt, call and look at memory; ``Replay`` answers them from the file.
"""

from __future__ import annotations

import os

from uvirtio.interfaces.backend import Backend
from uvirtio.trace.record import Recorder
from uvirtio.trace.replay import Replay

__all__ = ["Recorder", "Replay", "replayed"]


def replayed(path: str | os.PathLike[str]) -> Backend:
    """Return what stands for the first device of a record, for ``uvirtio.open``.

    The program that opens it has to do what the recorded one did, with the same options (``timeout`` above all).
    It gets the same values, bytes and errors, at once, whatever time they took.

    Args:
        path: The file that was recorded (``record=``, ``--trace``).

    Returns:
        A PciFunction, MmioWindow or VdpaNode that answers from the record.

    Raises:
        BadTrace: It is not a record, or a damaged one.
    """
    _, found = Replay(path).next_device()
    return found
