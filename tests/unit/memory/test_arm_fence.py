"""The fence of AArch64 is ``dmb ish``: seen in the code that runs, or in the library of the lab's AArch64 root.

QEMU's TCG on x86 executes loads and stores in x86's order, so no race in an emulated machine shows what a missing
barrier does; the instruction is what can be looked at. docs/design.md says which of them is needed where.
"""

from __future__ import annotations

import ctypes
import mmap
from pathlib import Path

import pytest

from tests.support.arm_barriers import barriers, disassembled, objdump
from uvirtio.host import cpu
from uvirtio.memory import access
from uvirtio.memory.access import MappedRegisters

DMB_ISH, DMB_OSHST, DSB_SY, RET = 0xD5033BBF, 0xD50332BF, 0xD5033F9F, 0xD65F03C0
FUNCTION = "atomic_thread_fence"


def code(*words: int) -> bytes:
    return b"".join(word.to_bytes(4, "little") for word in words)


def test_barriers_are_read_as_the_architecture_encodes_them():
    assert barriers(code(DMB_ISH, RET)) == ["dmb ish"]
    assert barriers(code(0xD503245F, DMB_OSHST, 0xD503201F, DSB_SY, RET, DMB_ISH)) == ["dmb oshst", "dsb sy"]
    assert barriers(code(RET)) == []
    for unreadable in (code(0x14000002, DMB_ISH, RET), code(DMB_ISH)):  # a branch; no end
        with pytest.raises(ValueError):
            barriers(unreadable)


@pytest.mark.spec("SPL-26", "PKD-16")
def test_the_fence_that_this_machine_calls_is_a_full_barrier():
    if not cpu.is_arm64():
        pytest.skip(f"this machine is {cpu.machine()}")
    function = ctypes.PyDLL("libatomic.so.1").atomic_thread_fence
    place = ctypes.cast(function, ctypes.c_void_p).value
    assert place is not None
    assert barriers(ctypes.string_at(place, 64)) == ["dmb ish"]


@pytest.mark.spec("SPL-26", "PKD-16")
def test_the_fence_of_the_labs_root_is_a_full_barrier():
    roots = Path("~/.cache/uvirtio/roots").expanduser()
    libraries = sorted(roots.glob("aarch64-*/usr/lib/aarch64-linux-gnu/libatomic.so.1"))
    program = objdump()
    if not libraries:
        pytest.skip("no AArch64 root is here: tools/vm run --arch aarch64 fetches it")
    if program is None:
        pytest.skip("no disassembler: apt-get install binutils-aarch64-linux-gnu")
    for library in libraries:
        assert disassembled(program, library, FUNCTION) == ["dmb ish", "ret"]
        # The control: the fence for signal handlers of the same thread is no instruction at all.
        assert disassembled(program, library, "atomic_signal_fence") == ["ret"]


@pytest.mark.parametrize("width", [8, 16, 32])
def test_memory_is_ordered_around_registers_as_by_writel_and_readl(width: int, monkeypatch: pytest.MonkeyPatch):
    with mmap.mmap(-1, 4096) as page:
        seen: list[int] = []
        monkeypatch.setattr(access, "order_fence", lambda: lambda: seen.append(page[0]))
        registers = MappedRegisters(page, 0, 64)
        getattr(registers, f"write{width}")(0, 7)
        assert seen == [0]  # the fence, then the store
        page[0] = 9
        assert getattr(registers, f"read{width}")(0) == 9
        assert seen == [0, 9]  # the load, then the fence
        registers.close()


def test_x86_needs_no_fence_around_registers(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(cpu, "machine", lambda: "x86_64")
    with mmap.mmap(-1, 4096) as page:
        registers = MappedRegisters(page, 0, 64)
        assert registers._order is None
        registers.close()
