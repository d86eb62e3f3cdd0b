"""``mem offline`` that ends early: what Linux let go of goes to the device, then or with the next one."""

from __future__ import annotations

import errno
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from tests.unit.drivers.test_mem import driven
from tests.unit.online.test_online import ADDR, BLOCKS, SIZE, UNIT, FakeKernel, busy, model
from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.errors import InUse, MemBusy, OperationFailed
from uvirtio.online import KernelView, Linux, SystemMemory, consumer
from uvirtio.opening import identify
from uvirtio.scripted.mem import MIB, Mem
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec.mem import Request, Response

DEV = "0000:00:04.0"
HALF = set(range(BLOCKS // 2))


class Stop(BaseException):
    """What a signal raises."""


@pytest.fixture
def fake(tmp_path: Path) -> FakeKernel:
    return FakeKernel(tmp_path)


def memory_of(fake: FakeKernel, sleep: Callable[[float], None] = lambda _: None) -> SystemMemory:
    return SystemMemory(KernelView(ADDR, SIZE, fake.roots), writer=fake, load=fake.load, sleep=sleep)


def at_write(fake: FakeKernel, name: str, number: int, act: Callable[[], None]) -> None:
    """Act at the given write to files of this name, before it is done."""
    write, seen = fake.write, 0

    def and_act(path: Path, text: str, timeout: float) -> None:
        nonlocal seen
        seen += path.name == name
        if path.name == name and seen == number:
            act()
        write(path, text, timeout)

    fake.write = and_act


def online(fake: FakeKernel, script: Mem) -> None:
    """Everything that is plugged goes online, by a run of its own."""
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        linux.take(linux.manager(mem))


def killed(fake: FakeKernel, script: Mem) -> None:
    """A run that is killed after Linux has let go of the two highest pieces, and before UNPLUG."""
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        assert linux.give_back(linux.manager(mem), 2 * UNIT, timeout=0) == 2 * UNIT


def plugged(script: Mem) -> int:
    return len(script.plugged) * 2 * MIB


# --- the run that is ended ----------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "number"), [("state", 1), ("unbind", 1), ("size", 3), ("delete", 3)])
def test_a_signal_ends_it_with_the_piece_at_hand_and_nothing_is_left_plugged(fake, name, number):
    script = model(requested=SIZE, plugged=set(range(BLOCKS)))
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        at_write(fake, name, number, lambda: mem.device.interrupt(Stop()))
        with pytest.raises(Stop):
            linux.unplug(manager, SIZE, timeout=0)
        assert plugged(script) == fake.total() == linux.bytes == SIZE - number * UNIT
        assert linux.idle(manager) == 0


@pytest.mark.parametrize("answered", [True, False])
def test_a_signal_during_the_unplug_itself(fake, answered):
    """Whether or not the device has done it by then."""
    script = model(requested=SIZE, plugged=HALF)
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        requests = mem.ask

        def ask(request: Request, *more: Any, **how: Any) -> Any:
            if request is Request.UNPLUG:
                mem.ask = requests  # type: ignore[method-assign]
                if answered:
                    requests(request, *more, **how)
                raise Stop
            return requests(request, *more, **how)

        mem.ask = ask  # type: ignore[method-assign]
        with pytest.raises(Stop):
            linux.unplug(manager, 2 * UNIT, timeout=0)
        assert plugged(script) == fake.total() == UNIT
        assert mem.counts[Response.ERROR] == 0  # it was not asked to unplug it twice


@pytest.mark.parametrize("name", ["size", "delete"])
def test_a_failure_of_the_kernel_ends_it_and_nothing_is_left_plugged(fake, name):
    """Also of the piece whose dax device could not be destroyed at once."""
    script = model(requested=SIZE, plugged=set(range(BLOCKS)))
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        fake.fails[name, ""] = [None, OSError(errno.EIO, "Input/output error")]
        with pytest.raises(OperationFailed, match="failed"):
            linux.unplug(manager, SIZE, timeout=0)
        assert plugged(script) == fake.total() == linux.bytes == 2 * UNIT


def test_what_the_kernel_keeps_stays_plugged_when_the_rest_goes(fake):
    script = model(requested=SIZE, plugged=HALF)
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        at_write(fake, "unbind", 2, lambda: setattr(fake, "stuck", True))
        with pytest.raises(OperationFailed, match="did not let go"):
            linux.unplug(manager, 2 * UNIT, timeout=0)
        assert script.plugged == set(range(BLOCKS // 4))


def test_a_device_that_is_busy_is_asked_again_and_its_refusal_is_what_is_told(fake):
    script = model(requested=SIZE, plugged=HALF)
    online(fake, script)
    with driven(script, timeout=0.3) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        script.script.extend([int(Response.BUSY)])
        assert linux.unplug(manager, UNIT, timeout=0) == UNIT
        script.before = lambda kind, *_: script.script.extend([int(Response.BUSY)] * (kind == Request.UNPLUG))
        with pytest.raises(MemBusy):
            linux.unplug(manager, UNIT, timeout=0)
        assert (plugged(script), fake.total(), linux.idle(manager)) == (UNIT, 0, UNIT)


def test_a_signal_ends_the_retries_of_busy_memory_which_is_online_as_before(fake, monkeypatch):
    script = model(requested=SIZE, plugged=HALF)
    online(fake, script)
    monkeypatch.setattr(consumer, "SystemMemory", partial(SystemMemory, writer=fake, load=fake.load))
    with driven(script) as (mem, _):
        linux = Linux(consumer.system_memory(mem, fake.roots))
        manager = linux.manager(mem)
        fake.fails["memory33/state", "offline"] = [busy()] * 1000
        at_write(fake, "state", 3, lambda: mem.device.interrupt(Stop()))
        with pytest.raises(Stop):
            linux.unplug(manager, 2 * UNIT, timeout=5)
        assert plugged(script) == fake.total() == UNIT  # the other one, which was free, has gone


def test_while_following_a_signal_leaves_nothing_plugged_that_linux_let_go_of(fake):
    quarter = BLOCKS // 4
    script = model(requested=SIZE, plugged={*range(quarter), *range(2 * quarter, 3 * quarter)})  # two requests
    online(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        script.request(0)
        at_write(fake, "unbind", 2, lambda: mem.device.interrupt(Stop()))
        with pytest.raises(Stop):
            manager.follow(timeout=1)
        assert plugged(script) == fake.total() == 0


# --- the next one -------------------------------------------------------------------------------------------


def test_the_next_one_finds_and_unplugs_it(fake):
    script = model(requested=SIZE, plugged=set(range(BLOCKS)))
    killed(fake, script)
    assert (plugged(script), fake.total()) == (SIZE, 2 * UNIT)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        assert linux.idle(manager) == 2 * UNIT
        assert linux.unplug_idle(manager, UNIT) == UNIT
        assert linux.unplug_idle(manager) == UNIT
        assert plugged(script) == fake.total() == linux.bytes == 2 * UNIT


def foreign(fake: FakeKernel) -> None:
    (fake.dax / "drivers/device_dax").mkdir()
    fake.make("dax0.9")
    fake.give("dax0.9", ADDR + 3 * UNIT, UNIT, "device_dax")


def bound_to_nothing(fake: FakeKernel) -> None:
    fake.make("dax0.9")
    fake.give("dax0.9", ADDR + 3 * UNIT, UNIT)


def a_block(fake: FakeKernel, state: str) -> None:
    iomem = (fake.roots.proc / "iomem").read_text()
    fake.block((ADDR + 3 * UNIT) // UNIT, state)
    (fake.roots.proc / "iomem").write_text(iomem)  # it alone shows it


def ram(fake: FakeKernel) -> None:
    with (fake.roots.proc / "iomem").open("a") as iomem:
        iomem.write(f"    {ADDR + 3 * UNIT:x}-{ADDR + 3 * UNIT + 4095:x} : System RAM (kmem)\n")


USES = [foreign, bound_to_nothing, partial(a_block, state="online"), partial(a_block, state="offline"), ram]
IDS = ["device_dax", "no driver", "online", "offline", "System RAM"]


@pytest.mark.spec("MEM-11")
@pytest.mark.parametrize("use", USES, ids=IDS)
@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_what_linux_or_a_dax_device_has_is_not_unplugged(fake, use, when, monkeypatch):
    """Also what comes between the search and the request."""
    script = model(requested=SIZE, plugged=set(range(BLOCKS)))
    killed(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        if when == "before":
            use(fake)
            assert linux.idle(manager) == UNIT
        else:
            found = linux._idle(manager)
            monkeypatch.setattr(linux, "_idle", lambda *_: found)
            use(fake)
        assert linux.unplug_idle(manager) == UNIT
        assert plugged(script) == 3 * UNIT and BLOCKS - 1 in script.plugged


@pytest.mark.spec("MEM-11")
def test_what_this_process_uses_is_not_unplugged(fake):
    script = model(requested=SIZE, plugged=set(range(BLOCKS)))
    killed(fake, script)
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        (one,) = manager.hand_out("a view", near=ADDR + 3 * UNIT)
        mem.block_table.pin(2 * UNIT, 1, "a buffer")
        assert linux.unplug_idle(manager) == UNIT - 2 * MIB
        assert BLOCKS - 1 in script.plugged and BLOCKS // 2 in script.plugged
        manager.give_back(one)
        assert linux.unplug_idle(manager, UNIT) == UNIT


def test_parts_of_memory_blocks_go_too_but_do_not_count_for_a_size(fake):
    script = model(requested=SIZE, plugged={0, 1, 2})
    with driven(script) as (mem, _):
        linux = Linux(memory_of(fake))
        manager = linux.manager(mem)
        assert linux.idle(manager) == 6 * MIB
        assert linux.unplug_idle(manager, UNIT) == 0
        assert linux.unplug_idle(manager) == 6 * MIB
        assert not script.plugged


# --- the command --------------------------------------------------------------------------------------------


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch, fake: FakeKernel) -> Mem:
    made = model(requested=SIZE, plugged=set(range(BLOCKS)))
    monkeypatch.setattr(opening, "open", lambda address, *, options, **_: identify(address, ScriptedDevice(made)))
    monkeypatch.setattr("uvirtio.online.system_memory", lambda *_: memory_of(fake, time.sleep))
    monkeypatch.setattr("uvirtio.cli.verbs.mem_online.suspend_lock", lambda *_: None)
    return made


def test_the_command_says_what_it_found_and_counts_it(fake, script, capsys):
    killed(fake, script)
    assert run(["mem", "offline", DEV, "512M", "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    assert (made["idle_bytes"], made["online_bytes"], made["plugged_bytes"]) == (2 * UNIT, 0, 0)
    assert run(["mem", "offline", DEV]) == 0
    assert "unplugged" not in capsys.readouterr().out


def test_the_command_again_does_what_the_killed_one_was_to_do(fake, script, capsys):
    killed(fake, script)
    assert run(["mem", "offline", DEV, "256M"]) == 0
    assert "unplugged 256 MiB that were plugged and Linux did not have" in capsys.readouterr().out
    assert plugged(script) == fake.total() == 2 * UNIT
    assert run(["mem", "offline", DEV, "384M"]) == 2
    assert "at most" in capsys.readouterr().err


def test_busy_memory_is_told_with_what_was_unplugged(fake, script, capsys):
    killed(fake, script)
    fake.fails["memory32/state", "offline"] = [busy()] * 9
    assert run(["mem", "offline", DEV, "--wait", "0.01"]) == InUse.exit_code
    assert "384 MiB came back and were unplugged" in capsys.readouterr().err
    assert plugged(script) == fake.total() == UNIT


def test_what_could_not_be_unplugged_is_told_with_the_command_that_does(fake, script, capsys):
    killed(fake, script)
    script.before = lambda kind, *_: script.script.extend([int(Response.NACK)] * (kind == Request.UNPLUG))
    assert run(["mem", "offline", DEV]) == 1
    said = capsys.readouterr().err
    assert "256 MiB stay plugged that Linux does not have; `uvirtio mem offline" in said
    assert plugged(script) == SIZE
