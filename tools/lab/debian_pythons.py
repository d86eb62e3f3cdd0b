"""CPython of another Debian release, for ``tools/test``: downloaded by apt and unpacked, never installed.

Debian's program wants /usr/lib and the C library of its release. So another one is made here, of two lines that
call libpython: the loader that was unpacked with it starts it, it finds its libraries beside itself, and programs
that a test starts get nothing of this by their environment.
"""

from __future__ import annotations

import platform
from pathlib import Path

from lab import LabError, cache, debian, pythons, setup, unpacked
from lab.debian import Apt
from lab.process import run
from lab.pythons import Interpreter

SUITES = {"3.13": "trixie"}
MOVING = {"3.14": "sid", "3.15": "sid"}
"""The versions, and the suite that has each; MOVING: the release that it has today, as in qemus.py."""

_SOURCE = """\
int Py_BytesMain(int count, char **words);
int main(int count, char **words) { return Py_BytesMain(count, words); }
"""
_WHEELS = "/usr/share/python-wheels/"
"""Where pip lies that venv puts into an environment."""
_UNUSED = ("doc", "info", "locale", "man", "zoneinfo")


def names() -> list[str]:
    """What ``get`` takes."""
    return [*SUITES, *MOVING]


def find(wanted: str, *, accept_expired: bool = False) -> Interpreter:
    """``pythons.find``, and of Debian a version that this machine has not. LabError if there is neither."""
    try:
        return pythons.find(wanted)
    except pythons.NotHere:
        if wanted not in names():
            raise
    return get(wanted, accept_expired=accept_expired)


def get(version: str, *, accept_expired: bool = False) -> Interpreter:
    """The interpreter of ``version``, one of ``names``; downloaded on first use. LabError where that fails.

    ``accept_expired``: also from an index that is too old to be trusted.
    """
    if platform.machine() != "x86_64":
        raise LabError(f"Python {version} is fetched for x86_64 alone, and this machine is {platform.machine()}")
    setup.packages(setup.FOR_PEERS)
    name = f"python{version}"
    if version in MOVING:
        root, _ = debian.newest(
            "pythons",
            MOVING[version],
            name,
            lambda apt, work, place: _download(apt, name, work, place),
            accept_expired=accept_expired,
        )
    else:
        target = cache.root() / "pythons" / f"{SUITES[version]}-{version}"

        def build(work: Path) -> None:
            with debian.updated_apt(SUITES[version], work, accept_expired=accept_expired) as apt:
                _download(apt, name, work, target)

        root = cache.build_once(target, build)
    return pythons.find(str(root / "usr/bin" / name))


def _download(apt: Apt, name: str, work: Path, target: Path) -> None:
    """Unpack the interpreter ``name`` of the suite into ``work``, which will be at ``target``."""
    print(f"lab: fetching {name} of {apt.suite} (once; 20 MB, kept in {cache.root()})", flush=True)
    apt.extract(apt.needed(f"{name}-venv", f"lib{name}"), work)
    for folder in _UNUSED:
        run(["rm", "-rf", str(work / "usr/share" / folder)])
    modules = work / "usr/lib" / name
    for file in modules.glob("_sysconfigdata*.py"):
        file.write_text(file.read_text().replace(f"'{_WHEELS}'", f"'{target}{_WHEELS}'"))
    program = work / "usr/bin" / name
    # What installing would have done. The package's own program can, by a loader; workers (-j) would have none.
    command = [str(work / unpacked.LOADER), "--library-path", str(work / unpacked.LIBRARIES)]
    command += ["--argv0", str(program), str(program), "-m", "compileall", "-qq"]
    run([*command, "-s", str(work), "-p", str(target), str(modules)])
    _make(name, work, target)


def _make(name: str, work: Path, target: Path) -> None:
    """Make the program in ``work``, which will be at ``target``, of ``name``'s libpython. LabError without gcc."""
    source, program = work / "main.c", work / "usr/bin" / name
    source.write_text(_SOURCE)
    program.unlink()
    command = ["gcc", "-O2", "-Wall", "-Wextra", "-Werror", str(source), "-o", str(program)]
    command += [str(work / unpacked.LIBRARIES / f"lib{name}.so.1.0")]
    command += [f"-Wl,--dynamic-linker={target / unpacked.LOADER},-rpath={target / unpacked.LIBRARIES}"]
    # RPATH and not RUNPATH: it is for the libraries of libraries, too. And those are of a newer C library.
    command.append("-Wl,--disable-new-dtags,--allow-shlib-undefined")
    run(command, timeout=120)
