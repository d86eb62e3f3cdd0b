"""Good requests of types without a driver: those that the probes of the diagnosis make, judged in the same way."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar, Final

from uvirtio.conform.lane import Posted
from uvirtio.conform.memory import Buffer
from uvirtio.conform.steps import Steps
from uvirtio.conform.verdict import Unfit
from uvirtio.diag.probes import console as console_probe
from uvirtio.diag.probes import crypto as crypto_probe
from uvirtio.diag.probes import fs as fs_probe
from uvirtio.diag.probes import gpu as gpu_probe
from uvirtio.diag.probes import iommu as iommu_probe
from uvirtio.diag.probes import ninep as ninep_probe
from uvirtio.diag.probes import pmem as pmem_probe
from uvirtio.diag.probes import rtc as rtc_probe
from uvirtio.diag.probes import sound as sound_probe
from uvirtio.diag.probes import vsock as vsock_probe
from uvirtio.diag.probes.talk import Ask, Room, judged
from uvirtio.spec import crypto, iommu, sound, vsock
from uvirtio.spec import features as f
from uvirtio.spec.iommu import Status


class Asked:
    """One request of a probe."""

    queue = 0
    features = 0
    sample: ClassVar[Ask]
    """The request, as far as it is the same for all devices of the type."""

    def __init_subclass__(cls) -> None:
        cls.queue = cls.sample.queue

    def ask(self, t: Steps) -> Ask:
        """The request to this device.

        Args:
            t: A trial whose device is running.
        """
        return self.sample

    def elements(self, t: Steps) -> tuple[Buffer, ...]:
        """What the device reads, and the rooms for its answer."""
        ask = self.ask(t)
        return (*(t.readable(piece) for piece in ask.given), *(t.writable(size) for size in ask.rooms))

    def wrong(self, elements: tuple[Buffer, ...], posted: Posted) -> str | None:
        """What the probe says of the answer."""
        rooms = [Room(one.data, not one.written) for one in elements if one.writable]
        wrong = judged(self.sample, rooms)
        return None if wrong is None else f"{self.sample.what}: {wrong}"


class ConsoleAsked(Asked):
    """Bytes without a meaning, NUL, are transmitted from port 0 (5.3.6)."""

    sample = console_probe.transmission(bytes(16))


class NinePAsked(Asked):
    """Tversion."""

    sample = ninep_probe.version()


class GpuAsked(Asked):
    """GET_DISPLAY_INFO (5.7.6.8)."""

    sample = gpu_probe.display_info()


class RtcAsked(Asked):
    """CFG (5.23.6)."""

    sample = rtc_probe.configuration()


class CryptoAsked(Asked):
    """A block in a session that there is not: no session outlives a reset, and none is made (5.9.7)."""

    sample = crypto_probe.carry_out(
        crypto.Opcode.ENCRYPT, crypto_probe.NO_SESSION, crypto_probe.PLAIN, expected=None
    )


class PmemAsked(Asked):
    """A flush (5.19.6)."""

    sample = pmem_probe.flush()


class SoundAsked(Asked):
    """PCM_INFO of stream 0 (5.14.6.6.1)."""

    sample = sound_probe.pcm_info(1)

    def ask(self, t: Steps) -> Ask:
        """It has to have a stream."""
        if not t.config_field(sound.CONFIG, "streams"):
            raise Unfit("it has no stream")
        return self.sample


class IommuAsked(Asked):
    """PROBE of endpoint 0, which the device need not have (5.13.6.7)."""

    features = f.mask(f.Iommu.PROBE, f.Iommu.BYPASS, f.Iommu.BYPASS_CONFIG)
    sample = iommu_probe.probe(0, 64, Status.OK, Status.NOENT)

    def ask(self, t: Steps) -> Ask:
        """With the room that this device wants."""
        if not t.has(f.Iommu.PROBE):
            raise Unfit("PROBE is not offered")
        size = t.config_field(iommu.CONFIG, "probe_size")
        t.need(0 < size <= iommu_probe.PROBE_MAX, f"probe_size is {size}")
        return iommu_probe.probe(0, size, Status.OK, Status.NOENT)


class VsockAsked(Asked):
    """RST of a connection that there is not, which the host ignores (5.10.6)."""

    features = f.mask(f.Vsock.STREAM)
    sample = vsock_probe.sending(bytes(vsock.HEADER.size))

    def ask(self, t: Steps) -> Ask:
        """From this guest."""
        cid = t.config_field(vsock.CONFIG, "guest_cid")
        return vsock_probe.sending(vsock_probe.packet(cid, vsock.Op.RST))


class FsAsked(Asked):
    """FUSE_INIT (5.11.6)."""

    sample = fs_probe.init(0x7569_0001)


ASKED: Final[Mapping[str, type[Asked]]] = {
    "console": ConsoleAsked,
    "9p": NinePAsked,
    "gpu": GpuAsked,
    "rtc": RtcAsked,
    "vsock": VsockAsked,
    "crypto": CryptoAsked,
    "iommu": IommuAsked,
    "sound": SoundAsked,
    "fs": FsAsked,
    "pmem": PmemAsked,
}
"""By type name."""
