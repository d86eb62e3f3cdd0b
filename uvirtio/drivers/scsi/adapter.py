"""A SCSI host device apart from its requests: configuration, and what its answers mean."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

from uvirtio.device import Device, Observer, unobserved
from uvirtio.drivers.requests import RequestDriver
from uvirtio.drivers.scsi import config as configuration
from uvirtio.drivers.scsi import sense as senses
from uvirtio.drivers.scsi.commands import Capacity, Command
from uvirtio.drivers.scsi.config import ScsiConfig
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.request import Answer
from uvirtio.drivers.scsi.sense import Sense
from uvirtio.errors import (
    ProtocolError,
    ScsiAnswer,
    ScsiCheck,
    ScsiStatus,
    ScsiTransport,
    UvirtioError,
    WriteRefused,
)
from uvirtio.spec import features as f
from uvirtio.spec import scsi as spec
from uvirtio.spec.scsi import Key, Response, Status

_LIST = "uvirtio scsi list DEV, or Scsi.scan(), shows what is there"
_REMEDIES = {
    Key.NOT_READY: "a medium or the unit is not ready yet: uvirtio scsi info DEV LUN says more",
    Key.MEDIUM_ERROR: "the host's log says more: the file or disk behind the unit failed",
    Key.HARDWARE_ERROR: "the host's log says more: the unit failed",
    Key.ILLEGAL_REQUEST: "uvirtio scsi info DEV LUN shows the unit's capacity and type",
    Key.UNIT_ATTENTION: "the unit was reset or changed since the last command: look at it again, then repeat",
    Key.DATA_PROTECT: "make the unit writable on the host",
}
_TRANSPORT = {
    Response.OVERRUN: "the command asks for more data than its buffer has",
    Response.ABORTED: "a task management function aborted it; send it again if it is still wanted",
    Response.BAD_TARGET: _LIST,
    Response.RESET: "the unit was reset meanwhile; send it again if it is still wanted",
    Response.BUSY: "send it again later",
    Response.TARGET_FAILURE: "the target failed; the host's log says more",
    Response.FUNCTION_REJECTED: "the device does not know this function",
    Response.INCORRECT_LUN: _LIST,
}
NO_UNIT = 0x25
"""Additional sense code: there is no such unit."""
_CHANGED = (0x21, NO_UNIT, 0x3A)
"""Additional sense codes: address out of range, no such unit, no medium."""
_LOG = "the host's log says more"
_DONE = (Status.GOOD, Status.CONDITION_MET)
_STATUSES, _RESPONSES = frozenset(Status), frozenset(Response)


def _remedy(sense: Sense | None) -> str:
    if sense is None:
        return _LOG
    return _LIST if sense.asc == NO_UNIT else _REMEDIES.get(Key(sense.key), _LOG)


class Adapter(RequestDriver):
    """Base of ``Scsi``: the configuration of a SCSI host device (5.6.4), and the errors that its answers mean."""

    device_id: ClassVar[int] = spec.TYPE
    # Not INOUT and T10_PI: no command here has data in both directions, or protection information.
    features: ClassVar[int] = f.mask(f.Scsi.HOTPLUG, f.Scsi.CHANGE)

    def __init__(self, device: Device, *, allow_write: bool, observe: Observer = unobserved) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open SCSI host device.
            allow_write: Allow commands that change what a unit stores.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
        """
        self.allow_write = allow_write
        self.counts: Counter[str] = Counter()
        """Completed commands, by status, or by response where that is not OK."""
        self._known: dict[Lun, Capacity] = {}
        """The capacities that were read, until something tells that they changed."""
        super().__init__(device, observe=observe)

    @property
    def config(self) -> ScsiConfig:
        """The configuration, as it was when the device was started."""
        with self.session():
            return self._config

    def _read_config(self) -> None:
        self._config = configuration.read(self.device)

    def _require_write(self, what: str) -> None:
        """Check that the caller allows writes (WriteRefused)."""
        if not self.allow_write:
            raise WriteRefused(
                f"cannot {what} through {self.device.address}: it was opened read-only",
                seen="allow_write=False",
                expected="allow_write=True",
                remedy="Scsi(device, allow_write=True), or --allow-write",
            )

    # --- what an answer means -------------------------------------------------------------------------------

    def judge(self, lun: Lun, command: Command, answer: Answer) -> tuple[int, UvirtioError | None]:
        """Say what an answer means (5.6.6.1), and count it.

        Args:
            lun: The unit.
            command: The command.
            answer: The answer.

        Returns:
            How many bytes were moved, and the error if the command failed: ScsiTransport, ScsiCheck, ScsiStatus,
            ScsiAnswer, or ProtocolError where the answer is invalid.
        """
        if answer.response != Response.OK:
            return 0, self.transport_error(f"{command.name} to {lun}", answer.response)
        if answer.status == Status.CHECK_CONDITION:
            return self._checked(lun, command, answer)
        if answer.status not in _STATUSES:
            return 0, self._senseless(
                f"{command.name} to {lun}", f"status {answer.status:#04x}", "a status of SAM-5"
            )
        status = Status(answer.status)
        self.counts[status.name] += 1
        if status not in _DONE:
            return 0, ScsiStatus(
                f"logical unit {lun} of {self.device.address} did not take {command.name}",
                seen=status.name.replace("_", " "),
                expected="GOOD",
                remedy="send it again later; another initiator may hold the unit",
            )
        return self._moved(lun, command, answer)

    def _moved(self, lun: Lun, command: Command, answer: Answer) -> tuple[int, UvirtioError | None]:
        total = command.room or len(command.data)
        if answer.residual > total:
            # QEMU subtracts what it was not given; all that was asked for was moved then.
            self._finding("the residual is larger than the data")
            return total, None
        moved = total - answer.residual
        if command.whole and answer.residual:
            return moved, self.short(lun, command.name, moved, total)
        return moved, None

    def short(self, lun: Lun, name: str, moved: int, total: int) -> ScsiAnswer:
        """Make the error for a transfer that is GOOD and incomplete."""
        return ScsiAnswer(
            f"logical unit {lun} of {self.device.address} says GOOD, and moved less than {name} asks for",
            seen=f"{moved} bytes",
            expected=f"{total} bytes",
            remedy=_LOG,
        )

    def _checked(self, lun: Lun, command: Command, answer: Answer) -> tuple[int, UvirtioError | None]:
        self.counts[Status.CHECK_CONDITION.name] += 1
        if answer.sense_len > len(answer.sense):
            self._finding("sense_len is larger than the area of the sense data")
        sense = senses.decode(answer.sense[: answer.sense_len])
        if sense is not None and sense.key == Key.RECOVERED_ERROR and not sense.deferred:
            self._finding("a unit recovered from an error")  # SPC-5, 4.4.8: the command succeeded
            return self._moved(lun, command, answer)
        if sense is not None and (sense.key == Key.UNIT_ATTENTION or (sense.asc in _CHANGED)):
            self._known.pop(lun, None)
        return 0, ScsiCheck(
            f"logical unit {lun} of {self.device.address} refused {command.name}"
            f": {sense or 'it does not say why'}{', of an earlier command' * bool(sense and sense.deferred)}",
            seen=f"CHECK CONDITION, sense {sense.code}" if sense else "CHECK CONDITION without sense data",
            expected="GOOD",
            remedy=_remedy(sense),
            sense=(sense.key, sense.asc, sense.ascq) if sense else (0, 0, 0),
        )

    def transport_error(self, what: str, response: int) -> UvirtioError:
        """Make the error for a response that is not OK (5.6.6.1, 5.6.6.2), and count it.

        Args:
            what: The command or function, and its unit.
            response: The response byte.

        Returns:
            ScsiTransport, or ProtocolError for an invalid response.
        """
        if response not in _RESPONSES:
            return self._senseless(what, f"response {response:#04x}", "a response of 5.6.6.1")
        known = Response(response)
        self.counts[known.name] += 1
        return ScsiTransport(
            f"{self.device.address} did not carry out {what}",
            seen=known.name,
            expected="OK",
            remedy=_TRANSPORT.get(known, _LOG),
            response=response,
        )

    def _senseless(self, what: str, seen: str, expected: str) -> ProtocolError:
        return ProtocolError(
            f"{self.device.address} completed {what} without an answer",
            seen=seen,
            expected=expected,
            remedy="the device is at fault; its log may say more",
        )
