"""The control queue (5.6.6.2): task management functions, one at a time."""

from __future__ import annotations

import struct

from uvirtio.device import Device, Queue
from uvirtio.drivers.base import settle, transact
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.spec import scsi as spec
from uvirtio.spec.scsi import Control, Task

_TMF = struct.Struct("<II8sQ")
_ANSWER_AT = 32
_SIZE = 64
NO_RESPONSE = 0xFF
"""Preset of the response; a device that does not know a type uses the buffer and writes nothing."""


class ControlQueue:
    """The memory of one control request."""

    def __init__(self, device: Device, queue: Queue) -> None:
        """Allocate the memory.

        Args:
            device: The device.
            queue: Its control queue.

        Raises:
            MemlockExceeded, HugePagesLack, OperationFailed: There is no memory.
        """
        self._device, self._queue = device, queue
        self._block = device.dma.alloc(_SIZE)
        (self._readable,) = self._block.segments(0, spec.TMF_SIZE)
        (self._writable,) = self._block.segments(_ANSWER_AT, 1)

    def manage(self, task: Task, lun: Lun, tag: int, timeout: float) -> int:
        """Send a task management function, and wait for its response.

        Args:
            task: The function.
            lun: The unit.
            tag: The identifier of the command, where the function concerns one.
            timeout: Seconds to wait.

        Returns:
            The response byte; ``NO_RESPONSE`` where the device wrote none.

        Raises:
            DeviceTimeout: The device did not answer in time.
            RingCorruption: The used ring holds what cannot be.
        """
        request = _TMF.pack(Control.TMF, task, Lun.encode(lun), tag)
        settle(self._device, self._queue, timeout=timeout)  # of a wait that was interrupted
        view = self._block.view
        view[: spec.TMF_SIZE] = request
        view[_ANSWER_AT] = NO_RESPONSE
        transact(
            self._device,
            self._queue,
            [self._readable],
            [self._writable],
            timeout=timeout,
            what=f"{task.name} of {lun}",
        )
        return view[_ANSWER_AT]
