"""The SCSI host device (5.6): logical units found, read and written, task management, events.

``Scsi`` is the driver; a ``Lun`` names a unit, a ``Request`` is a command that was submitted. ``commands`` makes
commands and decodes their answers. A ``Burst`` is the fast way for many reads or writes of one size.
"""

from uvirtio.drivers.scsi.burst import Burst
from uvirtio.drivers.scsi.commands import Capacity, Command, Identification, Inquiry, Mode
from uvirtio.drivers.scsi.config import ScsiConfig
from uvirtio.drivers.scsi.driver import Scsi
from uvirtio.drivers.scsi.events import Event
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.request import Request
from uvirtio.drivers.scsi.sense import Sense
from uvirtio.drivers.scsi.units import Unit
from uvirtio.spec.scsi import EventType, Key, ResetReason, Response, Status, Task

__all__ = [
    "Burst",
    "Capacity",
    "Command",
    "Event",
    "EventType",
    "Identification",
    "Inquiry",
    "Key",
    "Lun",
    "Mode",
    "Request",
    "ResetReason",
    "Response",
    "Scsi",
    "ScsiConfig",
    "Sense",
    "Status",
    "Task",
    "Unit",
]
