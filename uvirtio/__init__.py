"""uvirtio: drive virtio devices from user space.

    with uvirtio.open("qemu:virtio-rng-pci") as device, uvirtio.Rng(device) as rng:
        print(rng.read(16).hex())

``open`` takes an address and gives a Device; a driver (Balloon, Blk, Input, Mem, Net, Rng, Scsi) negotiates
with it and drives it. ``uvirtio.qemu.Machine`` is a QEMU without a guest, for tests. All errors derive from
UvirtioError; ``help(uvirtio.errors)`` has them, and each can be imported from here.

The names below are imported when they are first asked for, so that ``uvirtio list`` does not load the drivers.
"""

from __future__ import annotations

from uvirtio import errors
from uvirtio.errors import *  # noqa: F403  # its __all__, which is part of ours below
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Any

    from uvirtio import qemu
    from uvirtio.binding.api import DeviceInfo, bind, bound, check_denied, find, list, restore
    from uvirtio.binding.bind import Bound
    from uvirtio.binding.restore import Restored
    from uvirtio.device import Device, OpenOptions
    from uvirtio.drivers.balloon import Balloon
    from uvirtio.drivers.blk import Blk
    from uvirtio.drivers.input import Input, InputEvent
    from uvirtio.drivers.mem import Mem
    from uvirtio.drivers.net import Net
    from uvirtio.drivers.rng import Rng
    from uvirtio.drivers.scsi import Scsi
    from uvirtio.host.roots import Roots
    from uvirtio.interfaces.values import InterruptMode
    from uvirtio.opening import open

__version__ = "0.2.0.dev0"  # the one place: pyproject.toml takes it from here

__all__ = [
    "Balloon",
    "Blk",
    "Bound",
    "Device",
    "DeviceInfo",
    "Input",
    "InputEvent",
    "InterruptMode",
    "Mem",
    "Net",
    "OpenOptions",
    "Restored",
    "Rng",
    "Roots",
    "Scsi",
    "__version__",
    "bind",
    "bound",
    "check_denied",
    "errors",
    "find",
    "list",
    "open",
    "qemu",
    "restore",
]
__all__ += errors.__all__

if not TYPE_CHECKING:  # or every misspelt name would pass as Any
    _HOMES = {
        "Balloon": "uvirtio.drivers.balloon",
        "Blk": "uvirtio.drivers.blk",
        "Bound": "uvirtio.binding.bind",
        "Device": "uvirtio.device",
        "DeviceInfo": "uvirtio.binding.api",
        "Input": "uvirtio.drivers.input",
        "InputEvent": "uvirtio.drivers.input",
        "InterruptMode": "uvirtio.interfaces.values",
        "Mem": "uvirtio.drivers.mem",
        "Net": "uvirtio.drivers.net",
        "OpenOptions": "uvirtio.device",
        "Restored": "uvirtio.binding.restore",
        "Rng": "uvirtio.drivers.rng",
        "Roots": "uvirtio.host.roots",
        "Scsi": "uvirtio.drivers.scsi",
        "open": "uvirtio.opening",
        **dict.fromkeys(("bind", "bound", "check_denied", "find", "list", "restore"), "uvirtio.binding.api"),
    }

    _MOVED = {
        "fuse": "uvirtio.host.denylist",
        "roots": "uvirtio.host.roots",
    }  # shown in the docs of 0.1; until 0.3

    def __getattr__(name: str) -> Any:
        if name == "qemu":
            return __import__("uvirtio.qemu", fromlist=["qemu"])
        if name in _HOMES:
            return getattr(__import__(_HOMES[name], fromlist=[name]), name)  # importlib would import warnings
        if name in _MOVED:
            import warnings

            warnings.warn(f"uvirtio.{name} is {_MOVED[name]} now", DeprecationWarning, stacklevel=2)
            return __import__(_MOVED[name], fromlist=[name])
        raise AttributeError(f"module 'uvirtio' has no attribute {name!r}")

    def __dir__() -> list[str]:
        # Without the errors: help() would print five pages of them before the first driver.
        return sorted({*globals(), *__all__}.difference(errors.__all__) | {"UvirtioError"})
