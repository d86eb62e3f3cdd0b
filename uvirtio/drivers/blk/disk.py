"""A disk apart from its requests: configuration, write cache, checks of arguments, errors of the device."""

from __future__ import annotations

from typing import ClassVar

from uvirtio.device import Device, Observer, unobserved
from uvirtio.drivers.blk import config as configuration
from uvirtio.drivers.blk.config import BlkConfig
from uvirtio.drivers.requests import RequestDriver
from uvirtio.errors import (
    BadSize,
    BeyondEnd,
    BlkIoError,
    BlkUnsupported,
    NotSupported,
    ProtocolError,
    UvirtioError,
    WriteRefused,
)
from uvirtio.spec import blk as spec
from uvirtio.spec import features as f
from uvirtio.spec.blk import SECTOR_SIZE, Status

_RO = f.mask(f.Blk.RO)


class Disk(RequestDriver):
    """Base of ``Blk``: the configuration of a block device (5.2.4), and checks.

    A sector is 512 bytes, whatever the device's block size is; sectors are numbered from 0 to ``capacity`` - 1.
    """

    device_id: ClassVar[int] = spec.TYPE
    features: ClassVar[int] = f.mask(
        f.Blk.SIZE_MAX,
        f.Blk.SEG_MAX,
        f.Blk.GEOMETRY,
        f.Blk.RO,
        f.Blk.BLK_SIZE,
        f.Blk.FLUSH,
        f.Blk.TOPOLOGY,
        f.Blk.CONFIG_WCE,
        f.Blk.MQ,
        f.Blk.DISCARD,
        f.Blk.WRITE_ZEROES,
        f.Blk.LIFETIME,
        f.Blk.SECURE_ERASE,
        # Not ZONED: 5.2.5.1 requires a driver that accepts it to handle all three zone models.
    )

    def __init__(self, device: Device, *, allow_write: bool, observe: Observer = unobserved) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open block device.
            allow_write: Allow calls that write, discard, zero or erase.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
        """
        self.allow_write = allow_write
        self.counts: dict[Status, int] = dict.fromkeys(Status, 0)
        """Completed requests, by status."""
        self._counters = device.counters
        super().__init__(device, observe=observe)
        try:
            # Once more, as Linux does: no device notifies before DRIVER_OK, and QEMU's generation stands still.
            self.refresh()
        except BaseException:
            self.close()
            raise

    # --- the configuration (5.2.4) --------------------------------------------------------------------------

    def _read_config(self) -> None:
        self._config_seen = self.device.counters.config_changes
        self._config = configuration.read(self.device)

    @property
    def config(self) -> BlkConfig:
        """The configuration, read again after each notification that it changed (5.2.6.1)."""
        with self.session():
            if self.device.counters.config_changes != self._config_seen:
                self._read_config()
            return self._config

    def refresh(self) -> BlkConfig:
        """Read the configuration, also without a notification that it changed.

        Raises:
            ConfigError: It is shorter than its features say.
            ConfigUnstable: It changes at every read.
        """
        with self.session():
            self._read_config()
            return self._config

    @property
    def capacity(self) -> int:
        """Sectors of 512 bytes. May change at any time; the device fails requests beyond it with IOERR."""
        return self.config.capacity

    @property
    def known_capacity(self) -> int:
        """The same as ``capacity``, but without the checks of the device, for fast paths."""
        if self._counters.config_changes != self._config_seen:
            self._read_config()
        return self._config.capacity

    def wait_for_change(self, *, timeout: float | None) -> bool:
        """Wait for a notification that the configuration changed since it was last read.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            Whether it changed.
        """
        seen = self._config_seen
        with self.session():
            return self.device.wait(
                lambda: self.device.counters.config_changes != seen, timeout=timeout, what="a change", owed=False
            )

    @property
    def read_only(self) -> bool:
        """Whether the device is read-only (RO)."""
        return self.device.has(f.Blk.RO)

    @property
    def write_cache(self) -> bool:
        """Whether a completed write may still be lost in a power failure, until ``flush()``.

        With CONFIG_WCE the device reports it; with FLUSH alone it is assumed (5.2.5.1); without FLUSH it is False.
        """
        if self.device.has(f.Blk.CONFIG_WCE):
            return bool(self.config.writeback)
        return self.device.has(f.Blk.FLUSH)

    # --- checks ---------------------------------------------------------------------------------------------

    def check_range(self, sector: int, sectors: int) -> None:
        """Check that sectors are within the capacity (5.2.6.1).

        Args:
            sector: The first sector.
            sectors: How many.

        Raises:
            BadSize: A number is negative.
            BeyondEnd: They end after the capacity.
        """
        if sector < 0 or sectors < 0:
            raise BadSize("sectors are counted from 0", seen=(sector, sectors), expected="0 or more")
        if sector + sectors <= self.known_capacity:
            return
        if sector + sectors > self.refresh().capacity:  # it may have grown without a notification
            raise BeyondEnd(
                f"{self.device.address} has no sector {sector + sectors - 1}",
                seen=f"{sectors} sector{'s' * (sectors != 1)} from {sector}",
                expected=f"within {self._config.capacity} sectors",
                remedy="capacity, or uvirtio blk info DEV, says how many there are",
            )

    def _writable(self, sector: int, data: bytes | bytearray | memoryview) -> tuple[memoryview, int]:
        """Check a write: ``data`` as bytes, and how many sectors it is."""
        if not self.allow_write or self.device.features & _RO:
            self._require_write("write to")
        view = memoryview(data).cast("B")
        sectors, rest = divmod(len(view), SECTOR_SIZE)
        if rest:
            raise BadSize(
                "only whole sectors can be written",
                seen=f"{len(view)} bytes",
                expected=f"a multiple of {SECTOR_SIZE} (5.2.6.1)",
                remedy="read the last sector, change it, write it",
            )
        if not 0 <= sector <= self.known_capacity - sectors:
            self.check_range(sector, sectors)
        return view, sectors

    def _require_write(self, what: str) -> None:
        """Check that the device and the caller allow writes (WriteRefused)."""
        if self.read_only:
            raise WriteRefused(
                f"{self.device.address} is read-only",
                seen="RO",
                expected="a writable device",
                remedy="make it writable on the host",
            )
        if not self.allow_write:
            raise WriteRefused(
                f"cannot {what} {self.device.address}: it was opened read-only",
                seen="allow_write=False",
                expected="allow_write=True",
                remedy="Blk(device, allow_write=True), or --allow-write",
            )

    def _need(self, bit: int, what: str) -> None:
        """Check that the feature was negotiated that ``what`` needs (NotSupported)."""
        with self.session():
            if not self.device.has(bit):
                raise NotSupported(
                    f"{self.device.address} cannot {what}",
                    seen=f"features {self.device.features:#x}",
                    expected=f"{f.Blk(bit).name}, bit {int(bit)}",
                    remedy="the host must offer it",
                )

    # --- errors of the device -------------------------------------------------------------------------------

    def refusal(self, kind: spec.Request, sector: int, sectors: int, answer: int) -> UvirtioError:
        """Make the error for a status that is not OK (5.2.6), and count the status.

        Args:
            kind: The type of the request.
            sector: Its first sector.
            sectors: Its sectors; 0 where it has none.
            answer: The status byte.

        Returns:
            BlkIoError, BlkUnsupported, or ProtocolError for an invalid status.
        """
        address = self.device.address
        if answer not in (Status.IOERR, Status.UNSUPP):
            return ProtocolError(
                f"{address} completed {kind.name} without a status",
                seen=f"status {answer:#04x}",
                expected="OK, IOERR or UNSUPP (5.2.6)",
                remedy="the device is at fault; its log may say more",
            )
        self.counts[Status(answer)] += 1
        if answer == Status.UNSUPP:
            return BlkUnsupported(
                f"{address} does not support {kind.name}",
                seen="UNSUPP",
                expected="OK",
                remedy="the device lacks it, whatever features it offers",
            )
        remedy = "the host's log says more: the file or disk behind the device failed"
        block = self._config.blk_size or SECTOR_SIZE
        if sector * SECTOR_SIZE % block or sectors * SECTOR_SIZE % block:
            remedy = f"the device's blocks have {block} bytes: ask for whole ones"
        what = f"{kind.name} of {sectors} sectors at {sector}" if sectors else kind.name
        return BlkIoError(f"{address} failed at {what}", seen="IOERR", expected="OK", remedy=remedy)
