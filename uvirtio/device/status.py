"""The device status field (2.1): the bits that the driver set, the reset, and the checks of what it reads."""

from __future__ import annotations

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
from uvirtio.interfaces.runtime import ConfirmsAbsence, after_reset_timeout
from uvirtio.memory.clock import clock_of
from uvirtio.spec import features as f
from uvirtio.spec.status import Status, describe
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.clock import Clock
    from uvirtio.interfaces.transport import Transport


class StatusField:
    """The status field of one device. Every write to it goes through here."""

    def __init__(self, address: str, transport: Transport) -> None:
        """Make it; the device is not accessed.

        Args:
            address: The device's address, for errors.
            transport: Where the status is read and written.
        """
        self._address = address
        self._transport = transport
        self._clock = clock_of(transport)
        self._bits = 0  # those that we have set since the last reset
        self._last: Status | None = None
        self.live = False
        """Between the first write of a bit and a confirmed reset."""

    def add(self, bit: Status) -> None:
        """Set one more bit. The driver never clears a bit except by a reset (2.1.1).

        Args:
            bit: The bit; ACKNOWLEDGE begins a new sequence.
        """
        self.live = True
        if bit is Status.ACKNOWLEDGE:
            self._bits = 0
        self._bits |= int(bit)
        self._last = bit
        self._transport.set_status(self._bits)

    @property
    def state(self) -> str:
        """The name of the bit that was set last, or "not started"; the device is not accessed."""
        return self._last.name or "" if self.live and self._last is not None else "not started"

    def fail(self) -> None:
        """Set FAILED in addition to the other bits: the driver has given up (3.1.1)."""
        self._transport.set_status(self._bits | int(Status.FAILED))

    def reset(self, timeout: float, sleep: Callable[[float], None] | None = None) -> None:
        """Write 0 and wait until 0 is read (2.4.2).

        Args:
            timeout: Seconds to wait for the device.
            sleep: As for ``poll_until``.

        Raises:
            ResetTimeout: The status did not become 0 in time.
            DeviceGone: The status reads 0xff, and so does a second register (``ConfirmsAbsence``).
        """
        self._transport.set_status(0)
        self.await_reset(timeout, lambda: after_reset_timeout(self._transport.backend, self._address), sleep)

    def await_reset(
        self, timeout: float, remedy: Callable[[], str], sleep: Callable[[float], None] | None = None
    ) -> None:
        """Wait until the status reads 0, after a reset of whatever kind (2.4.2).

        Args:
            timeout: Seconds to wait for the device.
            remedy: Returns what to do if it does not.
            sleep: As for ``poll_until``.

        Raises:
            ResetTimeout: The status did not become 0 in time.
            DeviceGone: The status reads 0xff, and so does a second register (``ConfirmsAbsence``).
        """
        status = 0

        def done() -> bool:
            nonlocal status
            status = self._transport.status()
            if self._is_gone(status):
                self.live = False
                raise gone(self._address, self._transport, "status reads 0xff")
            return status == 0

        if not poll_until(done, timeout, self._clock, sleep):
            raise ResetTimeout(
                f"{self._address} did not finish its reset within {timeout:g} s",
                seen=f"status {describe(status)}",
                expected="status 0 (2.4.2)",
                remedy=remedy(),
            )
        self.live = False

    def _is_gone(self, status: int) -> bool:
        """Whether there is no device: all ones in the status alone may be a fault of one that works on."""
        if status != 0xFF:
            return False
        return not isinstance(self._transport, ConfirmsAbsence) or self._transport.is_absent()

    def check(self) -> int:
        """Read the status and check that the device still works.

        Returns:
            The status bits.

        Raises:
            DeviceGone: It reads 0xff, and a second register has no device either (``ConfirmsAbsence``).
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: It reads 0, and this process did not write that.
        """
        status = self._transport.status()
        if self._is_gone(status):
            raise gone(self._address, self._transport, "status reads 0xff")
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

    def _cleared(self, bit: Status) -> str | None:
        """Set one more bit and read the status; the status in words if the device cleared the bit, else None."""
        self.add(bit)
        status = self.check()
        return None if status & bit else f"status {describe(status)}"

    def confirm_features(self, features: int) -> None:
        """Set FEATURES_OK, and read back whether the device accepts the features (3.1.1 (5), (6)).

        Args:
            features: The feature bits that the driver wrote.

        Raises:
            FeaturesRefused: The device cleared FEATURES_OK.
            DeviceGone: The device was removed.
            DeviceNeedsReset: DEVICE_NEEDS_RESET or FAILED is set (2.1.1).
            DeviceResetByOther: The status reads 0.
        """
        seen = self._cleared(Status.FEATURES_OK)
        if seen is not None:
            raise FeaturesRefused(
                f"{self._address} refuses the features that were accepted",
                seen=f"{seen} after writing {features:#x}",
                expected="FEATURES_OK to stay set (3.1.1)",
                remedy=_fewer(features),
            )

    def confirm_running(self) -> None:
        """Set DRIVER_OK, and read it back.

        Raises:
            DeviceNeedsReset: The device does not keep DRIVER_OK, or sets DEVICE_NEEDS_RESET or FAILED.
            DeviceGone: The device was removed.
            DeviceResetByOther: The status reads 0.
        """
        seen = self._cleared(Status.DRIVER_OK)
        if seen is not None:
            raise DeviceNeedsReset(
                f"{self._address} does not keep DRIVER_OK",
                seen=seen,
                expected="DRIVER_OK to stay set (3.1.1)",
                remedy="the device failed at the last step; its log or its host's may say why",
            )

    def explains(self) -> DeviceAbsent | DeviceResetByOther | None:
        """What the status says of a device that failed: it is gone, or another program reset it; None: neither.

        A device that is gone answers with ones, and one that was reset has no configuration any more; both look
        like many other faults.
        """
        try:
            self.check()
        except (DeviceAbsent, DeviceResetByOther) as error:
            return error
        except UvirtioError:
            pass
        return None


def _fewer(features: int) -> str:
    """The remedy for features that are refused: one that can be withheld, by what the device was offered."""
    optional = features & ~f.mask(f.VERSION_1, f.ACCESS_PLATFORM)
    if not optional:
        return "it refuses what every driver needs: its log, or its host's, may say why"
    name = f.feature("", f.bits(optional)[0]).name.removeprefix("bit ")
    return f"it refuses one of these bits or their combination; try fewer: --without {name} (without=['{name}'])"


def poll_until(
    done: Callable[[], bool], timeout: float, clock: Clock, sleep: Callable[[float], None] | None = None
) -> bool:
    """Poll ``done`` at growing intervals, for what causes no interrupt: a reset of the device or a queue.

    Args:
        done: Whether it is finished (2.4.2, 2.6.1).
        timeout: Seconds.
        clock: The device's clock.
        sleep: Sleeps for so many seconds between two polls, and may raise to end them (``WaitLoop.pause``). None:
            the polls go on to their end, as they have to where memory is freed after them.

    Returns:
        Whether it finished within the time-out.
    """
    deadline = clock.monotonic() + timeout
    pause = POLL_FIRST
    while True:
        late = clock.monotonic() >= deadline  # read before done(): the last poll is after the deadline
        if done():
            return True
        if late:
            return False
        (sleep or clock.sleep)(pause)
        pause = min(pause * 2, POLL_LAST)
