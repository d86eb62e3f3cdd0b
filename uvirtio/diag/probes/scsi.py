"""The data path of a SCSI host device (5.6): its units are listed, and one block is read."""

from __future__ import annotations

from contextlib import suppress

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, Idle, PathResult, supplied_disk
from uvirtio.drivers.scsi import EventType, Lun, Scsi, Task
from uvirtio.errors import ScsiRefusal


class ScsiPath(Idle):
    """Lists the units of a SCSI host device, and reads a block of the first disk; writes nothing."""

    _GROWTH = 1 << 20
    _DISK = "disk"

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open SCSI host device.
            around: What stands around it.
        """
        self._device = device
        self._witness = around.witness
        self._ident = around.ident

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._scsi = Scsi(self._device, observe=observe)
        self._scsi.rely_on_interrupts()

    def exercise(self) -> PathResult:
        """Ask for the units (REPORT LUNS, INQUIRY), read block 0 of the first disk, and use the control queue."""
        scsi, odd = self._scsi, []
        # One command alone: a device that takes none is not mistaken for one that is busy.
        with suppress(ScsiRefusal):  # there need not be such a target
            scsi.inquiry(Lun(0))
        try:
            units = scsi.scan()
        except ScsiRefusal as error:
            return PathResult("the units were asked for", f"they cannot be listed: {error.seen}", "io-error")
        about = f"{len(units)} logical unit{'s' * (len(units) != 1)}"
        disk = next((unit for unit in units if unit.inquiry.type_name == self._DISK), None)
        if disk is not None:
            about += f"; {disk.lun}: {disk.inquiry.vendor} {disk.inquiry.product}"
            try:
                about += f", {scsi.capacity(disk.lun).blocks} blocks; block 0 begins "
                about += scsi.read(disk.lun, 0, 1)[:8].hex(" ")
            except ScsiRefusal as error:
                odd.append(f"block 0 of {disk.lun} cannot be read: {error.seen}")
            about += f"; control queue: {self._asked(disk.lun)}"
        cause = "io-error" if odd else "data-path"
        odd += scsi.findings
        return PathResult(about, "; ".join(odd), cause)

    def _asked(self, lun: Lun) -> str:
        """What the control queue answers to a function that changes nothing: which commands the unit has."""
        try:
            self._scsi.manage(Task.QUERY_TASK_SET, lun)
        except ScsiRefusal as error:
            return str(error.seen)
        return "answers"

    def change_configuration(self) -> PathResult | None:
        """Have the host change the capacity of the supplied disk, and change it back; the event is waited for."""
        disk = supplied_disk(self._witness, self._ident)
        if disk is None:
            return None
        assert self._witness is not None
        scsi, lun = self._scsi, Lun(0)
        before = scsi.capacity(lun).blocks
        size = int(disk["inserted"]["image"]["virtual-size"])
        self._witness("block_resize", device=disk["device"], size=size + self._GROWTH)
        event = scsi.wait_for_event(timeout=self._device.timeout)
        after = scsi.capacity(lun).blocks
        self._witness("block_resize", device=disk["device"], size=size)
        detail = f"the host changed the capacity of {lun} from {before} to {after} blocks"
        if after == before:
            return PathResult(detail, "the host's change does not show in the capacity")
        if event is None:
            return PathResult(detail, "the capacity changed without an event (5.6.6.3)")
        told = event.type == EventType.PARAM_CHANGE and event.lun == lun
        return PathResult(f"{detail}; event: {event}", "" if told else "the event tells of something else")

    def serve(self, seconds: float) -> int:
        """Wait, and take events."""
        super().serve(seconds)
        return len(self._scsi.events())
