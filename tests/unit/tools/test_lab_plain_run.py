"""What a plain run asks the lab VM for: the tables, and what they leave out."""

from __future__ import annotations

import os
import re
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.qemu import plain_run as on_qemu
from tests.vm import plain_run

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from lab import cli_test, machines
from lab.floors import Runner

VM = Path(plain_run.__file__).parent
QEMU = Path(on_qemu.__file__).parent


@pytest.mark.parametrize(("name", "patterns"), [*plain_run.OLDER.items(), *plain_run.LEFT_OUT.items()])
def test_every_pattern_is_some_tests(name, patterns):
    tests = [one for one in vars(import_module(f"tests.vm.{name}")) if one.startswith("test_")]
    for pattern in patterns:
        assert plain_run.matching(pattern.partition(r"\[")[0], tests), pattern


def cells_of(machine: str, body: str) -> set[str]:
    """The ids of the cells that a body has on a machine."""
    (entry,) = [one for one in machines.load() if one.name == machine]
    devices = set(re.findall(r"\bid=([\w-]+)", " ".join(entry.devices)))
    found = set()
    for file in entry.files:
        marks = getattr(vars(import_module(f"tests.vm.{file.stem}")).get(body), "pytestmark", [])
        for mark in marks:
            if mark.name == "parametrize" and mark.args[0] == "cell":
                found |= {one.id for one in mark.args[1] if one.values[0][0] in devices}
    return found


@pytest.mark.parametrize("machine", plain_run.CELLS)
def test_cells_that_are_left_are_some_and_each_cell_runs(machine):
    table, every = plain_run.CELLS[machine], set()
    for body, kept in table.items():
        there = cells_of(machine, body)
        every |= there
        assert there, f"no body {body} on the machine {machine}"
        for one in kept:
            assert any(one == cell or one.endswith(f"-{cell}") for cell in there), (body, one)
        assert len(kept) < len(there) or "following" in body, body
    ran = {one.removeprefix("sub-blocks-").removeprefix("big-blocks-") for kept in table.values() for one in kept}
    assert ran == every


def test_a_body_runs_on_its_cells_in_a_plain_run_and_on_all_otherwise(monkeypatch):
    def left_out(cell: str, machine: str, whole: str) -> str:
        monkeypatch.setenv("UVIRTIO_LAB_MACHINE", machine)
        monkeypatch.setenv("UVIRTIO_LAB_WHOLE", whole)
        name = f"test_rng_two_reads_differ[{cell}]"
        return plain_run.left_out(SimpleNamespace(path=VM / "test_drivers.py", name=name))

    monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release="6.12.1-amd64"))
    assert left_out("rng-intx-intx", "vfio", "0") == plain_run.CELL
    assert not left_out("rng-msix-per-queue", "vfio", "0")
    assert not left_out("rng-intx-intx", "vfio", "1")
    assert not left_out("rng-legacy-msix-per-queue", "legacy", "0"), "another machine, with its own cells"


def test_the_older_kernel_leaves_out_what_the_table_does_not_name(monkeypatch):
    def left_out(file: str, name: str, release: str, whole: str) -> str:
        monkeypatch.setattr(os, "uname", lambda: SimpleNamespace(release=release))
        monkeypatch.setenv("UVIRTIO_LAB_WHOLE", whole)
        return plain_run.left_out(SimpleNamespace(path=VM / f"{file}.py", name=name))

    kept, other = "test_rng_completions_come_by_interrupt[rng-intx]", "test_rng_two_reads_differ[rng-intx]"
    assert left_out("test_drivers", other, "6.1.0-50-amd64", "0")
    assert not left_out("test_drivers", other, "6.1.0-50-amd64", "1")
    assert not left_out("test_drivers", other, "6.12.1-amd64", "0")
    assert not left_out("test_drivers", kept, "6.1.0-50-amd64", "0")
    assert not left_out("test_vfio_backend", "test_bus_master", "6.1.0-50-amd64", "0"), "it is not in the table"
    long = "test_twenty_cycles_leave_sysfs_as_it_was"
    assert left_out("test_commands", long, "6.12.1-amd64", "0") == plain_run.LONG
    assert not left_out("test_commands", long, "6.12.1-amd64", "1")


def test_on_pc_a_body_runs_where_q35_does_not_have_it(monkeypatch):
    def left_out(*names: str) -> list[str]:
        items = [SimpleNamespace(path=QEMU / "test_drivers.py", name=name) for name in names]
        return [one.name for one in on_qemu.left_out(items)]

    both, twin = "test_rng_two_reads_differ[pc-rng-pci-intx]", "test_rng_two_reads_differ[q35-rng-pci-intx]"
    nested = ("test_mem_following_the_host[sub-blocks-pc-mem-pci-intx]",)
    nested += ("test_mem_following_the_host[sub-blocks-q35-mem-pci-intx]",)
    shown = [name.replace("two_reads_differ", "completions_come_by_interrupt") for name in (both, twin)]
    monkeypatch.setenv("UVIRTIO_LAB_WHOLE", "0")
    assert left_out(both, twin) == [both]
    assert left_out(*nested) == [nested[0]]
    assert left_out(both) == [], "q35 does not have it"
    assert left_out(both, twin.replace("intx", "polling")) == [], "not with these interrupts"
    assert left_out(*shown) == [], "it shows what differs"
    for whole in ("1", ""):
        monkeypatch.setenv("UVIRTIO_LAB_WHOLE", whole)
        assert left_out(both, twin) == []


def test_the_bodies_that_run_on_both_machines_are_there():
    names = {name for file in ("test_drivers", "test_mem") for name in vars(import_module(f"tests.qemu.{file}"))}
    assert set(on_qemu.ON_BOTH) <= names


def test_the_verdict_says_how_many(tmp_path, capsys):
    case = '<testcase name="{}"><skipped message="{}"/></testcase>'
    cases = case.format("a", plain_run.REASON) + case.format("b", "no such device") + '<testcase name="c"/>'
    path = tmp_path / "x.xml"
    path.write_text(f'<testsuite tests="3" skipped="2" failures="0" errors="0">{cases}</testsuite>')
    outcome = Runner(tmp_path, tmp_path)._judge("vm x 6.1", 0, path, time.monotonic())
    assert (outcome.ok, outcome.passed, outcome.skipped, outcome.left) == (True, 1, 2, 1)
    assert cli_test._verdict([outcome], 1.0, tmp_path, ["vm y 6.1"]) == 0
    assert "\nnot run, for tools/test --all only: vm y 6.1, 1 tests of vm x 6.1\n" in capsys.readouterr().out
