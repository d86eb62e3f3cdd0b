"""Which logical units there are, and what they are: REPORT LUNS, INQUIRY, READ CAPACITY, MODE SENSE."""

from __future__ import annotations

from dataclasses import dataclass
from operator import index

from uvirtio.drivers.scsi import commands as c
from uvirtio.drivers.scsi.adapter import NO_UNIT
from uvirtio.drivers.scsi.commands import Capacity, Identification, Inquiry, Mode
from uvirtio.drivers.scsi.initiator import Initiator
from uvirtio.drivers.scsi.lun import TARGETS, Lun, single_level
from uvirtio.drivers.scsi.request import Request
from uvirtio.errors import BadSize, BeyondEnd, ScsiCheck, ScsiTransport
from uvirtio.spec.scsi import Key, Response

UNITS_MAX = 4096
"""Units that ``scan`` looks at."""
_LIST_LEAST = 16  # of REPORT LUNS (SPC-5, 6.33)


@dataclass(frozen=True, slots=True)
class Unit:
    """A logical unit that ``scan`` found."""

    lun: Lun
    inquiry: Inquiry


class Units(Initiator):
    """Base of ``Scsi``: finds logical units, and asks them what they are."""

    # --- which units there are ------------------------------------------------------------------------------

    def report_luns(self, target: int, *, timeout: float | None = None) -> list[Lun]:
        """Ask a target which units it has (REPORT LUNS). LUN 0 is in the list even where there is none.

        Args:
            target: The target.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiTransport: There is no such target.
            ScsiCheck, ScsiStatus, ScsiAnswer: The command failed.
            UsageError: There cannot be such a target.
        """
        with self.session(timeout):
            zero = Lun(target)
            return self._listed(
                zero, self._run(zero, [c.report_luns(self._room(c.LUN_LIST_SIZE))], timeout)[0], timeout
            )

    def scan(self, *, timeout: float | None = None) -> list[Unit]:
        """Find all units: ask each target for its list, and each unit of it who it is (INQUIRY).

        Args:
            timeout: Seconds in all; None: the device's own for each command.

        Returns:
            The units that are there, by target and number. More than ``UNITS_MAX`` are a finding, and left out.

        Raises:
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: A command failed, other than for what is not there.
        """
        with self.session(timeout):
            zeroes = [Lun(target) for target in range(min(self._config.max_target, TARGETS - 1) + 1)]
            ask = c.report_luns(self._room(c.LUN_LIST_SIZE))
            luns: set[Lun] = set()
            for request in self._all([(zero, ask) for zero in zeroes], timeout):
                if _is_absent(request):
                    continue
                if isinstance(request.error, ScsiCheck) and request.error.key == Key.ILLEGAL_REQUEST:
                    luns.add(request.lun)  # older than REPORT LUNS
                    continue
                luns.update(self._listed(request.lun, request.result(), timeout))
            wanted = sorted(luns)
            if len(wanted) > UNITS_MAX:
                self._finding(f"there are more than {UNITS_MAX} units")
                del wanted[UNITS_MAX:]
            found = [
                Unit(request.lun, c.decode_inquiry(request.result()))
                for request in self._all([(lun, c.inquiry()) for lun in wanted], timeout)
                if not _is_absent(request)
            ]
            return [unit for unit in found if unit.inquiry.present]

    def _listed(self, zero: Lun, data: bytes, timeout: float | None) -> list[Lun]:
        entries, size = c.decode_luns(data)
        if size > len(data) and len(data) < self._room(size):
            data = self._run(zero, [c.report_luns(self._room(size))], timeout)[0]
            entries, size = c.decode_luns(data)
        if size > len(data):
            self._finding("a list of units is longer than it can be")
        numbers = [single_level(entry) for entry in entries]
        if None in numbers:
            self._finding("a list of units has addresses that a request cannot have")
        return sorted({Lun(zero.target, number) for number in numbers if number is not None})

    def _room(self, size: int) -> int:
        return max(_LIST_LEAST, min(size, self.request_size))

    # --- one unit -------------------------------------------------------------------------------------------

    def inquiry(self, lun: Lun, *, timeout: float | None = None) -> Inquiry:
        """Ask who a unit is (INQUIRY). ``present`` is False where there is none at this number.

        Args:
            lun: The unit.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiTransport: There is no such target.
            ScsiCheck, ScsiStatus, ScsiAnswer: The command failed.
        """
        return c.decode_inquiry(self.execute(lun, c.inquiry(), timeout=timeout))

    def vpd(self, lun: Lun, page: int, *, timeout: float | None = None) -> bytes | None:
        """Read a page of vital product data (INQUIRY with EVPD).

        Args:
            lun: The unit.
            page: The page, such as 0x83.
            timeout: Seconds to wait; the device's own where None.

        Returns:
            Its payload, at most 248 bytes; None where the unit does not have the page.

        Raises:
            BadSize: There cannot be such a page.
            ScsiTransport: There is no such target.
            ScsiCheck, ScsiStatus, ScsiAnswer: The command failed.
        """
        try:
            data = self.execute(lun, c.vpd(page), timeout=timeout)
        except ScsiCheck as error:
            if error.key == Key.ILLEGAL_REQUEST:
                return None
            raise
        return c.decode_vpd(page, data)

    def vpd_pages(self, lun: Lun, *, timeout: float | None = None) -> list[int]:
        """Return the pages of vital product data that a unit has; as ``vpd``."""
        return sorted(self.vpd(lun, c.VPD_SUPPORTED, timeout=timeout) or b"")

    def serial(self, lun: Lun, *, timeout: float | None = None) -> str:
        """Read the serial number of a unit (VPD page 0x80); empty if it has none. As ``vpd``."""
        return c.text(self.vpd(lun, c.VPD_SERIAL, timeout=timeout) or b"")

    def identifications(self, lun: Lun, *, timeout: float | None = None) -> list[Identification]:
        """Read the names of a unit (VPD page 0x83), as ``vpd``.

        A disk of QEMU's without ``wwn=`` has the name of its drive there, which is no identity.
        """
        return c.decode_identifications(self.vpd(lun, c.VPD_IDENTIFICATION, timeout=timeout) or b"")

    def capacity(self, lun: Lun, *, timeout: float | None = None) -> Capacity:
        """Ask how large a unit is (READ CAPACITY).

        Args:
            lun: The unit.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiCheck: There is no medium, or no such unit.
            ScsiTransport: There is no such target.
            ScsiStatus, ScsiAnswer: The command failed.
        """
        with self.session(timeout):
            try:
                found = c.decode_capacity_16(self._run(lun, [c.read_capacity_16()], timeout)[0])
            except ScsiCheck as error:
                if error.key != Key.ILLEGAL_REQUEST or error.asc == NO_UNIT:
                    raise
                made = c.decode_capacity_10(self._run(lun, [c.read_capacity_10()], timeout)[0])
                if made is None:
                    raise
                found = made
            self._known[lun] = found
            return found

    def mode(self, lun: Lun, *, timeout: float | None = None) -> Mode:
        """Ask whether a unit is write-protected and has a write cache (MODE SENSE).

        Args:
            lun: The unit.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The command failed.
        """
        return c.decode_mode(self.execute(lun, c.mode_sense(), timeout=timeout))

    def check_ready(self, lun: Lun, *, timeout: float | None = None) -> None:
        """Ask whether a unit is ready (TEST UNIT READY): nothing happens if it is.

        Args:
            lun: The unit.
            timeout: Seconds to wait; the device's own where None.

        Raises:
            ScsiCheck: It is not, or there is none.
            ScsiStatus, ScsiTransport: The command failed.
        """
        self.execute(lun, c.test_unit_ready(), timeout=timeout)

    def check_range(self, lun: Lun, block: int, blocks: int, *, timeout: float | None = None) -> int:
        """Check that blocks are within the capacity of a unit.

        Args:
            lun: The unit.
            block: The first block.
            blocks: How many.
            timeout: Seconds to wait for the capacity, where it is not known; the device's own where None.

        Returns:
            The size of a block, in bytes.

        Raises:
            BadSize: A number is negative, or a block exceeds ``request_size``.
            BeyondEnd: They end after the capacity.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: The unit does not say how large it is.
        """
        block, blocks = index(block), index(blocks)
        if block < 0 or blocks < 0:
            raise BadSize("blocks are counted from 0", seen=(block, blocks), expected="0 or more")
        with self.session(timeout):
            known = self._known.get(lun) or self.capacity(lun)
            if block + blocks > known.blocks:
                known = self.capacity(lun)  # it may have grown without an event
        if block + blocks > known.blocks:
            raise self.beyond_end(lun, block, blocks, known)
        if known.block_size > self.request_size:
            raise BadSize(
                "a block does not fit one request",
                seen=f"{known.block_size} bytes",
                expected=f"at most {self.request_size}",
                remedy="give Scsi a larger request_size",
            )
        return known.block_size

    def beyond_end(self, lun: Lun, block: int, blocks: int, known: Capacity) -> BeyondEnd:
        """Make the error for blocks that end after the capacity."""
        return BeyondEnd(
            f"logical unit {lun} of {self.device.address} has no block {block + blocks - 1}",
            seen=f"{blocks} block{'s' * (blocks != 1)} from {block}",
            expected=f"within {known.blocks} blocks",
            remedy="capacity(), or uvirtio scsi info DEV LUN, says how many there are",
        )

    def known_capacity(self, lun: Lun) -> Capacity | None:
        """The capacity of a unit as it was last read; None where it is not known, or may have changed."""
        return self._known.get(lun)


def _is_absent(request: Request) -> bool:
    """Whether there is no such target, or the unit went away."""
    return isinstance(request.error, ScsiTransport) and request.error.response in (
        Response.BAD_TARGET,
        Response.INCORRECT_LUN,
    )
