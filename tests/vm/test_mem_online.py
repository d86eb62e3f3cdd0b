"""Plugged memory for Linux itself: MemTotal goes where the host wants it, on a stock kernel.

The witnesses are QMP of the QEMU around the VM, and the kernel itself: /proc/meminfo, sysfs, its log.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import multiprocessing
import os
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from tests.vm import commands
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import driver_of, hand_over
from uvirtio.host import cpu
from uvirtio.online import boot_line

MIB = 1 << 20
BLOCK = 128 * MIB
TWO = 2 * BLOCK
REGION = 512 * MIB

pytestmark = pytest.mark.parametrize("lab_address", ["mem-online"], indirect=True)


def hold(mebibytes: int, pin: bool, line: Connection) -> None:
    """Hold so much memory, keep writing to it, and see that it stays what it was.

    With ``pin``, 16 of its pages are also in a pipe, where the kernel cannot move them. ``"again"`` on the line
    lets go of the memory and takes new: that lies where memory is free now. ``"enough"`` ends it.
    """
    os.nice(19)  # one CPU, and an emulated one: the kernel needs some of it to move pages
    size = mebibytes << 20
    pipe = os.pipe()
    while True:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        for place in range(0, size, 4096):
            memory[place : place + 8] = place.to_bytes(8, "little")
        if pin:
            _splice(memory, pipe[1])
        line.send("ready")
        place, step = 0, 1 << 20
        while not line.poll(0.05):
            for page in range(place, place + step, 4096):
                memory[page + 8 : page + 16] = (page + 1).to_bytes(8, "little")
            place = (place + step) % size
        word = line.recv()
        for place in range(0, size, 4096):
            assert memory[place : place + 8] == place.to_bytes(8, "little"), hex(place)
            assert memory[place + 8 : place + 16] in (bytes(8), (place + 1).to_bytes(8, "little")), hex(place)
        line.send("intact")
        if word == "enough":
            return
        memory.close()


def _splice(memory: mmap.mmap, writer: int) -> None:
    class Vector(ctypes.Structure):
        _fields_ = [("base", ctypes.c_void_p), ("length", ctypes.c_size_t)]

    libc = ctypes.CDLL(None, use_errno=True)
    libc.vmsplice.restype = ctypes.c_ssize_t
    vector = Vector(ctypes.addressof(ctypes.c_char.from_buffer(memory)), 16 * 4096)
    assert libc.vmsplice(writer, ctypes.byref(vector), ctypes.c_size_t(1), 0) == 16 * 4096, ctypes.get_errno()


def mem_total() -> int:
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemTotal:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no MemTotal")


def log() -> str:
    """The kernel's log."""
    return subprocess.run(["dmesg"], capture_output=True, text=True, timeout=30).stdout


def until(what: str, test: Callable[[], bool], timeout: float = 60.0) -> None:
    deadline = time.monotonic() + timeout
    while not test():
        if time.monotonic() >= deadline:
            now = f"MemTotal {mem_total() // MIB} MiB\n{log()[-3000:]}"
            raise AssertionError(f"{what}: not within {timeout:g} s; {now}")
        time.sleep(0.05)


def request(witness: Witness, size: int) -> None:
    witness.execute("qom-set", path="mem-online", property="requested-size", value=size)


def plain(witness: Witness) -> dict[str, Any]:
    (device,) = witness.execute("query-memory-devices")
    return dict(device["data"])


def plugged(witness: Witness) -> int:
    return int(plain(witness)["size"])


def uvirtio(*arguments: str) -> commands.Done:
    return commands.uvirtio(*arguments, "--json")


def document(*arguments: str) -> dict[str, Any]:
    done = uvirtio(*arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout)


@contextmanager
def hog(mebibytes: int, pin: bool = False) -> Iterator[Callable[[], None]]:
    """Memory in use; the function that is given takes it anew."""
    fork = multiprocessing.get_context("fork")  # no start of Python, which takes seconds here
    line, far = fork.Pipe()
    process = fork.Process(target=hold, args=(mebibytes, pin, far), daemon=True)
    process.start()
    far.close()

    def hear(word: str) -> None:
        assert line.poll(60), f"no {word!r}"
        assert line.recv() == word

    def again() -> None:
        line.send("again")
        hear("intact")
        hear("ready")

    try:
        hear("ready")
        yield again
        line.send("enough")
        hear("intact")
    finally:
        process.kill()
        process.join(30)


@contextmanager
def following(address: str) -> Iterator[list[dict[str, Any]]]:
    """``mem follow --online`` in the background; what it says, all of it once it has left on SIGTERM."""
    said: list[dict[str, Any]] = []
    with commands.running("mem", "follow", address, "--online", "--json") as process:
        # Read all the time: a pipe that is full would stop it.
        reader = threading.Thread(target=lambda: said.extend(map(json.loads, process.stdout)))
        reader.start()
        try:
            yield said
            assert commands.rights(process.pid) <= {"CAP_BLOCK_SUSPEND"}
        finally:
            process.terminate()
            code = process.wait(30)
            reader.join(30)
            print("it said:", *said, sep="\n")
        assert code == 143


@pytest.fixture(autouse=True)
def on_vfio(lab_address: str, witness: Witness) -> Iterator[None]:
    """The device in our hands; nothing plugged, and nothing online, before and after."""
    hand_over(lab_address, "vfio-pci")
    before = mem_total()
    request(witness, 0)
    assert plugged(witness) == 0
    yield
    assert plugged(witness) == 0
    assert mem_total() == before
    said = log()
    for word in ("cannot be hotremoved", "removing memory fails", "WARNING:", "BUG:", "Oops", "kmem dax"):
        assert word not in said, said[-3000:]
    assert driver_of(lab_address) == "vfio-pci"


def test_mem_total_follows_the_host_up_and_down_three_times_under_pressure(lab_address, witness):
    before = mem_total()
    with following(lab_address) as said, hog(64) as again:
        for turn in range(3):
            request(witness, TWO)
            until(f"up, turn {turn}", lambda: mem_total() == before + TWO)
            assert plugged(witness) == TWO
            again()  # Linux takes the movable zone first: this lies in plugged memory
            request(witness, 0)
            until(f"down, turn {turn}", lambda: plugged(witness) == 0)
            assert mem_total() == before
    assert sum(one["event"] == "online" for one in said) == 6
    assert sum(one["event"] == "offline" for one in said) == 6


def test_busy_memory_is_left_alone_and_comes_back_later(lab_address, witness):
    before = mem_total()
    with following(lab_address) as said:
        request(witness, TWO)
        until("up", lambda: mem_total() == before + TWO)
        with hog(32, pin=True):
            request(witness, 0)
            # The rest goes; the block with pages that nobody can move stays, as Linux's, and plugged.
            until("the rest down", lambda: plugged(witness) == BLOCK)
            assert mem_total() == before + BLOCK
        until("all down", lambda: plugged(witness) == 0)
    events = [one["event"] for one in said]
    assert "busy" in events


def test_one_run_finds_what_another_brought_online(lab_address, witness):
    before = mem_total()
    request(witness, REGION)
    line = boot_line(*(plain(witness)[name] for name in ("memaddr", "max-size")))
    if cpu.is_x86():  # elsewhere the firmware says it
        assert line in Path("/proc/cmdline").read_text(), "what is printed where it is missing is what this needs"
    first = document("mem", "online", lab_address, "256M")
    assert (first["online_bytes"], first["plugged_bytes"]) == (2 * BLOCK, 2 * BLOCK)
    assert mem_total() == before + 2 * BLOCK
    assert [one["state"] for one in first["pieces"]] == ["online", "online"]
    # What Linux has is nobody else's: not to unplug, not to bring online twice.
    assert uvirtio("mem", "unplug", lab_address, "128M").returncode == 3
    assert uvirtio("mem", "unplug-all", lab_address).returncode == 3
    assert plugged(witness) == 2 * BLOCK
    second = document("mem", "online", lab_address)
    assert (second["before_bytes"], second["online_bytes"]) == (2 * BLOCK, REGION)
    assert mem_total() == before + REGION
    third = document("mem", "offline", lab_address, "128M")
    assert (third["online_bytes"], third["plugged_bytes"]) == (3 * BLOCK, 3 * BLOCK)
    assert mem_total() == before + 3 * BLOCK
    last = document("mem", "offline", lab_address)
    assert (last["online_bytes"], last["plugged_bytes"]) == (0, 0)


def test_what_is_plugged_and_linux_does_not_have_goes_with_offline(lab_address, witness):
    """As a run leaves it that is killed between Linux's letting go and UNPLUG."""
    before = mem_total()
    request(witness, REGION)
    document("mem", "online", lab_address, "128M")
    assert uvirtio("mem", "plug", lab_address, "256M").returncode == 0
    made = document("mem", "offline", lab_address, "256M")
    assert (made["idle_bytes"], made["online_bytes"], made["plugged_bytes"]) == (2 * BLOCK, BLOCK, BLOCK)
    assert mem_total() == before + BLOCK
    last = document("mem", "offline", lab_address)
    assert (last["idle_bytes"], last["online_bytes"], last["plugged_bytes"]) == (0, 0, 0)


def test_a_signal_in_the_middle_of_offline_leaves_plugged_what_linux_has_and_no_more(lab_address, witness):
    before = mem_total()
    request(witness, REGION)
    assert document("mem", "online", lab_address)["online_bytes"] == REGION
    with commands.running("mem", "offline", lab_address, "--json") as process:
        until("the first one down", lambda: mem_total() < before + REGION)
        process.terminate()
        assert process.wait(60) in (143, 0)  # 0: it was done before the signal came
    assert plugged(witness) == mem_total() - before
    assert document("mem", "offline", lab_address)["idle_bytes"] == 0


def test_more_than_the_host_requests_changes_nothing(lab_address, witness):
    request(witness, BLOCK)
    done = uvirtio("mem", "online", lab_address, "256M")
    assert done.returncode == 1, done.stdout
    assert json.loads(done.stdout)["error"]["code"] == "UV-MEM-NACK"
    assert uvirtio("mem", "online", lab_address, "64M").returncode == 2
    request(witness, 0)
