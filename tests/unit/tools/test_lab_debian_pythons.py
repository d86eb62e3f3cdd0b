"""The interpreters of other Debian releases: what is made of their packages, and the steps that run on them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from types import SimpleNamespace

import pytest

TOOLS = next(top for top in Path(__file__).resolve().parents if (top / "pyproject.toml").exists()) / "tools"
sys.path.insert(0, str(TOOLS))

from lab import LabError, cli_test, debian_pythons, pythons, setup, unpacked  # noqa: E402
from lab.floors import Runner  # noqa: E402

LIBRARY = """
#include <stdio.h>
#include <unistd.h>
int Py_BytesMain(int count, char **words)
{
    char path[4096] = "";
    if (readlink("/proc/self/exe", path, sizeof path - 1) < 0)
        return 1;
    printf("%d %s %s\\n", count, words[0], path);
    return 7;
}
"""
LOADER = Path("/lib64/ld-linux-x86-64.so.2")


def interpreter(version: str) -> pythons.Interpreter:
    numbers = (*map(int, version.split(".")), 1)
    return pythons.Interpreter(Path("/p", version), "CPython", numbers, False, version)


@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is not installed")
@pytest.mark.skipif(not LOADER.exists(), reason="not x86-64")
def test_the_program_is_started_by_the_loader_and_with_the_libraries_beside_it(tmp_path: Path):
    work, target = tmp_path / "work", tmp_path / "target"
    libraries = work / unpacked.LIBRARIES
    libraries.mkdir(parents=True)
    (work / "usr/bin").mkdir()
    (work / "usr/bin/python9.9").write_text("the package's own, which is replaced")
    (work / unpacked.LOADER).symlink_to(LOADER)
    (tmp_path / "library.c").write_text(LIBRARY)
    command = ["gcc", "-shared", "-fPIC", str(tmp_path / "library.c"), "-Wl,-soname,libpython9.9.so.1.0"]
    command += ["-o", str(libraries / "libpython9.9.so.1.0")]
    subprocess.run(command, check=True, timeout=60)
    debian_pythons._make("python9.9", work, target)
    work.rename(target)
    program = target / "usr/bin/python9.9"
    assert os.fsencode(target / unpacked.LOADER) in program.read_bytes()
    clean = {key: value for key, value in os.environ.items() if not key.startswith("LD_")}
    done = subprocess.run([str(program), "a"], capture_output=True, text=True, timeout=60, env=clean)
    assert (done.returncode, done.stdout) == (7, f"2 {program} {program}\n")  # a program, and no script


def test_a_version_that_this_machine_has_is_not_fetched(monkeypatch: pytest.MonkeyPatch):
    def nothing(wanted: str) -> pythons.Interpreter:
        raise pythons.NotHere(f"no {wanted}", 2)

    monkeypatch.setattr(debian_pythons, "get", lambda version, **_: f"fetched {version}")
    monkeypatch.setattr(pythons, "find", lambda wanted: f"found {wanted}")
    assert debian_pythons.find("3.14") == "found 3.14"
    monkeypatch.setattr(pythons, "find", nothing)
    assert debian_pythons.find("3.14") == "fetched 3.14"
    for wanted in ("3.14t", "3.99", "python3.14"):
        with pytest.raises(pythons.NotHere, match=wanted) as caught:
            debian_pythons.find(wanted)
        assert caught.value.exit_code == 2


@pytest.mark.parametrize("version", debian_pythons.names())
def test_each_is_built_once_in_a_place_of_its_own(version, tmp_path, monkeypatch):
    """Of a release that is out, without asking the mirror again; of one in the making, each of its versions."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(setup, "packages", lambda names: None)
    monkeypatch.setattr(debian_pythons.platform, "machine", lambda: "x86_64")
    asked, built = [], []

    class Apt:
        suite, expired = "sid", ""

        def __enter__(self):
            return self

        def __exit__(self, *of):
            pass

        def version(self, package):
            return f"1:{package[6:]}.9-1"

    def updated(suite, work, *more, accept_expired):
        asked.append((suite, accept_expired))
        return Apt()

    monkeypatch.setattr(debian_pythons.debian, "updated_apt", updated)
    monkeypatch.setattr(debian_pythons, "_download", lambda apt, name, work, place: built.append(place))
    monkeypatch.setattr(pythons, "find", lambda path: path)
    moving = version in debian_pythons.MOVING
    suite = (debian_pythons.MOVING if moving else debian_pythons.SUITES)[version]
    place = tmp_path / "uvirtio/pythons" / (f"{suite}-{version}.9-1" if moving else f"{suite}-{version}")
    for _ in range(2):
        found = debian_pythons.get(version, accept_expired=True)
        assert found == str(place / f"usr/bin/python{version}")
    assert built == [place]
    assert asked == [(suite, True)] * (2 if moving else 1)


def test_another_machine_is_told_that_there_is_none_for_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(debian_pythons.platform, "machine", lambda: "aarch64")
    with pytest.raises(LabError, match=r"3\.14 is fetched for x86_64 alone, and this machine is aarch64"):
        debian_pythons.get("3.14")


def test_all_runs_the_units_on_each_and_one_that_is_not_to_be_had_fails_alone(tmp_path, monkeypatch):
    ran = []

    def get(version: str, *, accept_expired: bool) -> pythons.Interpreter:
        if version == "3.14":
            raise LabError("the index was valid until yesterday\nand more")
        return interpreter(version)

    def pytest_of(runner, name, arguments, wrapper, **given):
        ran.append((runner.venv, runner.python, name))
        return SimpleNamespace(ok=True)

    monkeypatch.setattr(debian_pythons, "get", get)
    monkeypatch.setattr(setup, "venv", lambda which: Path("/venv", str(which)))
    monkeypatch.setattr(Runner, "pytest", pytest_of)
    steps = dict(cli_test._newer_pythons(Runner(Path("/venv/own"), tmp_path)))
    assert list(steps) == [
        *("unit 1 of 2 3.13.1", "unit 2 of 2 3.13.1", "unit 3.14", "unit 1 of 2 3.15.1", "unit 2 of 2 3.15.1"),
    ]
    outcomes = [step() for step in steps.values()]
    assert [outcome.ok for outcome in outcomes] == [True, True, False, True, True]
    assert outcomes[2].note == "the index was valid until yesterday"
    assert ran == [
        (Path("/venv", version), version, f"unit {part} of 2")
        for version in ("3.13.1", "3.15.1")
        for part in (1, 2)
    ]


def test_the_package_says_that_it_is_for_what_the_tests_run_on():
    settings = tomllib.loads((TOOLS.parent / "pyproject.toml").read_text())["project"]
    said = [text.rpartition(" ")[2] for text in settings["classifiers"] if ":: Python :: 3." in text]
    oldest = ".".join(map(str, pythons.OLDEST))
    assert said[0] == oldest and settings["requires-python"] == f">={oldest}"
    assert said[-1] == debian_pythons.names()[-1] and set(debian_pythons.names()) <= set(said)
