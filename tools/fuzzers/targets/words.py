"""Text that people and files give: addresses, sizes, command lines, recordings, quirks, the deny list."""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import tempfile
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Any

from fuzzers.target import Lie, Target
from uvirtio.backends.qemu import address as qemu
from uvirtio.backends.vhost_user import address as vhost_user
from uvirtio.cli.size import human, parse_sectors, parse_size
from uvirtio.conform import expect, implementation, quirks
from uvirtio.drivers.input import evemu, libinput
from uvirtio.drivers.input.recording import Recording
from uvirtio.drivers.net.frame import mac_of
from uvirtio.evidence import explain
from uvirtio.host import addresses
from uvirtio.host.proc import parameters
from uvirtio.host.sysfs import parse_resources
from uvirtio.scripted import address as scripted
from uvirtio.spec import features as f

_ROOT = Path(__file__).resolve().parents[3]


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _address(text: str) -> Hashable:
    found = addresses.parse(text)
    if addresses.canonical(found.canonical) != found.canonical:
        raise Lie(f"{text!r} is {found.canonical!r}, which is something else")
    list(addresses.spellings(text))
    return found.family


def _size(text: str) -> Hashable:
    size = parse_size(text, total=1 << 40, multiple=4096)
    if size < 0 or size % 4096:
        raise Lie(f"{text!r} is {size} bytes")
    return len(human(size))


def _scripted(text: str) -> Hashable:
    made = scripted.build(text)
    made.close()
    return type(made).__name__


_PARSERS: tuple[Callable[[str], Hashable], ...] = (
    _address,
    _size,
    lambda text: parse_sectors(text, "x") > 0,
    lambda text: qemu.parse(text).machine,
    lambda text: vhost_user.parse(text).device_id,
    lambda text: _scripted(text),
    lambda text: implementation.parse(text).name != "",
    lambda text: len(mac_of(text)),
    lambda text: f.numbered("net", text) is None,
    lambda text: len(parameters(text)),
    lambda text: len(parse_resources(text.splitlines())),
    lambda text: len(explain.explain(*text.split(" ", 1))),
)
"""What takes a word; the first byte of an input says which, and is its place in this list."""


class Words(Target):
    """Addresses, sizes and other words of the command line."""

    name = "words"
    about = "addresses of all families, sizes, MACs, feature names, the kernel's command line, PCI resources"
    weight = 15_000
    modules = (
        "host/addresses",
        "cli/size",
        "backends/qemu/address",
        "backends/vhost_user/address",
        "scripted/address",
        "conform/implementation",
        "evidence/explain",
    )
    most = 120
    tokens = (
        b"0000:03:00.0",
        b"mmio:0x",
        b"vdpa:",
        b"/dev/vhost-vdpa-",
        b"qemu:",
        b"virtio-",
        b"-pci",
        b",",
        b"=",
        b"scripted:",
        b"vhost-user:",
        b"qsd/",
        b"exec=",
        b"net,mac=",
        b"/dev/",
        b"/sys/",
        b"GiB",
        b"%",
        b"1e3",
        b"512M",
        b"8s",
        b"transport=mmio",
        b"used_id=",
        b"features=",
        b"UV-",
        b"0x1f",
        b"..",
        b"\xd9\xa3",
        b"microvm/",
        b"ram=",
        b"[mem 0x",
        b"virtio_mmio.device=4K@0x",
    )

    def seeds(self) -> Iterable[bytes]:
        given = (
            "3:00.0",
            "512MiB",
            "8s",
            "qemu:virtio-rng-pci,file=x",
            "vhost-user:blk:/run/x",
            "scripted:blk,packed",
            "qemu/7.2.22",
            "52:54:00:12:34:56",
            "MRG_RXBUF",
            'a="b c" virtio_mmio.device=4K@0x1000:5',
            "0x00000000fe000000 0x00000000fe003fff 0x000000000014220c\n",
            "net 0x130",
        )
        for kind, text in enumerate(given):
            yield bytes([kind]) + text.encode()
        for name in (
            "mmio:0x10000000",
            "vdpa:a",
            "/dev/vhost-vdpa-0",
            "virtio3",
            "eth0",
            "/dev/vda",
            "pci@0000:03:00.0",
        ):
            yield b"\0" + name.encode()
        for name in ("scripted:rng,transport=mmio,used_id=0x10003", "scripted:balloon,features=0x1"):
            yield b"\5" + name.encode()

    def run(self, data: bytes) -> Hashable:
        kind = data[0] % len(_PARSERS) if data else 0
        return kind, _PARSERS[kind](_text(data[1:]))


class _Recordings(Target):
    most = 1500

    def _run(self, parse: Callable[[list[str]], Recording], data: bytes) -> Hashable:
        found = parse(data.decode("utf-8", "replace").splitlines(keepends=True))
        frames = sum(1 for _ in found.frames())
        told = found.description
        return min(frames, 5), None if told is None else (len(told.events), len(told.axes))


class Evemu(_Recordings):
    """Recordings of evemu-record."""

    name = "evemu"
    about = "recordings of evemu-record"
    weight = 90_000
    modules = ("drivers/input/evemu", "drivers/input/recording", "drivers/input/description")
    tokens = (
        b"N: ",
        b"I: 0003 046d c077 0111\n",
        b"P: 00 00 00 00 00 00 00 00\n",
        b"B: 00 0b 00 00 00 00 00 00 00\n",
        b"B: 01 ff ff ff ff ff ff ff ff\n",
        b"A: 00 0 32767 0 0 1\n",
        b"E: 0.000001 0001 001e 1\n",
        b"\n",
        b"E: 0.000001 0000 0000 0000\n",
        b"L: 00 1\n",
        b"S: 00 1\n",
        b"# EVEMU 1.3\n",
    )

    def seeds(self) -> Iterable[bytes]:
        yield (
            b"# EVEMU 1.3\nN: a mouse\nI: 0003 046d c077 0111\nP: 00 00 00 00 00 00 00 00\n"
            b"B: 00 0b 00 00 00 00 00 00 00\nB: 01 00 00 00 40 00 00 00 00\nB: 03 03 00 00 00 00 00 00 00\n"
            b"A: 00 0 32767 0 0 1\nA: 01 0 32767 0 0 1\nE: 0.000001 0001 001e 1\nE: 0.000001 0000 0000 0000\n"
        )

    def run(self, data: bytes) -> Hashable:
        return self._run(evemu.parse, data)


class Libinput(_Recordings):
    """Recordings of libinput record."""

    name = "libinput"
    about = "recordings of libinput record (YAML)"
    weight = 15_000
    modules = ("drivers/input/libinput", "drivers/input/recording", "drivers/input/description")
    tokens = (
        b"devices:\n",
        b"- node: /dev/input/event0\n",
        b"  evdev:\n",
        b'    name: "a"\n',
        b"    id: [3, 1, 2, 3]\n",
        b"    codes:\n",
        b"      0: [0]\n",
        b"      1: [30, 31]\n",
        b"    absinfo:\n",
        b"      0: [0, 9, 0, 0, 0]\n",
        b"  events:\n",
        b"  - evdev:\n",
        b"    - [  0,      0,   0,   0,       0]\n",
        b"[",
        b"]",
        b"- ",
        b"\n",
        b"# ",
    )

    def seeds(self) -> Iterable[bytes]:
        yield (
            b'version: 1\nndevices: 1\ndevices:\n- node: /dev/input/event0\n  evdev:\n    name: "a mouse"\n'
            b"    id: [3, 1133, 49271, 273]\n    codes:\n      0: [0] # EV_SYN\n      1: [30, 272] # EV_KEY\n"
            b"      3: [0, 1]\n    absinfo:\n      0: [0, 32767, 0, 0, 1]\n      1: [0, 32767, 0, 0, 1]\n"
            b"    properties: []\n  events:\n  - evdev:\n    - [  0,      1,   1,  30,       1]\n"
            b"    - [  0,      1,   0,   0,       0]\n"
        )

    def run(self, data: bytes) -> Hashable:
        return self._run(libinput.parse, data)


class Quirks(Target):
    """Lists of known violations, and of expected verdicts."""

    name = "quirks"
    about = "files of known violations (TOML), and of expected verdicts (conform --expect)"
    weight = 5_000
    modules = ("conform/quirks", "conform/expect")
    most = 900
    tokens = (
        b"[[quirk]]\n",
        b'rows = ["D-STAT-01"]\n',
        b'implementation = "qemu"\n',
        b'versions = ">=7.2"\n',
        b"\n",
        b'expect = "fail"\n',
        b'seen = "x"\n',
        b'source = "x"\n',
        b'driver = "none"\n',
        b"= 1\n",
        b"[quirk]\n",
        b'types = ["blk"]\n',
        b"D-STAT-01 pass\n",
        b"[",
        b"{a=",
        b"nan",
    )

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="uvfz-")
        self._file = Path(self._folder.name) / "verdicts"

    def seeds(self) -> Iterable[bytes]:
        yield b"\0" + (
            b'[[quirk]]\nrows = ["D-STAT-01"]\nimplementation = "qemu"\nversions = ">=7.2.22, <=10.0"\n'
            b'expect = "fail"\n'
            b'seen = "x"\nsource = "x"\ndriver = "none"\ntypes = ["blk"]\n'
        )
        yield b"\1D-STAT-01 pass\nD-STAT-02 fail\n"

    def run(self, data: bytes) -> Hashable:
        if data[:1] == b"\1":
            self._file.write_bytes(data[1:])
            return len(expect.read(str(self._file)) or "")
        found = quirks.parse(_text(data[1:]), "file")
        mine = implementation.Implementation("qemu", "7.2.22")
        return len(found), len(quirks.of(found, mine, "blk", "P", "split", 0))

    def close(self) -> None:
        self._folder.cleanup()


class CommandLines(Target):
    """Whole command lines, of verbs that touch no device of the machine."""

    name = "commands"
    about = (
        "command lines of verbs that reach no device: exit codes of the contract, no traceback, JSON that is JSON"
    )
    weight = 500
    modules = ("cli/",)
    most = 120
    tokens = (
        b"net ",
        b"0x130 ",
        b"UV-USAGE ",
        b"--json ",
        b"--help ",
        b"D-STAT-01 ",
        b"'' ",
        b"-- ",
        b"-F ",
        b"-v ",
        b"nan ",
        b"status ",
        b"--nonsense ",
        b"/dev/null ",
        b"1 ",
        b"0x0f ",
        b"\xc3\xa9 ",
        b"\x1b[31m ",
    )

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="uvfz-")
        dump = Path(self._folder.name) / "dump"
        dump.write_bytes((_ROOT / "tests/unit/evidence/files/one-bar-vvv-xxx.txt").read_bytes())
        self._starts = (
            ["features"],
            ["explain"],
            ["list", "-F", str(dump)],
            ["inspect", "-F", str(dump)],
            ["diff", str(dump), str(dump)],
            ["conform", "--explain"],
        )
        """Nothing else is run: whatever follows, it reaches no device."""

    def seeds(self) -> Iterable[bytes]:
        for kind, line in enumerate(("net 0x130", "UV-USAGE", "--json", "00:02.0 --json", "--json", "D-STAT-01")):
            yield bytes([kind]) + line.encode()
        yield b"\1net 0x130"
        yield b"\1" + b"0x0f --json"

    def run(self, data: bytes) -> Hashable:
        from uvirtio.cli import main

        try:
            words = shlex.split(_text(data[1:]).replace("\0", ""))
        except ValueError:
            return None
        start = self._starts[data[0] % len(self._starts)] if data else ["features"]
        out, err = io.StringIO(), io.StringIO()
        code: Any = 0
        try:
            with (
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(err),
                contextlib.chdir(self._folder.name),
            ):
                code = main([*start, *words])
        except SystemExit as end:
            code = end.code
        if code not in (0, 1, 2, 3, 4, 5, None):
            raise Lie(f"{words} ended with {code}")
        said = out.getvalue() + err.getvalue()
        if "Traceback" in said or "uvirtio: UV-BUG" in said:
            raise Lie(f"{words}: {said[-1500:]}")
        if "\x1b" in said:
            raise Lie(f"{words}: a control character was printed")
        if "--json" in words and "--help" not in words and out.getvalue():
            json.loads(out.getvalue())
        return start[0], code

    def close(self) -> None:
        self._folder.cleanup()
