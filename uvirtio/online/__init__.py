"""Bringing plugged memory online as System RAM of this Linux, from user space, on an unmodified kernel.

The region of a memory device is reserved at boot (``memmap=SIZE%ADDR+0xefffffff``: Soft Reserved). dax_hmem makes
a dax region of it, in which dax devices of whole memory blocks are created; one that is bound to the driver kmem
is System RAM. The same steps in reverse take it offline, so that the block can be unplugged.

``KernelView`` reads what the kernel shows of a region, ``SystemMemory`` brings pieces online and offline, and
``Linux`` is the manager's consumer that does so as memory is plugged and unplugged.
"""

import warnings
from typing import TYPE_CHECKING, Any

from uvirtio.host.remedies import boot_line
from uvirtio.online.consumer import OWNER, Linux, system_memory
from uvirtio.online.kernel_view import DaxPiece, KernelView, PieceState
from uvirtio.online.pieces import SystemMemory

__all__ = [
    "OWNER",
    "DaxPiece",
    "KernelView",
    "Linux",
    "PieceState",
    "SystemMemory",
    "boot_line",
    "system_memory",
]

if not TYPE_CHECKING:
    _RENAMED = {"Kernel": KernelView, "Piece": DaxPiece}  # names before 0.2, which go with 0.3

    def __getattr__(name: str) -> Any:
        if name in _RENAMED:
            new = _RENAMED[name]
            warnings.warn(f"uvirtio.online.{name} is {new.__name__} now", DeprecationWarning, stacklevel=2)
            return new
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
