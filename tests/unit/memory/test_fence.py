"""The fences fence.

Two proofs. Two processes race as driver and device do, each storing first and looking second: without a fence
both miss each other at times, with it never. And since calling anything at all from Python takes long enough
to hide most misses, the instructions of each fence are looked at one by one.
"""

from __future__ import annotations

import ctypes
import gc
import mmap
import os
import subprocess
import sys
import time
import warnings
from array import array

import pytest

from tests.support.descriptors import descriptors, settled
from tests.support.watchpoints import Unavailable, fences
from uvirtio.errors import NotSupported
from uvirtio.host import cpu
from uvirtio.memory import fence

ROUNDS = 200_000
SECONDS = 5.0
"""How long the control may take to show that the race is there, and the proof to meet as often."""

ENOUGH = 20
"""Misses after which the control is believed."""

# Word 0 and word 64: what each side has stored, on cache lines of their own. Word 128 + side: ready.
# From byte 4096 on: what each side saw after each of its stores.
RACER = """
import mmap, os, sys, time
from uvirtio.memory import fence
from uvirtio.memory.access import words32

fd, side, cpu, rounds, name = (*map(int, sys.argv[1:5]), sys.argv[5])
os.sched_setaffinity(0, {cpu})
shared = mmap.mmap(fd, 4096 + 2 * 4 * (rounds + 1))
whole = memoryview(shared)
mine, theirs = words32(whole, 256 * side, 1), words32(whole, 256 * (1 - side), 1)
ready = words32(whole, 512, 2)
seen = words32(whole, 4096 + 4 * (rounds + 1) * side, rounds + 1)

def without():
    for number in range(1, rounds + 1):
        mine[0] = number
        seen[number] = theirs[0]

def fenced(full):
    for number in range(1, rounds + 1):
        mine[0] = number
        full()
        seen[number] = theirs[0]

full = None if name == "none" else getattr(fence, name)()
ready[side] = 1
deadline = time.monotonic() + 10
while not ready[1 - side]:
    if time.monotonic() > deadline:
        sys.exit("the other side never came")
without() if full is None else fenced(full)
"""


def cpus() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def race(name: str) -> tuple[int, int]:
    """Both sides run ``ROUNDS`` rounds with this fence.

    Returns the rounds in which both missed the other, and how often they met: without meeting, no race was run.
    """
    size = 4096 + 2 * 4 * (ROUNDS + 1)
    fd = os.memfd_create("race", os.MFD_CLOEXEC)
    racers: list[subprocess.Popen[bytes]] = []
    try:
        os.ftruncate(fd, size)
        for side in (0, 1):
            arguments = [str(number) for number in (fd, side, cpus()[side], ROUNDS)]
            racers.append(
                subprocess.Popen(
                    [sys.executable, "-c", RACER, *arguments, name], pass_fds=[fd], stdin=subprocess.DEVNULL
                )
            )
        for racer in racers:
            assert racer.wait(60) == 0
        log = 4 * (ROUNDS + 1)
        with mmap.mmap(fd, size) as shared:
            logs = [array("I", shared[start : start + log]) for start in (4096, 4096 + log)]
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
        os.close(fd)
    return both_missed(logs[0], logs[1]), len(set(logs[0]))


def both_missed(first: array[int], second: array[int]) -> int:
    """Rounds of ``first`` that no order of all stores and loads can explain.

    Side one stored ``number`` and then saw the other at ``there``. So the other's next store came after that
    look, hence after ``number`` was stored, and the look that followed it must have seen ``number`` or more.
    """
    missed = 0
    last = len(second) - 1
    for number in range(1, len(first)):
        there = first[number]
        if there < last and second[there + 1] < number:
            missed += 1
    return missed


def test_the_judge_knows_a_miss_when_it_sees_one():
    # One after the other: side one is through before side two begins.
    assert both_missed(array("I", [0, 0, 0, 0]), array("I", [0, 3, 3, 3])) == 0
    # In step, each seeing the other's store of the same round.
    assert both_missed(array("I", [0, 1, 2, 3]), array("I", [0, 1, 2, 3])) == 0
    # In the second round each stored 2 and still saw the other at 1: both believe that the other sleeps.
    assert both_missed(array("I", [0, 1, 1, 3]), array("I", [0, 1, 1, 3])) == 1


@pytest.fixture(scope="module")
def meetings() -> int:
    """How many meetings it takes until the race shows without a fence; skips where it never does."""
    if len(cpus()) < 2:
        pytest.skip("one CPU: nothing can overtake anything that another CPU would see")
    deadline = time.monotonic() + SECONDS
    missed = met = 0
    while missed < ENOUGH:
        if time.monotonic() >= deadline:
            pytest.skip(f"without a fence {missed} misses in {met} meetings: nothing can be proved here")
        more, again = race("none")
        missed, met = missed + more, met + again
    return met


@pytest.mark.spec("SPL-26")
def test_with_the_fence_nobody_misses(meetings: int):
    try:
        fence.full_fence()
    except NotSupported as error:
        pytest.skip(f"{error.message}: {error.seen}")
    deadline = time.monotonic() + SECONDS
    met = 0
    while met < meetings:
        if time.monotonic() >= deadline:
            pytest.skip(f"the two sides met {met} times, and {meetings} were needed: nothing was proved")
        missed, again = race("full_fence")
        assert missed == 0
        met += again


@pytest.mark.spec("SPL-26")
def test_each_fence_executes_a_fencing_instruction():
    codes = {"nothing": "nothing()", "lock": "lock()", "chosen": "chosen()"}
    setup = "from uvirtio.memory import fence\nlock = fence.lock_fence()\nchosen = fence.full_fence()"
    setup += "\ndef nothing(): pass"
    try:
        fence.libatomic_fence()
        codes["libatomic"] = "libatomic()"
        setup += "\nlibatomic = fence.libatomic_fence()"
    except NotSupported:
        pass
    try:
        found = fences(setup, codes)
    except Unavailable as reason:
        pytest.skip(f"instructions cannot be looked at here: {reason}")
    without = found.pop("nothing")
    for name, count in found.items():
        assert count > without, f"{name}: {count} fences, and {without} where nothing is called"


def test_a_peek_leaves_no_file_open_and_nothing_to_warn_of():
    before = settled()
    peek = fence.peek_fence()
    assert descriptors() == before
    assert [peek() for _ in range(3)] == [b"x"] * 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        del peek
        gc.collect()


def test_an_interpreter_that_was_not_looked_at_gets_a_lock(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    monkeypatch.setattr(fence, "lock_fence", lambda: "lock")
    monkeypatch.setattr(fence, "peek_fence", lambda: "peek")
    for version, chosen in (
        ((3, 11, 2), "peek"),
        ((3, 13, 0), "peek"),
        ((3, 15, 2), "peek"),
        ((3, 20, 1), "lock"),
    ):
        monkeypatch.setattr(sys, "version_info", version)
        assert (fence.full_fence(), fence.platform_fence()) == (chosen, chosen)


def test_the_choice_follows_the_machine(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fence, "_x86_fence", lambda: "lock")
    monkeypatch.setattr(fence, "libatomic_fence", lambda: "libatomic")
    for machine, full, order in (
        ("x86_64", "lock", None),
        ("i686", "lock", None),
        ("aarch64", "libatomic", "libatomic"),
        ("riscv64", "libatomic", "libatomic"),
    ):
        monkeypatch.setattr(cpu, "machine", lambda machine=machine: machine)
        assert (fence.full_fence(), fence.order_fence()) == (full, order)


def test_without_libatomic_the_error_names_the_package(monkeypatch: pytest.MonkeyPatch):
    def missing(name: str) -> None:
        raise OSError(f"{name}: cannot open shared object file")

    monkeypatch.setattr(ctypes, "PyDLL", missing)
    monkeypatch.setattr(cpu, "machine", lambda: "aarch64")
    for make in (fence.full_fence, fence.order_fence, fence.libatomic_fence):
        with pytest.raises(NotSupported) as caught:
            make()
        assert "libatomic1" in (caught.value.remedy or "") and caught.value.exit_code == 4
