"""No wake-up is lost: a driver and a device in two processes, over shared memory, as fast as they can.

Each side works as the standard has it (2.7.10, 2.7.14, 2.8.10, 2.8.22): it publishes, fences, and looks whether
the other wants to be told; it polls for a while with notifications off, then asks for them, fences, looks again,
and only then sleeps. A doorbell is a counter in shared memory and sleeping is waiting for it to move, so that a
round (one publish of the driver) takes microseconds, and the two meet at every step. A lost wake-up is a sleep
that never ends: both sides wait for each other.

Each format and kind of notification gets SECONDS; UVIRTIO_RACE_SECONDS=600 makes a long run of it. How many rounds
that is depends on who else wants the two cores, so tools/test runs this file alone, before all other steps, for
longer than pytest by hand does, and counts the rounds: docs/rings.md has figures.
"""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from uvirtio.memory.access import words32

ROOT = Path(__file__).resolve().parents[3]
SECONDS = float(os.environ.get("UVIRTIO_RACE_SECONDS", "2.5"))
STUCK = 10.0
"""Seconds without progress, on a machine that is very busy, after which a side is lost."""

SIZE = 16
# Pages of the shared file: descriptors, driver area, device area, then words that the two tell each other.
DESC, DRIVER, DEVICE, WORDS = 0, 4096, 8192, 12288
# Of those words, each on cache lines of its own: the doorbells (written by the one who rings), counts, the end.
TO_DEVICE, TO_DRIVER, ROUNDS, DRIVER_SLEPT, DEVICE_SLEPT, STOP, READY, LOST = (32 * number for number in range(8))

COMMON = f"""
import mmap, os, random, sys, time
from uvirtio.memory.access import words16, words32, words64
from uvirtio.memory.fence import full_fence
from uvirtio.virtqueue.base import RingOptions
from uvirtio.virtqueue.packed import PackedQueue
from uvirtio.virtqueue.split import SplitQueue

fd, cpu, event_idx, seconds, blind, stuck = (float(word) for word in sys.argv[1:7])
kind = sys.argv[7]
fd, event_idx, blind = int(fd), bool(event_idx), bool(blind)
os.sched_setaffinity(0, {{int(cpu)}})
shared = mmap.mmap(fd, 16384)
whole = memoryview(shared)
words = words32(whole, {WORDS}, 1024)
rng = random.Random(os.getpid())
SIZE = {SIZE}
full = full_fence()

def sleep(bell, before, count):
    # Like reading an eventfd: until the other has rung since `before`.
    words[count] += 1
    turns = 0
    while words[bell] == before:
        turns += 1
        if turns & 0xFFF == 0:
            if words[{STOP}]:
                raise SystemExit
            if turns == 0x1000:
                limit = time.monotonic() + stuck
            elif time.monotonic() > limit:
                words[{LOST}] = 1
                words[{STOP}] = 1
                raise SystemExit
"""

DRIVER_SIDE = (
    COMMON
    + f"""
class Block:
    contiguous = True
    def __init__(self, start, address):
        self.view, self.size, self.address = whole[start:start + 4096], 4096, address
    def segments(self, offset, length):
        return [(self.address + offset, length)]
    def close(self):
        self.view.release()

made = SplitQueue if kind == "split" else PackedQueue
areas = [Block({DESC}, 0), Block({DRIVER}, 4096), Block({DEVICE}, 8192)]
queue = made(0, SIZE, *areas, RingOptions(full, event_idx=bool(event_idx)))
words[{READY}] = 1
run = [(0x1000, 64)]
end = time.monotonic() + seconds
rounds = 0
chance = [rng.randrange(4) for _ in range(1021)]
queue.want_interrupts(False)
while not words[{STOP}]:
    if rounds & 0xFF == 0:
        words[{ROUNDS}] = rounds
        if time.monotonic() > end:
            break
    luck = chance[rounds % 1021]
    rounds += 1
    queue.add((), run, rounds)
    if queue.publish():
        words[{TO_DEVICE}] += 1
    if queue.in_flight < 4 * luck:
        continue
    # Down to half of that, then on; every other time to nothing at all.
    while queue.in_flight > (2 * luck if rounds & 1 else 0):
        before = words[{TO_DRIVER}]
        if queue.reap():
            continue
        for _ in range(luck):
            if queue.pending():
                break
        else:
            if not queue.want_interrupts(True) or blind:
                sleep({TO_DRIVER}, before, {DRIVER_SLEPT})
            queue.want_interrupts(False)
words[{ROUNDS}] = rounds
words[{STOP}] = 1
"""
)

DEVICE_SIDE = (
    COMMON
    + f"""
limit = time.monotonic() + {STUCK}
while not words[{READY}]:
    if time.monotonic() > limit:
        sys.exit("the driver never came")

if kind == "split":
    avail, used = words16(whole, {DRIVER}, 3 + SIZE), words16(whole, {DEVICE}, 3 + 4 * SIZE)
    elements = words32(whole, {DEVICE} + 4, 2 * SIZE)
    seen = done = 0

    def there():
        return avail[1] != seen & 0xFFFF

    def work():
        global seen, done
        old = done
        while there() and done - old < 8:
            head = avail[2 + seen % SIZE]
            elements[2 * (done % SIZE)], elements[2 * (done % SIZE) + 1] = head, 64
            seen, done = seen + 1, done + 1
        used[1] = done & 0xFFFF
        full()
        if event_idx:
            return (done - avail[2 + SIZE] - 1) & 0xFFFF < done - old  # used_event was passed (2.7.7.1)
        return not avail[0] & 1

    def want(on):
        if event_idx:
            used[2 + 4 * SIZE] = (seen if on else seen - 1) & 0xFFFF
        else:
            used[0] = 0 if on else 1
else:
    ring64, ring16 = words64(whole, {DESC}, 2 * SIZE), words16(whole, {DESC}, 8 * SIZE)
    driver, device = words16(whole, {DRIVER}, 2), words16(whole, {DEVICE}, 2)
    seen = done = 0

    def there():
        odd = seen // SIZE & 1
        return ring16[8 * (seen % SIZE) + 7] & 0x8080 == (0x8000 if odd else 0x80)

    def work():
        global seen, done
        old = done
        while there() and done - old < 8:
            ident = ring16[8 * (seen % SIZE) + 6]
            place, odd = done % SIZE, done // SIZE & 1
            kept = ring16[8 * place + 7]
            ring64[2 * place + 1] = 64 | ident << 32 | kept << 48
            ring16[8 * place + 7] = 2 if odd else 0x8082
            seen, done = seen + 1, done + 1
        full()
        flags = driver[1]
        if flags != 2:
            return flags == 0
        off_wrap = driver[0]
        return any(n % SIZE | (0 if n // SIZE & 1 else 0x8000) == off_wrap for n in range(old, done))

    def want(on):
        if on and event_idx:
            device[0] = seen % SIZE | (0 if seen // SIZE & 1 else 0x8000)
            device[1] = 2
        else:
            device[1] = 0 if on else 1

want(False)
while not words[{STOP}]:
    before = words[{TO_DEVICE}]
    if there():
        if work():
            words[{TO_DRIVER}] += 1
        continue
    for _ in range(rng.randrange(4)):
        if there():
            break
    else:
        want(True)
        full()
        if not there():
            sleep({TO_DEVICE}, before, {DEVICE_SLEPT})
        want(False)
"""
)


def race(
    kind: str, event_idx: bool, seconds: float, *, blind: bool = False, stuck: float = STUCK
) -> dict[str, int]:
    """Run the two against each other; what the words say at the end. ``blind``: the driver looks only once."""
    cpus = sorted(os.sched_getaffinity(0))
    fd = os.memfd_create("wakeups", os.MFD_CLOEXEC)
    racers: list[subprocess.Popen[bytes]] = []
    try:
        os.ftruncate(fd, 16384)
        for side, code in enumerate((DRIVER_SIDE, DEVICE_SIDE)):
            arguments = [str(word) for word in (fd, cpus[side], int(event_idx), seconds, int(blind), stuck, kind)]
            racers.append(
                subprocess.Popen(
                    [sys.executable, "-c", code, *arguments], pass_fds=[fd], cwd=ROOT, stdin=subprocess.DEVNULL
                )
            )
        for racer in racers:
            assert racer.wait(seconds + 3 * STUCK + 30) == 0
        with mmap.mmap(fd, 16384) as shared, memoryview(shared) as whole, words32(whole, WORDS, 1024) as words:
            names = {
                "rounds": ROUNDS,
                "driver slept": DRIVER_SLEPT,
                "device slept": DEVICE_SLEPT,
                "driver rang": TO_DEVICE,
                "device rang": TO_DRIVER,
                "lost": LOST,
            }
            return {name: words[place] for name, place in names.items()}
    finally:
        for racer in racers:
            racer.kill()
            racer.wait()
        os.close(fd)


def two_cpus() -> None:
    if len(os.sched_getaffinity(0)) < 2:
        pytest.skip("one CPU: two that poll take turns there, and never meet")


@pytest.mark.spec("SPL-26", "SPL-28", "PKD-16", "PKD-24")
@pytest.mark.parametrize("event_idx", [False, True], ids=["flags", "event_idx"])
@pytest.mark.parametrize("kind", ["split", "packed"])
def test_no_wake_up_is_lost(kind: str, event_idx: bool, record_property: pytest.RecordProperty):
    two_cpus()
    found = race(kind, event_idx, SECONDS)
    for name, value in found.items():
        record_property(name, value)
    print(found)
    assert not found["lost"], found
    # Both have slept, both were woken, and neither was told at every turn: all ways were gone.
    assert found["rounds"] > 1000, found
    assert found["driver slept"] > 10 and found["device slept"] > 10, found
    assert found["device rang"] < found["rounds"] and found["driver rang"] < found["rounds"], found


@pytest.mark.parametrize("kind", ["split", "packed"])
def test_a_driver_that_does_not_look_again_is_lost(kind: str):
    """The control: asking for interrupts and sleeping, without the second look, ends in a sleep for ever."""
    two_cpus()
    for _ in range(3):
        found = race(kind, False, SECONDS, blind=True, stuck=0.5)
        if found["lost"]:
            return
    pytest.skip(f"the two never met where it matters: {found}")
