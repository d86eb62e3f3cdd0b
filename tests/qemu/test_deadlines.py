"""Each public call with a time-out, on a QEMU that is stopped and on a storage daemon that is stopped or killed.

How long a call takes says more about a busy machine than about the call. So two things are asked: the waits that
the call asked for end by its time-out, as they were asked for; and it ends before ``PATIENCE``, which is what it
would take if its time-out were not handed down.
"""

from __future__ import annotations

import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.support.deadlines import ROWS
from uvirtio.backends.qemu import connection as qemu_connection
from uvirtio.backends.vhost_user import connection as vhost_connection
from uvirtio.errors import DeviceFailure, DeviceGone, DeviceTimeout, MemBusy, NetStalled, NotSupported, UsageError
from uvirtio.qemu import Machine

GIVEN, SLACK, PATIENCE = 0.05, 0.1, 10.0

LEAST = 0.02
"""In place of RESPONSE_LEAST: a QEMU that is stopped answers in no time at all."""

MODELS = {
    "rng": "virtio-rng-pci",
    "balloon": "virtio-balloon-pci,free-page-reporting=on",
    "mem": "virtio-mem-pci,requested-size=64M",
    "input": "virtio-keyboard-pci",
    "blk": "virtio-blk-pci",
    "scsi": "virtio-scsi-pci",
    "net": "virtio-net-pci",
}

ENDS = (DeviceFailure, DeviceGone, MemBusy, NetStalled)


class _Counted:
    """A ``select.poll`` set that adds up the time-outs that passed."""

    def __init__(self, real: Any) -> None:
        self.real, self.waited = real, 0.0

    def poll(self, milliseconds: float) -> Any:
        found = self.real.poll(milliseconds)
        if not found:
            self.waited += milliseconds / 1000
        return found


@contextmanager
def _stopped(pid: int) -> Iterator[None]:
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def _again(machine: Machine) -> None:
    """Wait until it answers again, as it does once it runs."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        with suppress(DeviceTimeout):
            machine.functions[0].config.read32(0)
            return
    raise AssertionError("it does not answer again")


@pytest.mark.parametrize("kind", MODELS)
def test_a_stopped_qemu_costs_a_call_no_more_than_its_time_out(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(qemu_connection, "RESPONSE_LEAST", LEAST)
    with Machine(devices=[MODELS[kind]], timeout=PATIENCE) as machine:
        counted = machine.qtest._poll = _Counted(machine.qtest._poll)  # type: ignore[assignment]
        waited = []
        for name, (of, make) in ROWS.items():
            if of != kind:
                continue
            with machine.open(0, timeout=PATIENCE) as device:
                try:
                    call = make(device)
                except NotSupported:
                    continue
                for wrong in (nan, inf):  # refused, unless what is asked for is there by now
                    with suppress(UsageError, NotSupported):
                        call(wrong)
                with _stopped(machine.pid):
                    counted.waited, began = 0.0, time.monotonic()
                    with suppress(*ENDS, NotSupported):
                        call(GIVEN)
                    assert time.monotonic() - began < PATIENCE, name
                    assert counted.waited <= GIVEN + SLACK, name
                    waited.append(counted.waited)
                _again(machine)  # leaving has the time of the device
        rows = sum(of == kind for of, _ in ROWS.values())
        assert len(waited) > rows // 2 and max(waited) > 0, "too few of them met QEMU"


def test_events_of_a_stopped_qemu_are_not_waited_for_beyond_the_time_out() -> None:
    with Machine(timeout=PATIENCE) as machine, _stopped(machine.pid):
        began = time.monotonic()
        assert machine.qmp_events("NEVER", GIVEN) == []
        assert time.monotonic() - began < PATIENCE


BLK = [name for name, (kind, _) in ROWS.items() if kind == "blk"]


@pytest.mark.skipif(shutil.which("qemu-storage-daemon") is None, reason="no qemu-storage-daemon")
@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "stopped"])
def test_a_daemon_that_is_gone_or_stopped_costs_no_more_than_the_time_out(
    how: signal.Signals, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vhost_connection, "RESPONSE_LEAST", LEAST)
    disk = tmp_path / "disk.img"
    disk.write_bytes(bytes(1 << 20))
    given = GIVEN if how is signal.SIGSTOP else PATIENCE
    met = set()
    for name in BLK:
        with uvirtio.open(f"vhost-user:qsd/{disk}", timeout=PATIENCE) as device:
            try:
                call = ROWS[name][1](device)
            except NotSupported:
                continue
            pid = device.transport.backend.peer.pid  # type: ignore[union-attr]
            os.kill(pid, how)
            began = time.monotonic()
            try:
                call(given)
                met.add(type(None))
            except (*ENDS, NotSupported) as error:
                met.add(type(error))
            assert time.monotonic() - began < PATIENCE, name
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)  # leaving has the time of the device
    assert met & ({DeviceGone} if how is signal.SIGKILL else {DeviceTimeout})
