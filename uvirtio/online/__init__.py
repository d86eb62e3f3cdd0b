"""Handing plugged memory to Linux itself, from user space, on a kernel as it is shipped.

The region of a memory device is kept for us at boot (``memmap=SIZE%ADDR+0xefffffff``: Soft Reserved). dax_hmem
makes a dax region of it, of which we cut dax devices of whole memory blocks; one that is bound to the driver
kmem is System RAM. The way back is the same way backwards, and ends with the block free to be unplugged.

:class:`KernelView` is what the kernel shows of a region, :class:`SystemMemory` moves pieces in and out, and
:class:`Linux` is the manager's consumer that does so as plugged memory comes and goes.
"""

import warnings
from typing import TYPE_CHECKING, Any

from uvirtio.online.consumer import OWNER, Linux, system_memory
from uvirtio.online.kernel_view import KernelView, Piece, PieceState, boot_line
from uvirtio.online.pieces import SystemMemory

__all__ = [
    "OWNER",
    "KernelView",
    "Linux",
    "Piece",
    "PieceState",
    "SystemMemory",
    "boot_line",
    "system_memory",
]

if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name == "Kernel":  # its name before 0.2; goes with 0.3
            warnings.warn("uvirtio.online.Kernel is KernelView now", DeprecationWarning, stacklevel=2)
            return KernelView
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
