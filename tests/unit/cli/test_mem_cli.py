"""``uvirtio mem`` on a scripted device: what it prints, what it refuses, and what the kernel has."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from tests.unit.drivers.test_mem import driven
from uvirtio import opening
from uvirtio.cli.app import run
from uvirtio.device import Device, OpenOptions
from uvirtio.drivers.mem.kernel_use import note_kernel_use
from uvirtio.errors import ConfigError, InUse
from uvirtio.host.memory import system_ram
from uvirtio.host.roots import Roots
from uvirtio.opening import identify
from uvirtio.scripted.mem import ADDR, BLOCK, Mem
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.spec.mem import Request, Response

DEV = "0000:00:04.0"


@pytest.fixture
def model(monkeypatch: pytest.MonkeyPatch) -> Iterator[Mem]:
    made = Mem(blocks=64, usable=48 * BLOCK, requested=32 * BLOCK, plugged={0, 1, 2, 3, 10, 11})
    functions = []

    def open_it(address: str, *, options: OpenOptions, **_: Any) -> Device:
        functions.append(ScriptedDevice(made))
        return identify(address, functions[-1], options=options)

    monkeypatch.setattr(opening, "open", open_it)
    yield made
    for function in functions:
        function.assert_left()


@pytest.fixture
def root(tmp_path) -> str:
    (tmp_path / "proc").mkdir()
    return str(tmp_path)


def answer(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    return json.loads(capsys.readouterr().out)


def test_status_says_it_all(model, root, capsys):
    assert run(["mem", "status", DEV, "--json", "--root", root]) == 0
    made = answer(capsys)
    assert made["plugged_bytes"] == 6 * BLOCK and made["requested_bytes"] == 32 * BLOCK
    assert made["leftover_blocks"] == 6 and made["node_id"] == 3
    assert made["answers"]["ack"] == len(model.requests) > 0
    assert run(["mem", "status", DEV, "--root", root]) == 0
    out = capsys.readouterr().out
    assert "plugged:        12 MiB, 6 blocks" in out


@pytest.mark.spec("MEM-15")
def test_it_says_what_a_suspend_would_do(model, root, capsys):
    assert run(["mem", "status", DEV, "--root", root]) == 0
    assert "would lose plugged memory" in capsys.readouterr().out
    assert run(["mem", "plug", DEV, "2M", "--root", root]) == 0
    assert "do not suspend" in capsys.readouterr().err


@pytest.mark.fault(76)
def test_verify_tells_what_is_not_there(monkeypatch, root, capsys):
    """The memory's file ends in the middle of what is plugged."""
    made = Mem(blocks=16, requested=16 * BLOCK, plugged={0}, memory=True)

    class Function(ScriptedDevice):
        """Its memory is a file of this process, and not this machine's."""

        def plugged_memory(self):
            return made.window()

    monkeypatch.setattr(opening, "open", lambda address, **_: identify(address, Function(made)))
    monkeypatch.setattr(made, "_set", lambda meant, *, plug: setattr(made, "plugged", made.plugged | meant))
    assert run(["mem", "plug", DEV, "4M", "--verify", "--root", root]) == 0
    assert "each new page was written and read" in capsys.readouterr().out
    os.ftruncate(made.fd, 4 * BLOCK)
    assert run(["mem", "plug", DEV, "4M", "--verify", "--root", root]) == 1
    said = capsys.readouterr()
    assert "plugged 10 MiB, 6 MiB before" in said.out and "was written and read" not in said.out
    assert "1 of 2 blocks were acknowledged, and their memory is not there" in said.err
    assert f"{ADDR + 4 * BLOCK:#x}: " in said.err
    assert run(["mem", "plug", DEV, "2M", "--verify", "--json", "--root", root]) == 1
    found = answer(capsys)
    assert [one["address"] for one in found["bad"]] == [ADDR + 5 * BLOCK]
    assert (found["plugged_bytes"], found["error"]["code"]) == (6 * BLOCK, "UV-OPERATION")
    made.close()


def test_the_map_is_a_bar_of_blocks(model, root, capsys):
    assert run(["mem", "map", DEV, "--root", root]) == 0
    first, legend, _ = capsys.readouterr().out.splitlines()
    assert first == f"{ADDR:#014x} " + "####......##" + "." * 36 + "-" * 16
    assert legend.startswith("each character is 2 MiB")
    assert run(["mem", "map", DEV, "--json", "--root", root]) == 0
    assert answer(capsys)["ranges"] == [
        {"address": ADDR, "bytes": 4 * BLOCK, "blocks": 4, "state": "plugged"},
        {"address": ADDR + 10 * BLOCK, "bytes": 2 * BLOCK, "blocks": 2, "state": "plugged"},
    ]


def test_a_large_region_is_a_smaller_map(root, capsys, monkeypatch):
    made = Mem(blocks=1 << 16, requested=BLOCK << 15, plugged=set(range(100)))
    monkeypatch.setattr(opening, "open", lambda address, **_: identify(address, ScriptedDevice(made)))
    assert run(["mem", "map", DEV, "--root", root]) == 0
    *bars, legend, _ = capsys.readouterr().out.splitlines()
    assert len(bars) == 32 and "each character is 64 MiB" in legend
    assert bars[0].split()[1].startswith("###+....")


def test_plug_and_unplug(model, root, capsys):
    assert run(["mem", "plug", DEV, "8M", "--json", "--root", root]) == 0
    made = answer(capsys)
    assert (made["before_bytes"], made["plugged_bytes"], made["mode"]) == (6 * BLOCK, 10 * BLOCK, "big-blocks")
    assert run(["mem", "unplug", DEV, "4M", "--unit", "8M", "--json", "--root", root]) == 0
    made = answer(capsys)
    assert (made["plugged_bytes"], made["mode"]) == (8 * BLOCK, "sub-blocks")
    assert len(model.plugged) == 8
    assert run(["mem", "plug", DEV, "25%", "--root", root]) == 0
    assert len(model.plugged) == 24
    capsys.readouterr()
    assert run(["mem", "unplug-all", DEV, "--root", root]) == 0
    assert model.plugged == set()


@pytest.mark.parametrize(
    ("argv", "code", "said"),
    [
        (["plug", DEV, "3M"], 2, "nearest valid sizes: 2097152 and 4194304"),
        (["plug", DEV, "0"], 2, "at least one block"),
        (["plug", DEV, "1K"], 2, "nearest valid size: 2097152"),
        (["plug", DEV, "lots"], 2, "UV-USAGE-SIZE"),
        (["plug", DEV, "1G"], 2, "more than the region has left"),
        (["plug", DEV, "64M"], 1, "UV-MEM-NACK"),
        (["unplug", DEV, "14M"], 2, "more than is plugged"),
        (["unplug", DEV, "2M", "--unit", "3M"], 2, "power of two"),
        (["plug", DEV, "2M", "--unit", "1G"], 2, "no whole"),
        (["follow", DEV, "--limit", "3M", "--for", "1"], 2, "nearest valid sizes"),
        (["follow", DEV, "--for", "-1"], 2, "above 0"),
    ],
)
def test_what_makes_no_sense_changes_nothing(model, root, capsys, argv, code, said):
    assert run(["mem", *argv, "--root", root]) == code
    assert said in capsys.readouterr().err
    assert len(model.plugged) == 6
    assert all(kind == Request.STATE for kind, _, _ in model.requests)


@pytest.mark.parametrize("answers", [(Response.BUSY, 1), (Response.NACK, 1), (Response.ERROR, 1), (99, 1)])
def test_refusals_are_told_apart(model, root, capsys, answers):
    kind, code = answers
    states = len(range(6)) * 20
    model.before = lambda request, addr, blocks: (
        model.script.append(kind) if request == Request.PLUG else model.script.clear()
    )
    assert run(["mem", "plug", DEV, "2M", "--timeout", "0.2", "--root", root]) == code
    said = {Response.BUSY: "UV-MEM-BUSY", Response.NACK: "UV-MEM-NACK", Response.ERROR: "UV-MEM-ERROR"}
    assert said.get(kind, "UV-DEV-PROTOCOL") in capsys.readouterr().err
    assert len(model.requests) < states


def test_follow_says_where_it_is(model, root, capsys):
    assert run(["mem", "follow", DEV, "--for", "0.3", "--json", "--root", root]) == 0
    events = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [event["event"] for event in events] == ["following", "reached", "leaving"]
    assert events[-1]["plugged_bytes"] == 32 * BLOCK == events[-1]["requested_bytes"]
    assert len(model.plugged) == 32
    assert run(["mem", "follow", DEV, "--for", "0.2", "--limit", "8M", "--root", root]) == 0
    said = capsys.readouterr().out
    assert "leaving (--for is over): requested 64 MiB, plugged 8 MiB" in said
    assert "units of 2 MiB, steps of 2 MiB: big-blocks (BBM)" in said
    assert run(["mem", "follow", DEV, "--for", "0.1", "--unit", "8M", "--root", root]) == 0
    assert "units of 8 MiB, steps of 2 MiB: sub-blocks (SBM)" in capsys.readouterr().out


# --- what the kernel has ------------------------------------------------------------------------------------


def iomem(root, *lines: str) -> Roots:
    roots = Roots.under(root)
    (roots.proc / "iomem").write_text("\n".join(lines) + "\n")
    return roots


def test_the_kernels_memory_is_found_at_any_depth(root):
    roots = iomem(
        root,
        "00001000-0009fbff : System RAM",
        "fec00000-fec003ff : IOAPIC 0",
        f"{ADDR:x}-{ADDR + 8 * BLOCK - 1:x} : Soft Reserved",
        f"  {ADDR:x}-{ADDR + 4 * BLOCK - 1:x} : dax0.0",
        f"    {ADDR:x}-{ADDR + 4 * BLOCK - 1:x} : System RAM (kmem)",
        "00000000-00000000 : System RAM",
        "garbage",
    )
    assert system_ram(roots) == [
        (0x1000, 0x9EC00, "System RAM"),
        (ADDR, 4 * BLOCK, "System RAM (kmem)"),
    ]
    assert system_ram(Roots.under(root + "/nowhere")) == []


def test_where_iomem_hides_its_addresses_the_memory_blocks_tell(root):
    roots = iomem(root, "00000000-00000000 : System RAM")
    folder = roots.sys / "devices/system/memory"
    for name in ("memory0", f"memory{ADDR // (128 << 20)}", "power"):
        (folder / name).mkdir(parents=True)
    (folder / "block_size_bytes").write_text("8000000\n")
    assert [(first, size) for first, size, _ in system_ram(roots)] == [(0, 128 << 20), (ADDR, 128 << 20)]


@pytest.mark.fault(77)
@pytest.mark.spec("MEM-11")
def test_what_the_kernel_uses_is_not_unplugged(root):
    roots = iomem(root, f"{ADDR:x}-{ADDR + 2 * BLOCK - 1:x} : System RAM (kmem)")
    with driven(Mem(plugged={0, 1, 2, 3}, requested=8 * BLOCK)) as (mem, _):
        pins = note_kernel_use(mem, roots)
        assert len(pins) == 1
        for call in (mem.unplug_all, lambda: mem.unplug(ADDR + BLOCK, 1)):
            with pytest.raises(InUse, match="in use") as caught:
                call()
            assert "the kernel (System RAM (kmem))" in caught.value.seen
        mem.unplug(ADDR + 2 * BLOCK, 2)


def test_a_region_over_the_kernels_memory_is_refused(root):
    roots = iomem(root, f"{ADDR - BLOCK:x}-{ADDR + 2 * BLOCK - 1:x} : System RAM")
    with driven(Mem(plugged={0}, requested=8 * BLOCK)) as (mem, _), pytest.raises(ConfigError, match="lies over"):
        note_kernel_use(mem, roots)


def test_the_commands_look_there_first(model, root, capsys):
    iomem(root, f"{ADDR:x}-{ADDR + 2 * BLOCK - 1:x} : System RAM (kmem)")
    assert run(["mem", "unplug-all", DEV, "--root", root]) == 3
    assert "UV-REFUSED-IN-USE" in capsys.readouterr().err
    assert len(model.plugged) == 6
    assert run(["mem", "map", DEV, "--root", root]) == 0
    assert "@@##......##" in capsys.readouterr().out


def test_a_scripted_address_is_no_memory_of_this_machine(root, capsys):
    """Whatever this machine has where the region says that it lies."""
    iomem(root, f"{ADDR:x}-{ADDR + 64 * BLOCK - 1:x} : System RAM")
    assert run(["mem", "status", "scripted:mem", "--root", root]) == 0
    assert "plugged:        0 B" in capsys.readouterr().out
    assert run(["mem", "unplug-all", "scripted:mem", "--root", root]) == 0
    for words in (["plug", "scripted:mem", "2M", "--verify"], ["online", "scripted:mem"]):
        assert run(["mem", *words, "--root", root]) == 4
        assert "UV-ENV-NOT-SUPPORTED" in capsys.readouterr().err
