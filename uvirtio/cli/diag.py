"""``uvirtio diag`` and ``uvirtio reset``: bring-up, step by step, and back to the start."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from uvirtio.cli import output
from uvirtio.cli.common import DevArgument, Run, verb
from uvirtio.errors import NotSupported

if TYPE_CHECKING:
    from uvirtio.diag import Report, Step

_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


def register(app: typer.Typer) -> None:
    verb(app, "diag", opens=True)(diag)
    verb(app, "reset", opens=True)(reset)


def diag(run: Run, dev: DevArgument) -> int:
    """Bring a device up step by step and say which step fails."""
    from uvirtio.diag import STEPS, diagnose

    number = 0

    def tell(step: Step) -> None:
        nonlocal number
        number += 1
        if not run.json:
            _tell(run, number, len(STEPS), step)

    report = diagnose(dev, options=run.options, on_step=tell, opened=run.guard.watch)
    run.guard.watch(None)
    return _conclude(run, report)


def _tell(run: Run, number: int, count: int, step: Step) -> None:
    run.line(
        f"{number:>{len(str(count))}}/{count}  {_MARK[step.verdict]:<4}  {step.name:<20}  "
        f"{step.took_s * 1000:8.1f} ms  ({step.spec})"
    )
    for text in (step.detail, f"hint: {step.hint}" if step.hint else ""):
        if text:
            run.line(f"{'':13}{text}")


def _conclude(run: Run, report: Report) -> int:
    """The verdict; a device that was not even reached is no failed device but its error's own case."""
    stopped = None if report.reached_device else report.error
    if run.json:
        members = report.as_dict()
        if report.error is not None:
            members["error"] = report.error.as_dict()
        run.document(**members)
    else:
        run.line(f"verdict: {report.verdict} ({report.type} at {report.address})")
        if stopped is not None:
            output.error(stopped, run.command, as_json=False)
    if stopped is not None:
        return stopped.exit_code
    return 1 if report.verdict == "fail" else 0


def reset(
    run: Run,
    dev: DevArgument,
    flr: Annotated[bool, typer.Option("--flr", help="Then a function-level reset too.")] = False,
) -> None:
    """Reset a device and wait until it says that it is done."""
    from uvirtio.spec.status import describe

    with run.device(dev) as device:
        before = device.transport.status()
        device.reset()
        if flr and not device.transport.function_reset():
            raise NotSupported(
                f"{device.address} has no function-level reset",
                seen="none that this back end can ask for",
                expected="a function with FLR or another reset method",
                remedy="the virtio reset was done; leave --flr out",
            )
        after = device.transport.status()
        if run.json:
            run.document(
                address=device.address,
                type=device.type,
                status_before=before,
                status_after=after,
                function_reset=flr,
            )
            return
        how = "reset, then function-level reset" if flr else "reset"
        run.line(f"{device.address} ({device.type}): {how}")
        run.fields([("status before", describe(before)), ("status after", describe(after))])
