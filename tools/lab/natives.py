"""Compiled packages of the environment, for a guest of another architecture.

The environment is this machine's; nearly all of it is Python, which any guest takes. What is not is fetched once
more, as wheels for the guest, and stands before the others in its path. It is never imported here.
"""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path

from lab import cache
from lab.arches import X86_64, Arch
from lab.process import run

# Of all that the commands and their tests import: what typer converts values with. (evdev, of the input bridge,
# has no wheels for ARM.)
_WANTED = ("pydantic_core",)
_GLIBC = ("manylinux_2_17", "manylinux2014", "manylinux_2_28", "manylinux_2_34", "manylinux_2_35")


def get(arch: Arch, venv: Path) -> Path | None:
    """The folder with them; fetched on first use, and again when a version changes. None: nothing is needed."""
    wanted = compiled(venv) if arch is not X86_64 else []
    if not wanted:
        return None
    key = hashlib.sha256(" ".join([_python(), *wanted]).encode()).hexdigest()[:16]
    where = cache.root() / "natives" / f"{arch.name}-{key}"
    return cache.build_once(where, lambda work: _fetch(arch, venv, wanted, work))


def compiled(venv: Path) -> list[str]:
    """NAME==VERSION of each package of the environment that has a wheel for each architecture."""
    found = []
    for info in sorted(venv.glob("lib/python3*/site-packages/*.dist-info")):
        name, _, version = info.name.removesuffix(".dist-info").partition("-")
        if name.lower() in _WANTED and not _is_pure(info):
            found.append(f"{name}=={version}")
    return found


def _python() -> str:
    return f"{sys.version_info.major}.{sys.version_info.minor}"


def _is_pure(info: Path) -> bool:
    wheel = info / "WHEEL"
    return wheel.is_file() and re.search(r"^Root-Is-Purelib: true$", wheel.read_text(), re.M) is not None


def _fetch(arch: Arch, venv: Path, wanted: list[str], work: Path) -> None:
    print(f"lab: fetching {', '.join(wanted)} for {arch.name} (once; 2 MB)", flush=True)
    command = [str(venv / "bin/python"), "-m", "pip", "--disable-pip-version-check", "-qq", "install"]
    command += ["--no-deps", "--only-binary=:all:"]
    command += [word for glibc in _GLIBC for word in ("--platform", f"{glibc}_{arch.name}")]
    command += ["--python-version", _python(), "--target", str(work)]
    for package in wanted:
        run([*command, package], timeout=300)
