"""Which probe a device type has, what it proves, and what it does to others. docs/probes.md has the same table."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from uvirtio.device import Device
from uvirtio.diag.probes.balloon import BalloonPath
from uvirtio.diag.probes.blk import BlkPath
from uvirtio.diag.probes.console import ConsolePath
from uvirtio.diag.probes.crypto import CryptoPath
from uvirtio.diag.probes.fs import FsPath
from uvirtio.diag.probes.gpu import GpuPath
from uvirtio.diag.probes.input import InputPath
from uvirtio.diag.probes.iommu import IommuPath
from uvirtio.diag.probes.mem import MemPath
from uvirtio.diag.probes.net import NetPath
from uvirtio.diag.probes.ninep import NinePPath
from uvirtio.diag.probes.outcome import Around, DataPath, Harm
from uvirtio.diag.probes.pmem import PmemPath
from uvirtio.diag.probes.rng import RngPath
from uvirtio.diag.probes.rtc import RtcPath
from uvirtio.diag.probes.scsi import ScsiPath
from uvirtio.diag.probes.sound import SoundPath
from uvirtio.diag.probes.vsock import VsockPath


@dataclass(frozen=True, slots=True)
class Probe:
    """The probe of one device type."""

    path: Callable[[Device, Around], DataPath]
    """What carries it out."""
    exchange: str
    """What is exchanged."""
    proves: str
    """What is known when it passes."""
    harm: Harm = Harm.NONE
    """What the exchange does to others."""
    more: str = ""
    """What is done beyond that where it may be done: on a device that was made for it, or with ``--intrusive``."""
    more_harm: Harm = Harm.NONE
    """What that does to others."""


PROBES: Final[Mapping[str, Probe]] = {
    "net": Probe(
        NetPath,
        "two ARP probes for 10.0.2.2, which claim no address; a command of the control queue",
        "frames go out; in QEMU's own network, that answers come in",
        Harm.SEEN,
    ),
    "blk": Probe(BlkPath, "sector 0 and the serial are read", "data of the disk comes in"),
    "console": Probe(
        ConsolePath,
        "control messages: DEVICE_READY, PORT_READY, PORT_OPEN",
        "control messages both ways",
        Harm.NONE,
        "bytes of port 0 and a character of emerg_wr, read and sent at the other end",
        Harm.SEEN,
    ),
    "rng": Probe(RngPath, "64 bytes, twice", "the bytes differ"),
    "balloon": Probe(BalloonPath, "a page of ours in and out, twice", "`actual` follows"),
    "scsi": Probe(ScsiPath, "REPORT LUNS, INQUIRY, READ of block 0", "data of the disk comes in"),
    "9p": Probe(NinePPath, "Tversion, Tattach, Tversion", "the server answers, and has a root directory"),
    "gpu": Probe(
        GpuPath,
        "GET_DISPLAY_INFO, GET_EDID",
        "answers of 408 and 1056 bytes arrive whole",
        Harm.NONE,
        "a picture: CREATE_2D, ATTACH_BACKING, TRANSFER, SET_SCANOUT, FLUSH with a fence",
        Harm.SEEN,
    ),
    "rtc": Probe(RtcPath, "CFG, CLOCK_CAP, READ twice", "the first clock goes on"),
    "input": Probe(InputPath, "its description; an LED is switched off; an event of the host", "events arrive"),
    "vsock": Probe(
        VsockPath,
        "guest_cid is read",
        "with the rest: packets both ways, if a port of the host answers",
        Harm.NONE,
        "REQUEST to port 9 of the host; a RESPONSE is ended with RST",
        Harm.SEEN,
    ),
    "crypto": Probe(
        CryptoPath, "two sessions of AES-128-CBC, a block in each", "the known answer of NIST SP 800-38A, and back"
    ),
    "iommu": Probe(
        IommuPath,
        "PROBE of its own endpoint",
        "it knows the endpoint; with the rest: what is wrong is refused",
        Harm.NONE,
        "ATTACH, MAP twice, UNMAP of a part and of all, DETACH twice",
        Harm.CUTS_OFF,
    ),
    "mem": Probe(MemPath, "the state of the first block", "the device knows its blocks; nothing is plugged"),
    "sound": Probe(
        SoundPath,
        "PCM_INFO",
        "it knows its streams; with the rest: periods are taken and given",
        Harm.NONE,
        "SET_PARAMS, PREPARE, START, a period of silence out and one in, STOP, RELEASE",
        Harm.SEEN,
    ),
    "fs": Probe(FsPath, "FUSE_INIT, FUSE_GETATTR of the root, FUSE_DESTROY", "the server has a root directory"),
    "pmem": Probe(
        PmemPath,
        "FLUSH, twice; where this process has the file of the memory, bytes both ways",
        "a round trip; that the memory is the file's",
    ),
}
"""By the name of the type, in the order of their numbers."""
