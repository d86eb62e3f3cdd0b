"""virtio-mem on vfio-pci, in a stock kernel: plugged memory through /dev/mem, and as another device's buffers.

The witness is the QMP of the QEMU around the VM. The devices are those of the machine "mem".
"""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from typing import Any

import pytest

import uvirtio
from tests.bodies import Cell, adopt, any_device, mem
from tests.bodies.mem import emptied  # noqa: F401  # a fixture
from tests.vm import commands
from tests.vm.lab_cell import lab_cell
from tests.vm.qmp_witness import Witness
from tests.vm.test_drivers import driver_of, given_back, hand_over  # noqa: F401  # one is a fixture
from uvirtio.device import QueueSpec
from uvirtio.drivers.base import runs, transact
from uvirtio.drivers.mem import Manager, Mem, Region
from uvirtio.drivers.mem.kernel_use import note_kernel_use
from uvirtio.errors import NotPlugged, NotSupported, PermissionLack
from uvirtio.host import cpu
from uvirtio.host.memory import system_ram
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.memory.window import dev_mem
from uvirtio.spec import rng as rng_spec

PER_QUEUE, SHARED, INTX, POLLING = InterruptMode
MIB = 1 << 20
CELLS = [
    ("mem", INTX),
    ("mem", POLLING),
    ("mem-iova", INTX),
    ("mem-msix", PER_QUEUE),
    ("mem-msix-shared", SHARED),
    ("mem-msix-packed", PER_QUEUE),
]


@pytest.fixture
def cell(
    request: pytest.FixtureRequest,
    lab_devices: dict[str, str],
    witness: Witness,
    given_back: None,  # noqa: F811
) -> Cell:
    name, mode = request.param
    if name not in lab_devices:
        pytest.skip(f"this machine has no {name}")
    address = lab_devices[name]
    hand_over(address, "vfio-pci")

    return lab_cell(
        witness,
        name,
        mode,
        lambda: uvirtio.open(address, interrupts=[mode], timeout=10),
        translated=name in ("mem-iova", "mem-msix-shared"),
    )


def cells() -> list[Any]:
    return [pytest.param(one, id=f"{one[0]}-{one[1].value}") for one in CELLS]


globals().update(adopt(any_device, cells()))
USE_IT = ("patterns_stay_while_others_are_unplugged", "the_hosts_memory_falls", "hand_outs_and_the_host_wanting")
"""Bodies that read and write plugged memory, and so need a CPU that has it as ordinary memory in /dev/mem."""

on_x86 = pytest.mark.skipif(not cpu.maps_any_memory_as_normal(), reason="plugged memory is device memory here")
globals().update(
    {
        name: body
        for name, body in adopt(mem, cells()).items()
        if cpu.maps_any_memory_as_normal() or not name.removeprefix("test_mem_").startswith(USE_IT)
    }
)


@pytest.mark.skipif(cpu.maps_any_memory_as_normal(), reason="plugged memory is ordinary memory here")
@pytest.mark.parametrize("cell", cells(), indirect=True)
def test_where_it_is_device_memory_it_is_refused(cell: Cell, emptied: None) -> None:  # noqa: F811
    """An unaligned access to it would end the process; plugging it, and giving it back, is no access."""
    with cell.open() as device, Mem(device) as memory:
        mem.request(cell, 4 * MIB)
        memory.plug(memory.addr, 2)
        with pytest.raises(NotSupported, match="plugged memory cannot be used") as caught:
            Region.open(memory)
        assert "restore" in (caught.value.remedy or "")
        assert memory.config().plugged_size == 2 * memory.block_size
        memory.unplug_all()


# --- memory of this machine ---------------------------------------------------------------------------------


@pytest.fixture
def plugs(
    lab_devices: dict[str, str],
    witness: Witness,
    given_back: None,  # noqa: F811
) -> Iterator[str]:
    """The address of the memory device, with 64 MiB requested and nothing plugged."""
    if "mem" not in lab_devices:
        pytest.skip("this machine has no mem")
    hand_over(lab_devices["mem"], "vfio-pci")
    path = "/machine/peripheral/mem"
    witness.execute("qom-set", path=path, property="requested-size", value=64 * MIB)
    yield lab_devices["mem"]
    witness.execute("qom-set", path=path, property="requested-size", value=0)
    with uvirtio.open(lab_devices["mem"], timeout=10) as device, Mem(device) as memory:
        memory.unplug_all()


@pytest.mark.spec("MEM-12")
def test_plugged_memory_is_real_memory(plugs: str) -> None:
    with uvirtio.open(plugs, timeout=10) as device, Mem(device) as memory, Region.open(memory) as region:
        manager = Manager(memory, unit=16 * MIB, region=region)
        manager.converge()
        assert note_kernel_use(memory, Roots()) == []
        [unit] = manager.hand_out("test", count=1)
        with region.view(unit.address - memory.addr, unit.size) as piece:
            for offset in range(0, unit.size, MIB):
                piece.view[offset : offset + 8] = offset.to_bytes(8, "little")
        for offset in range(0, unit.size, MIB):
            found = region.read(unit.address - memory.addr + offset, 8)
            assert int.from_bytes(found, "little") == offset
        with pytest.raises(NotPlugged):
            region.read(64 * MIB, 1)


@pytest.mark.parametrize("reader", ["rng", "rng-iova"])
@pytest.mark.spec("MEM-08")
def test_another_device_reads_into_plugged_memory(plugs: str, lab_devices: dict[str, str], reader: str) -> None:
    """Under either reading of an address: guest-physical, and an IOVA that maps plugged blocks alone."""
    hand_over(lab_devices[reader], "vfio-pci")
    with uvirtio.open(plugs, timeout=10) as one, Mem(one) as memory, Region.open(memory) as region:
        block = memory.block_size
        memory.plug(memory.addr + block, 2)
        memory.plug(memory.addr + 5 * block, 1)
        with uvirtio.open(lab_devices[reader], timeout=10) as two:
            two.start(wanted=0, queues=[QueueSpec(rng_spec.REQUESTQ, "requestq", size=8)])
            buffer = region.alloc(2 * block, shown=two.dma)
            [(address, length)] = buffer.segments(0, 2 * block)
            assert length == 2 * block
            assert two.dma.translated == (reader == "rng-iova")
            if not two.dma.translated:
                assert address == memory.addr + block
            for offset in (0, block - 32, 2 * block - 64):
                queue = two.queues[rng_spec.REQUESTQ]
                done = transact(two, queue, (), runs(buffer, offset, 64), timeout=10, what="random bytes")
                assert done.written == 64
                assert len(set(buffer.view[offset : offset + 64])) > 8
            assert not any(buffer.view[4096:8192])
            buffer.close()
            shown = region.show(two.dma)
            assert [piece.size for piece in shown] == [2 * block, block]
            for piece in shown:
                piece.close()
            two.stop()


@pytest.mark.fault(77)
@on_x86
def test_the_kernels_own_memory_is_not_for_us() -> None:
    """/dev/mem gives plugged memory, of which the kernel knows nothing, and none of the kernel's."""
    if "mem" not in subprocess.run(["ls", "/dev"], capture_output=True, text=True, timeout=10).stdout.split():
        pytest.skip("no /dev/mem")
    first, size, _ = max(system_ram(Roots()), key=lambda run: run[1])
    window = dev_mem(first + size // 2 // 4096 * 4096, 4096, Roots())
    with pytest.raises(PermissionLack, match="cannot be mapped"):
        window.map(0, 4096)
    window.close()


def test_the_command(plugs: str) -> None:
    def run(*words: str) -> tuple[int, str]:
        done = commands.uvirtio("mem", *words)
        return done.returncode, done.stdout + done.stderr

    code, said = run("plug", plugs, "32M")
    assert code == 0 and "do not suspend" in said and "systemd-inhibit" in said
    code, said = run("map", plugs)  # another process finds what the first has left
    assert code == 0 and "#" * 16 + "." in said
    code, said = run("plug", plugs, "64M")
    assert code == 1 and "UV-MEM-NACK" in said
    code, said = run("unplug", plugs, "3M")
    assert code == 2 and "nearest valid sizes: 2097152 and 4194304" in said
    code, said = run("unplug", plugs, "16M")
    assert code == 0
    code, said = run("follow", plugs, "--for", "1")
    assert code == 0 and "plugged 64 MiB" in said
    assert "cannot block a suspend" in said  # no logind in the lab
    code, said = run("unplug-all", plugs)
    assert code == 0 and "plugged 0 B, 64 MiB before" in said


@pytest.mark.fault(94)
@pytest.mark.fault(79, level="K")
def test_a_plug_that_is_killed_leaves_what_the_device_says(plugs: str, witness: Witness) -> None:
    """At three moments; what was acknowledged stays, is found by the next command, and goes on demand."""

    def size() -> int:
        every = [one["data"] for one in witness.execute("query-memory-devices")]
        return int(next(one["size"] for one in every if one["id"] == "mem"))

    for wait in (0.0, 0.3, 1.0):
        with commands.running("mem", "plug", plugs, "64M", "--unit", "2M") as child:
            with contextlib.suppress(TimeoutError):
                child.wait(wait)
            child.kill()
            child.wait(commands.PATIENCE)
        done = commands.uvirtio("mem", "status", plugs, "--json")
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["plugged_bytes"] == size()
        assert commands.uvirtio("mem", "unplug-all", plugs).returncode == 0
        assert size() == 0


def test_without_the_boot_parameter_the_line_to_add_is_printed(plugs: str, witness: Witness) -> None:
    """This machine was booted without it; the machine "mem-online" with just such a line."""
    (one, *_) = [
        device["data"] for device in witness.execute("query-memory-devices") if device["data"]["id"] == "mem"
    ]
    size = int(witness.execute("qom-get", path="/machine/peripheral/mem", property="memaddr"))
    assert size == one["memaddr"]
    line = f"memmap={one['max-size'] >> 20}M%{one['memaddr']:#x}+0xefffffff dax_hmem.region_idle=1"
    for words in (["online", plugs], ["online", plugs, "128M"], ["follow", plugs, "--online", "--for", "1"]):
        done = commands.uvirtio("mem", *words)
        assert done.returncode == 4, done.stdout + done.stderr
        assert f"add this to the kernel's command line and boot again: {line}\n" in done.stderr
        assert "nothing Soft Reserved there" in done.stderr
    assert witness.execute("query-memory-devices")[0]["data"]["size"] == 0, "nothing was plugged for it"
