"""``uvirtio doctor``: what this machine has for driving devices from user space, and what it lacks."""

from __future__ import annotations

import typer

from uvirtio.cli import output
from uvirtio.cli.command import Command, verb
from uvirtio.errors import EnvironmentLack


def register(app: typer.Typer) -> None:
    verb(app, "doctor")(doctor)


def doctor(cmd: Command) -> int:
    """What this machine has for driving devices from user space, and what it lacks."""
    from uvirtio.binding.doctor import checks

    found = checks(cmd.roots)
    lacks = [one for one in found if one.verdict == "fail"]
    if cmd.json:
        cmd.document(checks=[one.as_dict() for one in found], verdict="fail" if lacks else "pass")
    else:
        for one in found:
            first, *rest = output.wrapped(f"{one.name}: {one.detail}", " " * 6)
            cmd.line(f"{_MARK[one.verdict]:<4}  {first.lstrip()}")
            for text in rest:
                cmd.line(text)
            if one.remedy:
                cmd.line(f"      remedy: {one.remedy}")
    return EnvironmentLack.exit_code if lacks else 0


_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}
