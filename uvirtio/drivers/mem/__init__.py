"""The memory device, virtio-mem (5.15): memory that is plugged and unplugged in blocks, as the host requests.

``Mem`` implements the protocol and tracks which blocks are plugged, ``Manager`` decides which blocks to plug and
unplug, and ``Region`` gives access to the plugged memory.
"""

from uvirtio.drivers.mem.block_table import BlockTable, Use
from uvirtio.drivers.mem.config import MemConfig
from uvirtio.drivers.mem.driver import Answer, Mem
from uvirtio.drivers.mem.manager import Consumer, HandOut, Manager, Mode, Outcome, Unit
from uvirtio.drivers.mem.ranges import Ranges
from uvirtio.drivers.mem.region import Piece, Region
from uvirtio.drivers.mem.suspend import SuspendLock
from uvirtio.drivers.mem.verify import BadBlock, verify
from uvirtio.spec.mem import Request, Response, State

__all__ = [
    "Answer",
    "BadBlock",
    "BlockTable",
    "Consumer",
    "HandOut",
    "Manager",
    "Mem",
    "MemConfig",
    "Mode",
    "Outcome",
    "Piece",
    "Ranges",
    "Region",
    "Request",
    "Response",
    "State",
    "SuspendLock",
    "Unit",
    "Use",
    "verify",
]
