"""What a function and a file say of themselves: configuration space, dumps, device configurations, answers."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

from fuzzers.target import Feed, Lie, Target
from uvirtio.backends.vfio.caps import info_caps
from uvirtio.device import Device
from uvirtio.drivers.blk import config as blk
from uvirtio.drivers.mem import config as mem
from uvirtio.drivers.net import config as net
from uvirtio.drivers.net import frame, pcap
from uvirtio.drivers.scsi import commands, sense
from uvirtio.drivers.scsi import config as scsi
from uvirtio.evidence import difference, files
from uvirtio.interfaces.values import BarInfo
from uvirtio.report import page
from uvirtio.spec import device_config, ids
from uvirtio.spec import features as f
from uvirtio.spec import mem as mem_spec
from uvirtio.transports import pci_caps

_ROOT = Path(__file__).resolve().parents[3]
_FILES = _ROOT / "tests/unit/evidence/files"
_SPACE = 256
_BAR_SIZES = (0, 1, 0x38, 0x1000, 0x4000, 1 << 31, 1 << 32, 1 << 40)


def _capability(kind: int, bar: int, offset: int, length: int, link: int, more: bytes = b"") -> bytes:
    return struct.pack("<BBBBBBxxII", 9, link, 16 + len(more), kind, bar, 0, offset, length) + more


class Capabilities(Target):
    """The walk over virtio's capabilities (4.1.4)."""

    name = "capabilities"
    about = "configuration space and BARs: the walk over capabilities, their choice, vendor data (4.1.4)"
    weight = 40_000
    modules = ("transports/pci_caps",)
    most = 6 + _SPACE
    tokens = tuple(
        _capability(kind, bar, offset, length, link)
        for kind, bar, offset, length, link in (
            (1, 4, 0, 56, 0x50),
            (2, 4, 0x3000, 0x1000, 0x60),
            (3, 4, 0x1000, 1, 0x40),
            (4, 4, 0xFFFF_FFFC, 4, 0x44),
            (5, 0, 0, 0, 0xEC),
            (8, 4, 0, 0x1000, 0x70),
            (9, 0, 0, 0, 0),
            (1, 5, 0x3FC8, 0x38, 0xF0),
        )
    )

    def seeds(self) -> Iterable[bytes]:
        space = bytearray(_SPACE)
        space[:8] = struct.pack("<HHHH", 0x1AF4, 0x1044, 0, 0x10)
        space[0x34] = 0x40
        parts = [
            _capability(1, 4, 0, 0x1000, 0x50),
            _capability(3, 4, 0x1000, 0x1000, 0x60),
            _capability(4, 4, 0x2000, 0x1000, 0x70),
            _capability(2, 4, 0x3000, 0x1000, 0x84, b"\4\0\0\0"),
            _capability(9, 0x34, 0, 0, 0x98),
            _capability(5, 0, 0, 0, 0xB0, bytes(4)),
            _capability(8, 4, 0, 0x1000, 0, bytes(8)),
        ]
        for at, part in zip((0x40, 0x50, 0x60, 0x70, 0x84, 0x98, 0xB0), parts, strict=True):
            space[at : at + len(part)] = part
        yield bytes([4] * 6) + bytes(space)
        yield bytes([7] * 6) + bytes(space)

    def run(self, data: bytes) -> Hashable:
        sizes = [_BAR_SIZES[byte % 8] for byte in data[:6].ljust(6, b"\0")]
        space = data[6 : 6 + _SPACE].ljust(_SPACE, b"\0")

        def read(offset: int, width: int) -> int:
            if offset % width or not 0 <= offset <= _SPACE - width:
                raise Lie(f"{width} bytes at {offset:#x} of configuration space were read")
            return int.from_bytes(space[offset : offset + width], "little")

        def bar(index: int) -> BarInfo | None:
            if not 0 <= index <= 5:
                raise Lie(f"BAR {index} was asked for")
            return BarInfo(index, sizes[index], False) if sizes[index] else None

        caps = pci_caps.walk_capabilities(read, bar)
        for cap in caps:
            usable = cap.verdict == "ok" and cap.type in (*pci_caps.STRUCTURES, "shared_memory")
            if usable and not cap.offset + cap.usable <= sizes[cap.bar]:
                raise Lie(f"{cap} ends outside its BAR")
            if cap.type == "vendor" and cap.vendor_id is not None:
                pci_caps.vendor_data(read, cap, cap.vendor_id)
        hidden = pci_caps.pci_cfg_data(caps)
        if data[:1] > b"\xf0":
            pci_caps.copied(read, _SPACE, hidden)
        chosen = pci_caps.select(caps)
        return tuple(sorted(chosen)), len(caps), sum(cap.verdict == "bad" for cap in caps)


class Dumps(Target):
    """Files that are evidence of devices."""

    name = "dumps"
    about = "dumps of all forms (JSON, lspci, config, umockdev, HTML), their comparison and their page"
    weight = 2_000
    modules = ("evidence/", "report/")
    most = 6000
    tokens = (
        b"\n",
        b"\t",
        b'{"',
        b'":',
        b"[",
        b"]",
        b"null",
        b"1af4:1041",
        b"00:02.0 ",
        b"Capabilities: [40] ",
        b"Region 4: Memory at ",
        b"P: /devices/",
        b"E: PCI_ID=1AF4:1041\n",
        b"H: config=",
        b"A: resource=",
        b"<script",
        b"</script>",
        b"00: ff ff ff ff\n",
        b"[size=16K]",
        b"VirtIO: CommonCfg",
        b"\xef\xbb\xbf",
    )

    def __init__(self) -> None:
        small = sorted(_FILES.iterdir(), key=lambda path: path.stat().st_size)
        self._texts = [path.read_bytes() for path in small if path.is_file() and path.stat().st_size < self.most]

    def seeds(self) -> Iterable[bytes]:
        yield from self._texts
        space = bytearray(64)
        space[:4] = b"\xf4\x1a\x41\x10"
        yield bytes(space)

    def run(self, data: bytes) -> Hashable:
        found = files.parse("file", data)
        for one in found.devices[:2]:
            difference.compare(one, found.devices[0])
        page.page(found.document)
        return found.form, len(found.devices), found.others


_TYPES: tuple[tuple[str, Callable[[Device], object]], ...] = (
    ("blk", blk.read),
    ("net", net.read),
    ("scsi", scsi.read),
    ("mem", mem.read),
)


class Configurations(Target):
    """Device configurations, as drivers and dumps read them."""

    name = "configurations"
    about = "the configurations of blk, net, scsi and mem as their drivers read them, and of all types as dumps do"
    weight = 100_000
    modules = (
        "drivers/blk/config",
        "drivers/net/config",
        "drivers/scsi/config",
        "drivers/mem/config",
        "spec/device_config",
    )
    most = 9 + 96

    def seeds(self) -> Iterable[bytes]:
        for kind in range(len(_TYPES)):
            yield bytes([kind]) + b"\xff" * 8 + bytes(range(1, 97))
        sizes = struct.pack("<QHHQQQQQQ", 2 << 20, 0, 0, 0, 4 << 30, 1 << 30, 1 << 30, 2 << 20, 4 << 20)
        yield bytes([3]) + bytes(8) + sizes[: mem_spec.CONFIG[-1].end]

    def run(self, data: bytes) -> Hashable:
        feed = Feed(data)
        name, read = _TYPES[feed.byte() % len(_TYPES)]
        word = feed.number(8)
        config = feed.rest()

        def one(offset: int, width: int) -> int:
            if not 0 <= offset <= len(config) - width:
                raise Lie(f"{width} bytes at {offset} of a configuration of {len(config)} were read")
            return int.from_bytes(config[offset : offset + width], "little")

        transport = SimpleNamespace(config_length=len(config), read_config=one)
        device: Any = SimpleNamespace(
            address="fuzzed", transport=transport, has=lambda bit: f.has(word, bit), snapshot=lambda read: read()
        )
        device.read_config = lambda *fields: Device.read_config(device, *fields)
        decoded = device_config.decode(name, word, config)
        every = device_config.decode(ids.type_name(len(config) % 46), word, config)
        made = read(cast(Device, device))
        if isinstance(made, mem.MemConfig) and not 0 <= made.plugged_blocks <= made.blocks:
            raise Lie(f"{made} was taken")
        return name, len(decoded) // 8, bool(every)


def _frame(data: bytes) -> Hashable:
    made = frame.Frame.received(data, 12, None) if len(data) >= 12 else frame.Frame(data)
    header = made.header
    frame.checksum(made.data)
    frame.check_header(header, len(made), 0xFFFF_FFFF_FFFF_FFFF)
    return header.gso


def _capture(data: bytes) -> Hashable:
    return min(3, sum(1 for _ in pcap.read(io.BytesIO(data), "file")))


def _vfio(data: bytes) -> Hashable:
    first, head = struct.unpack_from("<HB", data.ljust(3, b"\0"))
    return min(3, len(info_caps(data[3:], first % 256, head % 128)))


_ANSWERS: tuple[Callable[[bytes], Hashable], ...] = (
    lambda data: commands.decode_inquiry(data).removable,
    lambda data: len(commands.decode_vpd(data[0] if data else 0, data[1:])) > 0,
    lambda data: min(len(commands.decode_identifications(data)), 3),
    lambda data: commands.decode_luns(data)[1] > 0,
    lambda data: commands.decode_capacity_10(data) is None,
    lambda data: commands.decode_capacity_16(data).block_size == 512,
    lambda data: commands.decode_mode(data).write_protected,
    lambda data: sense.decode(data) is None,
    _frame,
    _capture,
    _vfio,
)


class Answers(Target):
    """What devices and the kernel answer, in bytes."""

    name = "answers"
    about = "answers of SCSI units and sense data, headers of network frames, pcap files, VFIO's capabilities"
    weight = 280_000
    modules = ("drivers/scsi/", "drivers/net/frame", "drivers/net/pcap", "backends/vfio/caps")
    most = 320
    tokens = (b"\xd4\xc3\xb2\xa1\2\0\4\0", b"\1\0\0\0", b"\0\0\2\0", b"\x70\0\5", b"\x72\5\x24\0", b"\0\x83\0\x10")

    def seeds(self) -> Iterable[bytes]:
        for kind in range(len(_ANSWERS)):
            yield bytes([kind]) + bytes(range(64))
        yield (
            bytes([9])
            + struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
            + struct.pack("<IIII", 1, 2, 3, 3)
        )
        yield (
            bytes([9])
            + struct.pack("<IHHiIII", 0xA1B2C3D4, 2, 4, 0, 0, 65535, 1)
            + struct.pack("<IIII", 1, 2, 3, 3)
            + b"abc"
        )
        yield bytes([7]) + bytes([0x70, 0, 5, 0, 0, 0, 0, 10, 0, 0, 0, 0, 0x24, 0, 0, 0, 0, 0])
        yield (
            bytes([10])
            + struct.pack("<HB", 8, 8)
            + bytes(8)
            + struct.pack("<HHI", 1, 1, 24)
            + bytes(8)
            + struct.pack("<HHI", 2, 1, 0)
        )

    def run(self, data: bytes) -> Hashable:
        kind = data[0] % len(_ANSWERS) if data else 0
        return kind, _ANSWERS[kind](data[1:])


class Devices(Target):
    """Whole devices whose configuration is anything."""

    name = "devices"
    about = "scripted devices of each type with any configuration and features: start, a look, and leaving"
    weight = 300
    modules = ("device/", "drivers/")
    most = 200

    def seeds(self) -> Iterable[bytes]:
        for kind in range(8):
            yield bytes([kind, 0, 0, 0]) + b"\xff" * 8
            yield bytes([kind, 1, 0, 0])

    def run(self, data: bytes) -> Hashable:
        from uvirtio import opening
        from uvirtio.scripted import address as scripted

        feed = Feed(data)
        name = ("balloon", "mem", "input", "rng", "blk", "scsi", "net", "blk")[feed.byte() % 8]
        how = ("", ",transport=mmio", ",packed")[feed.byte() % 3]
        core: Any = scripted.build(f"scripted:{name}{how}")
        model = core.model
        for _ in range(feed.byte() % 8):
            at, piece = feed.byte(), feed.take(1 + feed.byte() % 8)
            if len(model.config):
                at %= len(model.config)
                piece = piece[: len(model.config) - at]
                model.config[at : at + len(piece)] = piece
        try:
            with opening.open(core, timeout=0.05) as device:
                kind = _driver(name)
                with kind(device) as driver:
                    repr(driver)
                    for look in ("config", "capacity", "describe", "actual", "num_pages"):
                        value = getattr(driver, look, None)
                        if callable(value) and name != "scsi":
                            value()
        finally:
            if core.memory.open_blocks():
                raise Lie("memory stays allocated")
        return name, how


def _driver(name: str) -> Any:
    import uvirtio

    return getattr(uvirtio, name.capitalize())
