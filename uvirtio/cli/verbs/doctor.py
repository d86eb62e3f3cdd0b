"""``uvirtio doctor``: what this machine has and lacks for driving devices from user space."""

from __future__ import annotations

import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, verb
from uvirtio.errors import EnvironmentLack, UsageError
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


class Text(StrEnum):
    """A file for an administrator, who decides whether it is installed."""

    UDEV = "udev"
    LIMITS = "limits"
    UNIT = "unit"


_FILES = {
    Text.UDEV: "70-uvirtio.rules",
    Text.LIMITS: "50-uvirtio.limits.conf",
    Text.UNIT: "uvirtio-balloon@.service",
}


def rules_folder() -> Path | None:
    """Where udev-rules/ is: as a wheel installs it, or in the checkout that this runs from."""
    installed = Path(sys.prefix) / "share/uvirtio/udev-rules"
    for place in (Path(__file__).resolve().parents[3] / "udev-rules", installed):
        if sysfs.is_dir(place):
            return place
    return None


def text_of(which: Text) -> str:
    """The text of one of the files of udev-rules/.

    Raises:
        EnvironmentLack: It was not installed with the package.
    """
    place = rules_folder()
    text = None if place is None else sysfs.read(place / _FILES[which], 1 << 16)
    if text is None:
        raise EnvironmentLack(
            f"{_FILES[which]} is not here",
            seen=f"no such file below {place or Path(sys.prefix) / 'share/uvirtio'}",
            expected="udev-rules/, as the wheel and the sources have it",
            remedy="`pip install uvirtio` into an environment of its own has it; so have the sources",
        )
    return text


def doctor(
    cmd: Command,
    text: Annotated[
        Text | None,
        typer.Option("--print", help="Print a file to install instead: udev rules, limits, a systemd unit."),
    ] = None,
) -> int:
    """Check what this machine has and lacks for driving devices."""
    if text is not None:
        if cmd.json:
            raise UsageError(
                "--print has no JSON", seen="--json", expected="the text as it is", remedy="leave --json out"
            )
        output.write(text_of(text) + "\n")
        return 0
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
            for line in rest:
                cmd.line(line)
            if one.remedy:
                cmd.line(f"      remedy: {one.remedy}")
        cmd.line()
        cmd.fields([*where.items()])
    return EnvironmentLack.exit_code if lacks else 0


_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
