"""The work of list, doctor, plan and bind grows with the number of devices, not with its square.

What is counted is every call of a function, in Python or in C, that a command makes: the same at each run. The
seconds are in ``tools/bench --only discovery``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import api, doctor, journal
from uvirtio.binding.bind import bind
from uvirtio.binding.discover import find_all, scan
from uvirtio.binding.plan import plan, plans
from uvirtio.host import mmio, sysfs

FEW, MANY = 16, 64


@contextmanager
def counted() -> Iterator[list[int]]:
    total = [0]

    def see(frame: object, event: str, argument: object) -> None:
        total[0] += event in ("call", "c_call")

    sys.setprofile(see)
    try:
        yield total
    finally:
        sys.setprofile(None)


def virt(top: Path, count: int, *, driven: bool = True) -> FakeSys:
    """A machine of so many windows, eight in each page, as on microvm and virt; an rng in each."""
    fake = FakeSys(top)
    lines = []
    for number in range(count):
        base = 0xA000000 + number // 8 * 0x10000 + number % 8 * 0x200
        name = f"{base:x}.virtio_mmio"
        fake.mmio(name, "rng" if driven else None, compatible=b"virtio,mmio\0", reg=(base, 0x200))
        if driven:
            lines.append(f"{base:08x}-{base + 0x1FF:08x} : {name} virtio_mmio@{base:x}\n")
    fake.text(fake.roots.proc / "iomem", "".join(lines) + "40000000-7fffffff : System RAM\n")
    return fake


def list_them(fake: FakeSys) -> None:
    assert api.list(roots=fake.roots)


def doctor_of_it(fake: FakeSys) -> None:
    assert doctor.checks(fake.roots, qemu_version=lambda _: "")


def find_each(fake: FakeSys) -> None:
    names = [path.name for path in (fake.sys / "bus/platform/devices").iterdir()]
    assert len(find_all(names, fake.roots)) == len(names)


def plan_of_all(fake: FakeSys) -> None:
    assert plans(scan(fake.roots), fake.roots, force=["many"])


def plan_of_one_page(fake: FakeSys) -> None:
    assert plan(scan(fake.roots)[0], fake.roots, group=True)


@pytest.mark.parametrize("driven", [True, False])
@pytest.mark.parametrize("work", [list_them, doctor_of_it, find_each, plan_of_all, plan_of_one_page])
def test_four_times_the_windows_are_four_times_the_work(
    tmp_path: Path, work: Callable[[FakeSys], None], driven: bool
) -> None:
    needed = []
    for count in (FEW, MANY):
        fake = virt(tmp_path / str(count), count, driven=driven)
        work(fake)  # the imports
        with counted() as total:
            work(fake)
        needed.append(total[0])
    assert needed[1] <= 1.25 * (MANY // FEW) * needed[0]


def test_bind_reads_the_machine_as_often_whatever_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[str] = []
    walked = mmio.windows

    def windows(*arguments: object) -> object:
        looks.append("windows")
        return walked(*arguments)  # type: ignore[arg-type]

    read = sysfs.read

    def entry(path: Path, *rest: int) -> str | None:
        if path.suffix == ".json":
            looks.append("journal")
        return read(path, *rest)

    monkeypatch.setattr(mmio, "windows", windows)
    monkeypatch.setattr(sysfs, "read", entry)
    needed = []
    for count in (8, 32):
        fake = virt(tmp_path / str(count), count)
        looks.clear()
        bind(scan(fake.roots), fake.roots, force=["many"], writer=FakeKernel(fake))
        assert len(journal.entries(fake.roots)) == 1
        looks.clear()
        bind(scan(fake.roots), fake.roots, force=["many"], writer=FakeKernel(fake))  # all of it is done already
        needed.append(len(looks))
    assert needed[0] == needed[1]


def test_list_reads_the_journal_as_often_whatever_the_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[Path] = []
    read = sysfs.read

    def look(path: Path, *rest: int) -> str | None:
        if path.suffix == ".json":
            looks.append(path)
        return read(path, *rest)

    monkeypatch.setattr(sysfs, "read", look)
    needed = []
    for count in (8, 32):
        fake = virt(tmp_path / str(count), count)
        fake.text(journal.directory(fake.roots) / "0.json", "{")
        looks.clear()
        assert all("earlier-bind" in one.unchecked for one in api.list(roots=fake.roots))
        needed.append(len(looks))
    assert needed[0] == needed[1] > 0


def test_a_group_of_functions_is_read_once(tmp_path: Path) -> None:
    needed = []
    for count in (FEW, MANY):
        fake = FakeSys(tmp_path / str(count))
        for number in range(count):
            fake.pci(f"0000:{number // 8:02x}:{number % 8:02x}.0", "rng", group=5)
        list_them(fake)
        with counted() as total:
            list_them(fake)
        needed.append(total[0])
    # The evidence against each names all others, so some of it is quadratic, and has to be.
    assert needed[1] <= 2 * (MANY // FEW) * needed[0]
