"""The guardian: a real process over ordinary files, whose driver is really killed."""

from __future__ import annotations

import mmap
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from uvirtio.backends.guardian import Await, Clear, Guardian, Register, Store
from uvirtio.errors import OperationFailed

STATUS, COMMAND = 0x14, 0x04

DRIVER = """
import os, sys, time
from uvirtio.backends.guardian import Await, Clear, Guardian, Register, Store
bar, config = (os.open(path, os.O_RDWR) for path in sys.argv[1:3])
guardian = Guardian("0000:00:00.0", [bar, config])
if sys.argv[3] in ("armed", "forks"):
    status = Register(bar, 0x14, 1, mapped=True)
    guardian.arm([Store(status, 0), Await(status, 0, 1.0), Clear(Register(config, 4, 2), 4)])
if sys.argv[3] == "forks" and os.fork() == 0:
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    time.sleep(5)  # a child that has all descriptors of its parent, the pipe's end among them
    os._exit(0)
print(guardian.pid, flush=True)
if sys.argv[3] == "leaves":
    guardian.disarm()
    sys.exit()
time.sleep(60)
"""


@pytest.fixture
def files(tmp_path):
    bar, config = tmp_path / "bar", tmp_path / "config"
    bar.write_bytes(b"\x0f" * 4096)
    config.write_bytes(bytes(range(256)))
    return bar, config


def ended(pid: int) -> bool:
    """Whether the process is no more, or a zombie that is not waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except OSError:
        return True


def until(what: Callable[[], bool], seconds: float = 10) -> bool:
    deadline = time.monotonic() + seconds
    while not what():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def drive(files, how: str) -> tuple[subprocess.Popen[str], int]:
    child = subprocess.Popen([sys.executable, "-c", DRIVER, *files, how], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, int(child.stdout.readline())


def kill(child: subprocess.Popen[str], number: int = signal.SIGKILL) -> None:
    child.send_signal(number)
    child.wait(10)
    assert child.stdout is not None
    child.stdout.close()


def test_a_killed_driver_leaves_a_quiet_device(files):
    bar, config = files
    child, guardian = drive(files, "armed")
    assert bar.read_bytes()[STATUS] == 0x0F
    kill(child)
    assert until(lambda: ended(guardian))
    assert bar.read_bytes() == b"\x0f" * STATUS + b"\0" + b"\x0f" * (4095 - STATUS), "one byte, and no other"
    expected = bytearray(range(256))
    expected[COMMAND] &= ~4
    assert config.read_bytes() == bytes(expected)


def test_a_child_of_the_driver_does_not_keep_it_alive(files):
    child, guardian = drive(files, "forks")
    kill(child)
    assert until(lambda: ended(guardian), seconds=4), "before the pipe is closed by the child's end"
    assert files[0].read_bytes()[STATUS] == 0


def test_a_driver_that_leaves_in_order_is_not_meddled_with(files):
    before = [path.read_bytes() for path in files]
    child, guardian = drive(files, "leaves")
    assert child.wait(10) == 0
    child.stdout.close()
    assert ended(guardian)
    assert [path.read_bytes() for path in files] == before


def test_one_that_was_never_armed_touches_nothing(files):
    before = [path.read_bytes() for path in files]
    child, guardian = drive(files, "idle")
    kill(child)
    assert until(lambda: ended(guardian))
    assert [path.read_bytes() for path in files] == before


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_what_a_terminal_sends_does_not_end_it(files, number):
    child, guardian = drive(files, "armed")
    os.kill(guardian, number)
    kill(child)
    assert until(lambda: files[0].read_bytes()[STATUS] == 0), "it was there to act"
    assert until(lambda: ended(guardian))


def test_memory_outlives_the_driver_until_the_device_is_quiet():
    # A device that does not finish its reset within the deadline, and whose bus mastering can be cleared.
    memory = os.memfd_create("dma")
    device = os.memfd_create("device")
    os.ftruncate(memory, mmap.PAGESIZE)
    os.pwrite(device, b"\xff" * 64, 0)
    status = Register(device, STATUS, 1)
    guardian = Guardian("x", [memory, device])
    guardian.arm([Await(status, 0, 30.0), Clear(Register(device, COMMAND, 2), 4)])
    inode = os.fstat(memory).st_ino
    held = [link for link in Path(f"/proc/{guardian.pid}/fd").iterdir() if link.stat().st_ino == inode]
    assert held, "it holds the memory's file"
    assert guardian.alive
    os.pwrite(device, b"\0", STATUS)  # the reset ends after all
    guardian.close()
    assert os.pread(device, 2, COMMAND) == b"\xfb\xff"
    os.close(memory)
    os.close(device)


def test_a_device_that_does_not_stop_keeps_its_memory_for_ever():
    device = os.memfd_create("device")
    os.pwrite(device, b"\x0f" * 64, 0)
    guardian = Guardian("x", [device])
    guardian.arm([Await(Register(device, STATUS, 1), 0, 0.1)])
    process = guardian._process
    process.stdin.close()
    time.sleep(0.5)
    assert not ended(guardian.pid)
    assert any("memfd:device" in str(link.readlink()) for link in Path(f"/proc/{guardian.pid}/fd").iterdir())
    process.kill()
    process.wait(10)
    process.stdout.close()
    os.close(device)


def test_registers_that_cannot_be_reached_are_told_before_they_are_needed():
    guardian = Guardian("x", [])
    with pytest.raises(OperationFailed, match="did not become ready") as caught:
        guardian.arm([Store(Register(250, 0, 4, mapped=True), 0)])
    assert caught.value.seen == "it ended"
    guardian.close()
    assert not guardian.alive
    guardian.close()


def test_nothing_in_its_command_line_names_the_package():
    guardian = Guardian("0000:00:00.0", [])
    guardian.arm([])  # so that it is another program by now
    words = Path(f"/proc/{guardian.pid}/cmdline").read_text()
    assert "0000:00:00.0" in words
    assert "uvirtio" not in words
    guardian.disarm()
    assert not guardian.alive
