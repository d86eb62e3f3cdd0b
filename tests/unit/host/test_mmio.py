"""The kernel's command line as Linux parses it, and the virtio-mmio windows that come of it."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.fakes.fakesys import FakeSys
from uvirtio.host import mmio, proc


@pytest.fixture
def fake(tmp_path: Path) -> FakeSys:
    return FakeSys(tmp_path)


# --- parameters ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("", []),
        ("  quiet\tro=1  ", [("quiet", None), ("ro", "1")]),
        ("a= b", [("a", ""), ("b", None)]),
        ("a=b=c", [("a", "b=c")]),
        ('a="b c" d', [("a", "b c"), ("d", None)]),
        ('"a=b c" d', [("a", "b c"), ("d", None)]),
        ('a=b" "c', [("a", 'b" "c')]),
        ('a="b c', [("a", "b c")]),
        ('"', [("", None)]),
        ("=a", [("=a", None)]),
        ("a -- b=c", [("a", None)]),
        ("a --b -- c", [("a", None), ("--b", None)]),
        ("a --=1 b", [("a", None), ("--", "1"), ("b", None)]),
    ],
)
def test_parameters(line: str, expected: list[tuple[str, str | None]]) -> None:
    assert proc.parameters(line) == expected


@given(st.text(alphabet=' "=-ab', max_size=40))
def test_no_command_line_is_an_error(line: str) -> None:
    for name, value in proc.parameters(line):
        assert value is None or isinstance(name, str)


# --- windows ------------------------------------------------------------------------------------------------

BASE = "0xfeb00000"


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # size, in every base and with every suffix (memparse)
        (["512@0xfeb00000:5"], [(0, 0xFEB00000, 512)]),
        (["0x200@0xfeb00000:5"], [(0, 0xFEB00000, 512)]),
        (["01000@0xfeb00000:5"], [(0, 0xFEB00000, 512)]),
        (["1K@0xfeb00000:5"], [(0, 0xFEB00000, 1024)]),
        (["1k@0xfeb00000:5"], [(0, 0xFEB00000, 1024)]),
        (["2M@0xfeb00000:5"], [(0, 0xFEB00000, 2 << 20)]),
        (["1g@0x100000000:5"], [(0, 1 << 32, 1 << 30)]),
        (["1T@0x100000000:5"], [(0, 1 << 32, 1 << 40)]),
        (["@0xfeb00000:5"], []),
        (["K@0xfeb00000:5"], []),
        (["08@0xfeb00000:5"], []),
        # base: hexadecimal, decimal, octal (%lli)
        (["512@4273995776:5"], [(0, 0xFEC00000, 512)]),
        (["512@0XFEB00000:5"], [(0, 0xFEB00000, 512)]),
        (["512@01000:5"], [(0, 0o1000, 512)]),
        (["512@0:5"], [(0, 0, 512)]),
        (["512@feb00000:5"], []),
        (["512@-4096:5"], []),
        (["512@0x:5"], []),
        (["512@ 0xfeb00000: 5"], [(0, 0xFEB00000, 512)]),
        # the interrupt: decimal, not 0
        (["512@0xfeb00000"], []),
        (["512@0xfeb00000:"], []),
        (["512@0xfeb00000:0"], []),
        (["512@0xfeb00000:0x5"], []),
        (["512@0xfeb00000:4294967296"], []),
        (["512@0xfeb00000:010"], [(0, 0xFEB00000, 512)]),
        # the id counts on
        (["512@0x1000:5", "512@0x2000:5"], [(0, 0x1000, 512), (1, 0x2000, 512)]),
        (["512@0x1000:5:3", "512@0x2000:5"], [(3, 0x1000, 512), (4, 0x2000, 512)]),
        (["512@0x1000:5", "512@0x2000:5:7", "512@0x3000:5", "512@0x4000:5:1", "512@0x5000:5"],
         [(0, 0x1000, 512), (1, 0x4000, 512), (2, 0x5000, 512), (7, 0x2000, 512), (8, 0x3000, 512)]),
        (["512@0x1000:5:007"], [(7, 0x1000, 512)]),
        # what is refused makes no device; an id in it counts
        (["x", "512@0x2000:5"], [(0, 0x2000, 512)]),
        (["512@0x1000:5x", "512@0x2000:5"], [(0, 0x2000, 512)]),
        (["512@0x1000:5:", "512@0x2000:5"], [(0, 0x2000, 512)]),
        (["512@0x1000:5:4x", "512@0x2000:5"], [(4, 0x2000, 512)]),
        (["512@0x1000:0:4", "512@0x2000:5"], [(4, 0x2000, 512)]),
        # one window twice is one window
        (["512@0x1000:5", "512@0x1000:5"], [(0, 0x1000, 512)]),
    ],
)  # fmt: skip
def test_windows_are_what_linux_makes_of_the_parameter(
    fake: FakeSys, values: list[str], expected: list[tuple[int, int, int]]
) -> None:
    words = (
        f'virtio_mmio.device="{value}"' if " " in value else f"virtio_mmio.device={value}" for value in values
    )
    fake.text(fake.roots.proc / "cmdline", f"ro {' '.join(words)} quiet\n")
    found = [(one.name, one.base, one.length, one.registered) for one in mmio.windows(fake.roots)]
    assert found == [(f"virtio-mmio.{number}", base, length, False) for number, base, length in expected]


@pytest.mark.parametrize(
    ("line", "there"),
    [
        (f"virtio_mmio.device=512@{BASE}:5", True),
        (f"virtio-mmio.device=512@{BASE}:5", True),
        (f'"virtio_mmio.device=512@{BASE}:5"', True),
        (f'virtio_mmio.device="512@{BASE}:5"', True),
        (f"quiet -- virtio_mmio.device=512@{BASE}:5", False),
        (f"virtio_mmio.device=512@{BASE}:5 -- single", True),
        (f"virtio_mmio.devices=512@{BASE}:5", False),
        (f"Virtio_mmio.device=512@{BASE}:5", False),
        (f"xvirtio_mmio.device=512@{BASE}:5", False),
        (f'x="y virtio_mmio.device=512@{BASE}:5"', False),
        ("virtio_mmio.device", False),
    ],
)
def test_which_parameter_it_is(fake: FakeSys, line: str, there: bool) -> None:
    fake.text(fake.roots.proc / "cmdline", line + "\n")
    assert bool(mmio.windows(fake.roots)) is there


def test_an_odd_id_is_found_by_its_address(fake: FakeSys) -> None:
    fake.mmio("virtio-mmio")
    fake.text(fake.roots.proc / "cmdline", "virtio_mmio.device=512@0x1000:5:-1 virtio_mmio.device=512@0x2000:5\n")
    assert [(one.name, one.base, one.registered) for one in mmio.windows(fake.roots)] == [
        ("virtio-mmio", 0x1000, True), ("virtio-mmio.0", 0x2000, False)]  # fmt: skip


def test_the_list_of_addresses_overrules_the_command_line(fake: FakeSys) -> None:
    fake.mmio("virtio-mmio.0")
    fake.text(fake.roots.proc / "cmdline", "virtio_mmio.device=512@0x1000:5\n")
    fake.text(fake.roots.proc / "iomem", "feb00000-feb003ff : virtio-mmio.0\n")
    (found,) = mmio.windows(fake.roots)
    assert (found.name, found.base, found.length) == ("virtio-mmio.0", 0xFEB00000, 1024)


@given(st.text(alphabet='virtio_mm-.device=0x19aK@: "', max_size=60))
def test_any_command_line_is_survived(tmp_path_factory: pytest.TempPathFactory, line: str) -> None:
    fake = FakeSys(tmp_path_factory.mktemp("tree"))
    fake.text(fake.roots.proc / "cmdline", f"virtio_mmio.device={line}")
    for window in mmio.windows(fake.roots):
        assert window.base is not None and window.length > 0
