"""The block device (5.2): sectors of 512 bytes, read, written, flushed, discarded.

``Blk`` sends requests and waits for them, one by one or many at a time; a ``Request`` is one that was submitted. A
``Burst`` is the fast way for many requests of one kind and size.
"""

from uvirtio.drivers.blk.burst import Burst
from uvirtio.drivers.blk.config import BlkConfig, Lifetime, Limits, Topology
from uvirtio.drivers.blk.driver import Blk
from uvirtio.drivers.blk.request import Request
from uvirtio.spec.blk import SECTOR_SIZE, Status

__all__ = [
    "SECTOR_SIZE",
    "Blk",
    "BlkConfig",
    "Burst",
    "Lifetime",
    "Limits",
    "Request",
    "Status",
    "Topology",
]
