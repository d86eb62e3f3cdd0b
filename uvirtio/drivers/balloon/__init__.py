"""The traditional memory balloon (5.5): pages that the guest gives to the host, and takes back.

``Balloon`` is the driver, ``Collector`` reads the statistics, and ``Arena`` is memory that is kept free for free
page hints and free page reports.
"""

from uvirtio.drivers.balloon.arena import Arena, Range, Use
from uvirtio.drivers.balloon.driver import Balloon
from uvirtio.drivers.balloon.follow import MemoryPressure
from uvirtio.drivers.balloon.free_memory import FreeMemory, default_floor
from uvirtio.drivers.balloon.stats import BYTES, VIRSH, Collector, name_of

__all__ = [
    "BYTES",
    "VIRSH",
    "Arena",
    "Balloon",
    "Collector",
    "FreeMemory",
    "MemoryPressure",
    "Range",
    "Use",
    "default_floor",
    "name_of",
]
