"""uvirtio: drive virtio devices from user space.

    with uvirtio.open("qemu:virtio-rng-pci") as device, uvirtio.Rng(device) as rng:
        print(rng.read(16).hex())

``open`` takes an address and gives a Device; a driver (Balloon, Rng, Input) negotiates with it and drives it.
``uvirtio.qemu.Machine`` is a QEMU without a guest, for tests. All errors derive from UvirtioError.
"""

from uvirtio.device import Device, open
from uvirtio.drivers.balloon import Balloon
from uvirtio.drivers.input import Input, InputEvent
from uvirtio.drivers.rng import Rng
from uvirtio.errors import UvirtioError
from uvirtio.memory.seams import InterruptMode
from uvirtio.roots import Roots

__version__ = "0.1.0"

__all__ = [
    "Balloon",
    "Device",
    "Input",
    "InputEvent",
    "InterruptMode",
    "Rng",
    "Roots",
    "UvirtioError",
    "__version__",
    "open",
]
