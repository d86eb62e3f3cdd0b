"""The device status field (2.1): what we have set since the last reset, the reset, and what the device says."""

from __future__ import annotations

import time
from collections.abc import Callable

from uvirtio.device.waiting import POLL_FIRST, POLL_LAST, gone
from uvirtio.errors import (
    DeviceAbsent,
    DeviceNeedsReset,
    DeviceResetByOther,
    FeaturesRefused,
    ResetTimeout,
    UvirtioError,
)
from uvirtio.interfaces.transport import Transport
from uvirtio.spec.status import Status, describe


class StatusField:
    """The status field of one device. Every change of it goes through here."""

    def __init__(self, address: str, transport: Transport) -> None:
        self._address = address
        self._transport = transport
        self._bits = 0  # those that we have set since the last reset
        self.live = False
        """Between the first write of a bit and a confirmed reset."""

    def add(self, bit: Status) -> None:
        """Set one more bit. Bits are added, never taken away (2.1.1); ours are known here."""
        self.live = True
        if bit is Status.ACKNOWLEDGE:
            self._bits = 0
        self._bits |= int(bit)
        self._transport.set_status(self._bits)

    def fail(self) -> None:
        """Set FAILED beside what is set: the driver has given up (3.1.1)."""
        self._transport.set_status(self._bits | int(Status.FAILED))

    def reset(self, timeout: float) -> None:
        """Write 0 and wait until 0 is read (2.4.2).

        Args:
            timeout: Seconds to wait for the device.

        Raises:
            ResetTimeout: The status did not become 0 in time.
            DeviceGone: The status reads 0xff.
        """
        self._transport.set_status(0)
        status = 0

        def done() -> bool:
            nonlocal status
            status = self._transport.status()
            if status == 0xFF:
                self.live = False
                raise gone(self._address, "status reads 0xff")
            return status == 0

        if not poll_until(done, timeout):
            raise ResetTimeout(
                f"{self._address} did not finish its reset within {timeout:g} s",
                seen=f"status {describe(status)}",
                expected="status 0 (2.4.2)",
                remedy="try a function-level reset: uvirtio reset DEV --flr",
            )
        self.live = False

    def check(self) -> int:
        """The status of a device that works.

        Raises:
            DeviceGone: It reads 0xff.
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: It reads 0, and we have not written that.
        """
        status = self._transport.status()
        if status == 0xFF:
            raise gone(self._address, "status reads 0xff")
        if status & (Status.DEVICE_NEEDS_RESET | Status.FAILED):
            raise DeviceNeedsReset(
                f"{self._address} needs a reset",
                seen=f"status {describe(status)}",
                expected="DEVICE_NEEDS_RESET clear (2.1.1)",
                remedy="it met an error in what it was given, see its log or its host's; open it again",
            )
        if status == 0 and self.live:
            self.live = False
            raise DeviceResetByOther(
                f"{self._address} was reset by another program",
                seen="status 0",
                expected=f"status {self._bits:#04x}",
                remedy="close and open it again",
            )
        return status

    def confirm_features(self, offered: int, features: int) -> None:
        """Set FEATURES_OK, and read back whether the device accepts this choice (3.1.1 (5), (6)).

        Raises:
            FeaturesRefused: The device cleared FEATURES_OK.
        """
        self.add(Status.FEATURES_OK)
        status = self.check()
        if not status & Status.FEATURES_OK:
            raise FeaturesRefused(
                f"{self._address} refuses the features that were accepted",
                seen=f"status {describe(status)} after writing {features:#x}",
                expected="FEATURES_OK to stay set (3.1.1)",
                remedy="it refuses one of these bits or their combination; try fewer: --ring split withholds one",
            )

    def confirm_running(self) -> None:
        """Set DRIVER_OK, and read it back.

        Raises:
            DeviceNeedsReset: The device does not keep DRIVER_OK.
        """
        self.add(Status.DRIVER_OK)
        status = self.check()
        if not status & Status.DRIVER_OK:
            raise DeviceNeedsReset(
                f"{self._address} does not keep DRIVER_OK",
                seen=f"status {describe(status)}",
                expected="DRIVER_OK to stay set (3.1.1)",
                remedy="the device failed at the last step; its log or its host's may say why",
            )

    def vanished(self) -> bool:
        """Whether the device is gone, as far as its status tells."""
        try:
            return self._transport.status() == 0xFF
        except DeviceAbsent:
            return True
        except UvirtioError:
            return False


def poll_until(done: Callable[[], bool], timeout: float) -> bool:
    """Ask ``done`` at growing intervals; whether it said yes within ``timeout`` seconds.

    For what no interrupt announces: a reset of the device (2.4.2) or of a queue (2.6.1).
    """
    deadline = time.monotonic() + timeout
    pause = POLL_FIRST
    while True:
        late = time.monotonic() >= deadline  # asked before the look: the last look is after the deadline
        if done():
            return True
        if late:
            return False
        time.sleep(pause)
        pause = min(pause * 2, POLL_LAST)
