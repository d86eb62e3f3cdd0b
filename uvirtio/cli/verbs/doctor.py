"""``uvirtio doctor``: what this machine has and lacks for driving devices from user space."""

from __future__ import annotations

import sys
from pathlib import Path

import typer

from uvirtio.cli import output
from uvirtio.cli.command import Command, verb
from uvirtio.errors import EnvironmentLack
from uvirtio.host import sysfs
from uvirtio.host.roots import Roots


def register(app: typer.Typer) -> None:
    """Add ``doctor`` to the application."""
    verb(app, "doctor")(doctor)


def places(roots: Roots) -> dict[str, Path]:
    """The files and directories of uvirtio on this machine: purpose -> path."""
    from uvirtio.binding import journal
    from uvirtio.host.lock import lock_path

    return {
        "deny list": roots.etc / "uvirtio/deny",
        "journal": journal.directory(roots),
        "locks": lock_path("ADDRESS", roots),
    }


def doctor(cmd: Command) -> int:
    """Check what this machine has and lacks for driving devices."""
    from uvirtio.binding.doctor import checks

    found = checks(cmd.roots)
    lacks = [one for one in found if one.verdict == "fail"]
    where = places(cmd.roots)
    rules = Path(sys.prefix) / "share/uvirtio/udev-rules"  # where a wheel installs them
    if sysfs.is_dir(rules):
        where["udev rules"] = rules
    if cmd.json:
        cmd.document(
            checks=[one.as_dict() for one in found],
            verdict="fail" if lacks else "pass",
            places={name.replace(" ", "_"): str(path) for name, path in where.items()},
        )
    else:
        for one in found:
            first, *rest = output.wrapped(f"{one.name}: {one.detail}", " " * 6)
            cmd.line(f"{_MARK[one.verdict]:<4}  {first.lstrip()}")
            for text in rest:
                cmd.line(text)
            if one.remedy:
                cmd.line(f"      remedy: {one.remedy}")
        cmd.line()
        cmd.fields([*where.items()])
    return EnvironmentLack.exit_code if lacks else 0


_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
