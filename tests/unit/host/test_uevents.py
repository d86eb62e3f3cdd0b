"""Uevents in the kernel's format, and what libudev hands over."""

from __future__ import annotations

import builtins
import errno
import os
import socket
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from uvirtio.errors import Closed, OperationFailed
from uvirtio.host import uevents
from uvirtio.host.roots import Roots
from uvirtio.host.uevents import KernelEvents, UdevEvents, Uevent, parse

# As Linux 6.12 sends them in a virtual machine.
ADDED = (
    b"add@/devices/pci0000:00/0000:00:03.0/0000:02:00.0\0ACTION=add\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:03.0/0000:02:00.0\0SUBSYSTEM=pci\0PCI_CLASS=FF00\0PCI_ID=1AF4:1044\0"
    b"PCI_SUBSYS_ID=1AF4:1100\0PCI_SLOT_NAME=0000:02:00.0\0"
    b"MODALIAS=pci:v00001AF4d00001044sv00001AF4sd00001100bc00scFFi00\0SEQNUM=1503\0"
)
RESIZED = (
    b"change@/devices/pci0000:00/0000:00:04.0/virtio2/block/vda\0ACTION=change\0"
    b"DEVPATH=/devices/pci0000:00/0000:00:04.0/virtio2/block/vda\0SUBSYSTEM=block\0RESIZE=1\0MAJOR=254\0MINOR=0\0"
    b"DEVNAME=vda\0DEVTYPE=disk\0DISKSEQ=1\0SEQNUM=1510\0"
)


def test_a_device_that_was_plugged_in():
    event = parse(ADDED)
    assert event is not None
    assert (event.action, event.subsystem, event.seqnum, event.name) == ("add", "pci", 1503, "0000:02:00.0")
    assert event.devpath == "/devices/pci0000:00/0000:00:03.0/0000:02:00.0"
    assert event.properties["PCI_ID"] == "1AF4:1044"


def test_a_disk_that_was_resized():
    event = parse(RESIZED)
    assert event is not None
    assert (event.action, event.subsystem, event.properties["RESIZE"], event.name) == (
        "change",
        "block",
        "1",
        "vda",
    )


@pytest.mark.parametrize(
    "message",
    [
        b"",
        b"libudev\0\xfe\xed\xca\xfe\0\0\0(ACTION=add\0DEVPATH=/x\0SEQNUM=1\0",
        ADDED.replace(b"SEQNUM=1503", b"SEQNUM=many"),
        ADDED.replace(b"SEQNUM=1503", "SEQNUM=\u0661".encode()),  # a digit, and none of ASCII
        ADDED.replace(b"SEQNUM=1503", b"SEQNUM=" + b"9" * 5000),
        ADDED.replace(b"SEQNUM=1503\0", b""),
        ADDED.replace(b"ACTION=add", b"ACTION="),
        ADDED.replace(b"DEVPATH=/", b"DEVPATH="),
    ],
    ids=["empty", "libudev's", "no number", "no digits of ASCII", "too long", "no seqnum", "no action", "no path"],
)
def test_what_is_no_uevent(message):
    assert parse(message) is None


@given(st.binary(max_size=300))
def test_any_bytes_are_an_event_or_none(data):
    assert parse(data) is None or isinstance(parse(b"x@y\0" + data), Uevent)


def test_a_path_that_is_no_text_is_kept_readable():
    event = parse(ADDED.replace(b"PCI_CLASS=FF00", b"NAME=\xff\xfe"))
    assert event is not None and "�" in event.properties["NAME"]


class PlayedSocket:
    """A netlink socket whose answers the test gives: an errno, or (message, port)."""

    def __init__(self, *answers: int | tuple[bytes, int]) -> None:
        self.answers = list(answers)

    def recvfrom(self, size: int) -> tuple[bytes, tuple[int, int]]:
        answer = self.answers.pop(0) if self.answers else errno.EAGAIN
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer[0][:size], (answer[1], 1)


def played(*answers: int | tuple[bytes, int]) -> KernelEvents:
    events = KernelEvents.__new__(KernelEvents)
    events.overruns = 0
    events._socket = PlayedSocket(*answers)  # type: ignore[assignment]
    return events


def test_an_overrun_is_counted_and_reading_goes_on():
    events = played(errno.ENOBUFS, (RESIZED, 0))
    event = events.receive()
    assert event is not None and event.seqnum == 1510
    assert events.overruns == 1
    assert events.receive() is None


def test_what_another_process_sent_is_passed_over():
    assert played((ADDED, 4242)).receive() is None


def test_another_error_of_the_socket_is_told():
    with pytest.raises(OperationFailed, match="uevents"):
        played(errno.EIO).receive()


def test_the_kernels_socket_opens_and_closes():
    try:
        socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 15).close()
    except OSError:
        pytest.skip("no netlink sockets in this sandbox")
    events = KernelEvents()
    assert events.fileno() >= 0
    events.close()
    events.close()
    with pytest.raises(Closed):
        events.fileno()


# --- libudev ------------------------------------------------------------------------------------------------


class PlayedMonitor:
    """pyudev.Monitor: answers that are devices, None or OSErrors."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.twin, self.other = socket.socketpair()

    def poll(self, timeout: float) -> Any:
        assert timeout == 0
        answer = self.answers.pop(0) if self.answers else None
        if isinstance(answer, OSError):
            raise answer
        return answer

    def fileno(self) -> int:
        return self.twin.fileno()


class PlayedDevice:
    def __init__(self, message: bytes) -> None:
        event = parse(message)
        assert event is not None
        self.properties = event.properties


def by_libudev(monitor: PlayedMonitor) -> UdevEvents:
    events = UdevEvents.__new__(UdevEvents)
    events.source, events.overruns, events._monitor = "udev", 0, monitor
    return events


@pytest.mark.parametrize("buffer", [None, 1 << 20])
def test_libudev_is_asked_for_these_subsystems_and_this_buffer(monkeypatch, buffer):
    asked: list[tuple[Any, ...]] = []

    class Monitor:
        @classmethod
        def from_netlink(cls, context: object, group: str) -> Any:
            asked.append(("group", group))
            return cls()

        def __getattr__(self, name: str) -> Any:
            return lambda *words: asked.append((name, *words))

    monkeypatch.setitem(sys.modules, "pyudev", SimpleNamespace(Monitor=Monitor, Context=object))
    UdevEvents("udev", ("pci", "vdpa"), buffer=buffer)
    sized = [] if buffer is None else [("set_receive_buffer_size", buffer)]
    assert asked == [("group", "udev"), ("filter_by", "pci"), ("filter_by", "vdpa"), *sized, ("start",)]


def test_closed_uevents_have_no_descriptor():
    events = by_libudev(PlayedMonitor())
    assert events.fileno() >= 0
    events.close()
    with pytest.raises(Closed):
        events.fileno()


def test_libudevs_events_are_the_same():
    events = by_libudev(PlayedMonitor(PlayedDevice(ADDED), None))
    assert events.receive() == parse(ADDED)
    assert events.receive() is None


def test_libudevs_overrun_is_counted():
    events = by_libudev(PlayedMonitor(OSError(errno.ENOBUFS, "No buffer space"), PlayedDevice(RESIZED)))
    assert events.receive() == parse(RESIZED)
    assert events.overruns == 1


def test_another_error_of_libudev_is_told():
    with pytest.raises(OperationFailed, match="udev"):
        by_libudev(PlayedMonitor(OSError("Error while polling fd: 5"))).receive()


@pytest.mark.parametrize("error", [ImportError("No library named udev"), OSError("Could not create udev monitor")])
def test_without_libudev_the_kernels_socket_is_taken_and_it_is_said(monkeypatch, tmp_path, error):
    class Played:
        source = "uevent socket"

    def refuse(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(uevents, "UdevEvents", refuse)
    monkeypatch.setattr(uevents, "KernelEvents", Played)
    events, note = uevents.listen(("pci",), Roots.under(tmp_path))
    assert isinstance(events, Played)
    assert note is not None and str(error) in note


def test_a_missing_pyudev_is_an_import_error(monkeypatch):
    real = builtins.__import__

    def without(name: str, *arguments: Any, **keywords: Any) -> Any:
        if name == "pyudev":
            raise ImportError("No module named 'pyudev'")
        return real(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError):
        UdevEvents("kernel")


def test_udevds_group_is_taken_where_udevd_runs(monkeypatch, tmp_path):
    taken = []
    monkeypatch.setattr(uevents, "UdevEvents", lambda group, subsystems: taken.append(group))
    roots = Roots.under(tmp_path)
    uevents.listen((), roots)
    (roots.run / "udev").mkdir(parents=True)
    (roots.run / "udev/control").touch()
    uevents.listen((), roots)
    assert taken == ["kernel", "udev"]
