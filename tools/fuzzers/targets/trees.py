"""What is read of files: trees of /sys and /proc, the journal, the deny list, traces."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Hashable, Iterable
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from fuzzers.target import Feed, Lie, Target
from uvirtio import opening
from uvirtio.binding import discover, doctor, journal, plan, standing
from uvirtio.binding.facts import Facts
from uvirtio.binding.rules import check
from uvirtio.drivers.rng import Rng
from uvirtio.errors import UvirtioError
from uvirtio.host import denylist
from uvirtio.host.roots import Roots
from uvirtio.trace import Recorder, Replay, replayed

_MEMORY = "/dev/shm"


def _folder() -> str:
    return tempfile.mkdtemp(prefix="uvfz-", dir=_MEMORY if os.access(_MEMORY, os.W_OK) else None)


def _fake(top: Path) -> Any:
    """The tests' made-up machine."""
    return import_module("tests.fakes.fakesys").FakeSys(top)


_BOUND = "0000:03:00.0"


class Trees(Target):
    """Trees of /sys and /proc."""

    name = "trees"
    about = "files of /sys and /proc with anything in them: what list, plan and doctor make of it"
    weight = 200
    modules = ("binding/", "host/")
    most = 700
    tokens = (
        b"0x1af4\n",
        b"0x1042\n",
        b"0x",
        b"(null)\n",
        b"\n",
        b"\0",
        b"4242 (x) S 1 ",
        b"254:0\n",
        b"-1\n",
        b"virtio0\n",
        b"20 1 254:0 / / rw - ext4 /dev/vda rw\n",
        b"/dev/vda1 partition 1 1 -2\n",
        b"eth0\t00000000\t",
        b"\xff",
        b"00000000-ffffffff : System RAM\n",
        b"virtio_mmio.device=4K@0x1000:5",
        b"name : x\n",
        b"vfio-pci\n",
    )

    def __init__(self) -> None:
        self._top = Path(_folder())
        fake = self._tree = _fake(self._top)
        self._roots: Roots = fake.roots
        device = fake.pci(_BOUND, "blk", group=7, virtio="virtio0")
        fake.child(device, "virtio0/block/vda", "block", {"dev": "254:0\n"})
        fake.child(device, "virtio0/block/vda/vda1", "block", {"dev": "254:1\n"})
        net = fake.pci("0000:04:00.0", "net", group=7)
        fake.child(net, "virtio1/net/eth0", "net", {"operstate": "up\n", "flags": "0x1003\n"})
        fake.pci("0000:05:00.0", "mem", driver=None)
        self._files = sorted(
            path
            for path in self._top.rglob("*")
            if path.is_file() and not path.is_symlink() and "bind" not in path.name
        )
        self._good = {path: path.read_bytes() for path in self._files}

    def seeds(self) -> Iterable[bytes]:
        for number, path in enumerate(self._files):
            text = self._good[path]
            yield bytes([number % 256, min(len(text), 255)]) + text[:255]

    def run(self, data: bytes) -> Hashable:
        feed, changed = Feed(data), []
        try:
            for _ in range(4):
                if not feed.more():
                    break
                path = self._files[feed.byte() % len(self._files)]
                changed.append(path)
                path.write_bytes(feed.take(feed.byte()))
            return self._look(whole=len(data) % 8 == 0)
        finally:
            for path in changed:
                path.write_bytes(self._good[path])

    def _look(self, *, whole: bool) -> Hashable:
        seen: list[str | int] = []
        facts = Facts(self._roots)
        for found in discover.scan(self._roots):
            found.as_dict()
            seen.append(found.type)
            verdicts = check(found, self._roots, facts)
            seen.append(len(verdicts.findings))
        if not whole:
            return tuple(seen)
        with suppress(UvirtioError):
            plan.plans([discover.find(_BOUND, self._roots)], self._roots)
        doctor.checks(self._roots, qemu_version=lambda program: "7.2.22")
        return tuple(seen)

    def close(self) -> None:
        shutil.rmtree(self._top, ignore_errors=True)


class Journals(Target):
    """Entries of the journal."""

    name = "journal"
    about = "a file of the journal with anything in it, beside a good one, which stays readable"
    weight = 1_500
    modules = ("binding/journal", "binding/standing", "binding/restore")
    most = 1500
    tokens = (
        b"NaN",
        b"Infinity",
        b"1e999",
        b"null",
        b"[]",
        b"{}",
        b"true",
        b'"..',
        b"/",
        b"\\ud800",
        b'"driver":',
        b"-1",
        b'"node_before":[1,2,3]',
        b'"address":',
        b'"devices":[',
        b"[[",
        b'"steps":',
        b'"time":',
        b'"pid":',
    )
    _OTHER = "00000000000000ff-2-bbbbbb"
    _SECOND = "0000:0f:00.0"

    def __init__(self) -> None:
        self._top = Path(_folder())
        fake = _fake(self._top)
        fake.pci(_BOUND, "rng", group=7)
        self._roots: Roots = fake.roots
        device = journal.DeviceEntry(
            address=_BOUND,
            bus="pci",
            name=_BOUND,
            target="vfio-pci",
            driver="virtio-pci",
            driver_override=None,
            pci_id="1af4:1044",
            type="rng",
            iommu_group=7,
            virtio_name="virtio0",
            node="/dev/vfio/7",
            node_before=(0, 0, 384),
        )
        self._good = journal.new([device], self._roots, ["bind", _BOUND])
        journal.store(self._good, self._roots)
        home = journal.directory(self._roots)
        text = json.loads((home / f"{self._good.id}.json").read_bytes())
        text["devices"] += [{**text["devices"][0], "address": self._SECOND, "name": self._SECOND, "node": "a"}]
        self._text = json.dumps({**text, "id": self._OTHER}).encode()
        self._file = home / f"{self._OTHER}.json"

    def seeds(self) -> Iterable[bytes]:
        yield self._text
        yield self._text.replace(b"384]", b"Infinity]")

    def run(self, data: bytes) -> Hashable:
        self._file.write_bytes(data)
        entries = journal.entries(self._roots)
        if self._good.id not in [entry.id for entry in entries]:
            raise Lie("a bad file hides a good one")
        damaged = journal.damaged(self._roots)
        if len(entries) == 1 and self._file not in damaged and b"boot_id" not in data:
            raise Lie("a file that holds no entry is not told")
        for entry in entries:
            json.dumps(entry.as_dict(), allow_nan=False)
            for device in entry.devices:
                _ = device.number
                standing.standing(device, self._roots, entry.state)
                standing.claim(device, self._roots)
                standing.node_to_return(device, self._roots)
        journal.entries_of(_BOUND, self._roots)
        return len(entries), len(damaged), entries[0].devices != ()

    def close(self) -> None:
        shutil.rmtree(self._top, ignore_errors=True)


class DenyLists(Target):
    """The administrator's deny list."""

    name = "deny"
    about = "the deny list with anything in it: a device that it names stays denied"
    weight = 1_500
    modules = ("host/denylist", "host/names", "host/addresses")
    most = 300
    tokens = (
        b"0000:03:00.0\n",
        b"3:00.0\n",
        b"*\n",
        b"0000:*\n",
        b"# x\n",
        b"eth0\n",
        b"/dev/vda\n",
        b"[",
        b"]",
        b"?",
        b"\r",
        b"\x85",
        b"\xe2\x80\xa8",
        b"mmio:0x1000\n",
        b"/sys/bus/pci/devices/0000:03:00.0\n",
        b"virtio*\n",
    )

    def __init__(self) -> None:
        self._top = Path(_folder())
        self._roots: Roots = _fake(self._top).roots
        self._file = self._roots.etc / "uvirtio" / "deny"
        self._file.parent.mkdir(parents=True)

    def seeds(self) -> Iterable[bytes]:
        yield b"# nothing\n0000:04:00.0\nvirtio3\n/dev/vhost-vdpa-0\n"
        yield b"*"

    def run(self, data: bytes) -> Hashable:
        self._file.write_bytes(data + b"\n0000:03:00.0\n")
        found = denylist.denying(["0000:03:00.0", "virtio0"], self._roots)
        if found is None:
            raise Lie("a device that the list names is not denied")
        odd = denylist.without_effect(self._roots)
        return found == "0000:03:00.0", min(len(odd), 3)

    def close(self) -> None:
        shutil.rmtree(self._top, ignore_errors=True)


class Traces(Target):
    """Records of what a driver did, and their replays."""

    name = "traces"
    about = "records (--trace) of anything, and a driver that is run again from one"
    weight = 2_000
    modules = ("trace/",)
    most = 30000
    tokens = (
        b'"op": "read"',
        b'"op": "memory"',
        b'"hex": "ff"',
        b'"n": 1',
        b'"is": null',
        b'"is": -1',
        b'"raises": {}',
        b'"block": 0',
        b'"offset": 1',
        b'"args": []',
        b"{",
        b"}\n",
        b"[",
        b"null",
        b"1e999",
        b'"op": "open"',
    )

    def __init__(self) -> None:

        self._top = Path(_folder())
        self._file = self._top / "record.jsonl"
        with Recorder(self._file) as record, opening.open("scripted:rng", record=record) as device:
            self._drive(device)
        self._good = self._file.read_bytes()

    @staticmethod
    def _drive(device: Any) -> None:
        with Rng(device) as rng:
            rng.read(8)

    def seeds(self) -> Iterable[bytes]:
        yield self._good

    def run(self, data: bytes) -> Hashable:
        self._file.write_bytes(data)
        record = Replay(self._file)
        _ = record.command, record.maker
        with opening.open(replayed(self._file)) as device:
            self._drive(device)
        return "replayed"

    def close(self) -> None:
        shutil.rmtree(self._top, ignore_errors=True)
