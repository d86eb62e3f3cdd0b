"""Virtio devices made of Python: strict about the driver, and wrong on demand.

A ``Model`` is what makes the device an rng, a balloon or a disk; ``ScriptedDevice`` (PCI), ``ScriptedMmio`` and
``ScriptedLegacy`` put registers in front of it. Any of them can be handed to ``uvirtio.open`` and to
``uvirtio.diag.diagnose_function`` in place of an address.

    from uvirtio import Rng, open, scripted

    device = scripted.ScriptedDevice(scripted.Rng(), silent=True)
    with open(device, timeout=0.1) as opened, Rng(opened) as rng:
        rng.read(16)              # raises DeviceTimeout: the device is silent
    device.assert_obedient()      # the driver broke no rule of the standard
"""

from uvirtio.scripted.admin import AdminModel
from uvirtio.scripted.balloon import Balloon
from uvirtio.scripted.blk import Disk
from uvirtio.scripted.cases import hostile_cases
from uvirtio.scripted.console import Console
from uvirtio.scripted.core import ScriptedCore
from uvirtio.scripted.crypto import Crypto
from uvirtio.scripted.faults import Access, Faults
from uvirtio.scripted.fs import Fs
from uvirtio.scripted.gpu import Gpu
from uvirtio.scripted.input import Input
from uvirtio.scripted.iommu import Iommu
from uvirtio.scripted.legacy import ScriptedLegacy
from uvirtio.scripted.mem import Mem
from uvirtio.scripted.mmio import ScriptedMmio
from uvirtio.scripted.model import Admin, Model
from uvirtio.scripted.net import Net
from uvirtio.scripted.ninep import NineP
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.pmem import Pmem
from uvirtio.scripted.ring import Chain, DriverViolation, Element, Lies
from uvirtio.scripted.rng import Rng
from uvirtio.scripted.rtc import Rtc
from uvirtio.scripted.scsi import ScsiDisk, ScsiHost
from uvirtio.scripted.sound import Sound
from uvirtio.scripted.vsock import Vsock

__all__ = [
    "Access",
    "Admin",
    "AdminModel",
    "Balloon",
    "Chain",
    "Console",
    "Crypto",
    "Disk",
    "DriverViolation",
    "Element",
    "Faults",
    "Fs",
    "Gpu",
    "Input",
    "Iommu",
    "Lies",
    "Mem",
    "Model",
    "Net",
    "NineP",
    "Pmem",
    "Rng",
    "Rtc",
    "ScriptedCore",
    "ScriptedDevice",
    "ScriptedLegacy",
    "ScriptedMmio",
    "ScsiDisk",
    "ScsiHost",
    "Sound",
    "Vsock",
    "hostile_cases",
]
