"""What a plain run asks the lab VM for: the tables, and what they leave out."""

from __future__ import annotations

import os
import sys
import time
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.vm import plain_run

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools"))

from lab import cli_test
from lab.floors import Runner

VM = Path(plain_run.__file__).parent


@pytest.mark.parametrize(("name", "patterns"), [*plain_run.OLDER.items(), *plain_run.LEFT_OUT.items()])
def test_every_pattern_is_some_tests(name, patterns):
    tests = [one for one in vars(import_module(f"tests.vm.{name}")) if one.startswith("test_")]
    for pattern in patterns:
        assert plain_run.matching(pattern.partition(r"\[")[0], tests), pattern


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


def test_the_verdict_says_how_many(tmp_path, capsys):
    case = '<testcase name="{}"><skipped message="{}"/></testcase>'
    cases = case.format("a", plain_run.REASON) + case.format("b", "no such device") + '<testcase name="c"/>'
    path = tmp_path / "x.xml"
    path.write_text(f'<testsuite tests="3" skipped="2" failures="0" errors="0">{cases}</testsuite>')
    outcome = Runner(tmp_path, tmp_path)._judge("vm x 6.1", 0, path, time.monotonic())
    assert (outcome.ok, outcome.passed, outcome.skipped, outcome.left) == (True, 1, 2, 1)
    assert cli_test._verdict([outcome], 1.0, tmp_path, ["vm y 6.1"]) == 0
    assert "\nnot run, for tools/test --all only: vm y 6.1, 1 tests of vm x 6.1\n" in capsys.readouterr().out
