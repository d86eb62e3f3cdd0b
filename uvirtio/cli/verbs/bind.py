"""``plan``, ``bind``, ``restore`` and ``journal``: bind devices to a user-space driver, and back to their own."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli import output
from uvirtio.cli.command import Command, LookArgument, seconds, verb
from uvirtio.errors import OperationFailed, UsageError, UvirtioError

if TYPE_CHECKING:
    from uvirtio.binding.plan import Member, Plan
    from uvirtio.binding.settle import Settling

DriverOption = Annotated[
    str, typer.Option("--driver", metavar="NAME", help="vfio-pci or uio_pci_generic (default: what fits).")
]
GroupOption = Annotated[bool, typer.Option("--group", help="Bind the rest of the IOMMU group, too.")]
ForceOption = Annotated[
    list[str] | None,
    typer.Option("--force", metavar="RULE", help="Override RULE; repeatable."),
]
WaitOption = Annotated[
    float | None,
    typer.Option("--wait", metavar="SECONDS", help="Wait until udev is done, at most SECONDS."),
]
DevsArgument = Annotated[list[str], typer.Argument(metavar="DEV...", help="Device addresses.")]


def register(app: typer.Typer) -> None:
    """Add ``plan``, ``bind``, ``restore`` and ``journal`` to the application."""
    verb(app, "plan")(plan)
    verb(app, "bind")(bind)
    verb(app, "restore")(restore)
    verb(app, "journal")(journal)


# --- plan ---------------------------------------------------------------------------------------------------


def plan(
    cmd: Command,
    dev: LookArgument,
    driver: DriverOption = "",
    group: GroupOption = False,
    force: ForceOption = None,
) -> int:
    """Show what bind would check and write; change nothing."""
    from uvirtio.binding.discover import find
    from uvirtio.binding.plan import plan as make_plan

    made = make_plan(find(dev, cmd.roots), cmd.roots, driver or None, group, force or ())
    first = made.problems[0] if made.problems else None
    if cmd.json:
        members = made.as_dict()
        cmd.document(**members, **({"error": first.as_dict()} if first is not None else {}))
    else:
        _print_plan(cmd, made)
    # The exit code that bind would have, for scripts.
    return 0 if first is None else first.exit_code


def _print_plan(cmd: Command, made: Plan) -> None:
    now, then = made.found.driver or "no driver", made.driver or "(no usable driver)"
    cmd.line(f"{made.found.address} ({made.found.type}): {now} -> {then}")
    if made.nothing_to_do:
        cmd.line("nothing to do: already bound")
    for member in made.members:
        _print_member(cmd, member)
    for check in made.checks:
        cmd.line(f"check {check.name}: {check.verdict}: {check.detail}")
        if check.remedy:
            cmd.line(f"  remedy: {check.remedy}")
    if not made.problems:
        cmd.line("bind would change nothing" if made.nothing_to_do else "bind would go ahead")
    for problem in made.problems:
        cmd.line(f"bind would refuse: {problem.code}: {problem.message}")
        for label, value in (("seen", problem.seen), ("remedy", problem.remedy)):
            if value is not None:
                cmd.line(f"  {label}: {value}")


def _print_member(cmd: Command, member: Member) -> None:
    if len(member.steps):
        cmd.line(f"{member.found.address} : what would be written")
    for step in member.steps:
        cmd.line(f"  echo {step.value.strip() or chr(39) * 2} > {step.path}  # {step.why}")
    for finding in member.findings:
        cmd.line(f"  rule {finding.rule} ({finding.severity}): {finding.evidence}")
    for item in member.unchecked:
        cmd.line(f"  rule {item.rule} unchecked: {item.why}")


# --- bind and restore ---------------------------------------------------------------------------------------


def bind(
    cmd: Command,
    devs: DevsArgument,
    driver: DriverOption = "",
    group: GroupOption = False,
    owner: Annotated[
        str | None, typer.Option("--owner", metavar="USER[:GROUP]", help="Make USER the owner of the device node.")
    ] = None,
    force: ForceOption = None,
    wait: WaitOption = None,
) -> int:
    """Bind devices to a user-space driver, all or none. restore undoes it."""
    from uvirtio.binding import bind as binding
    from uvirtio.binding.discover import find_all
    from uvirtio.binding.owner import owner_ids

    _check_wait(wait)
    ids = None if owner is None else owner_ids(owner)
    founds = find_all(dict.fromkeys(devs), cmd.roots, aliases=False)
    with _settling([found.path for found in founds], cmd, wait) as udev:
        done = binding.bind(
            founds,
            cmd.roots,
            driver=driver or None,
            group=group,
            force=force or (),
            owner=ids,
            argv=["uvirtio", *sys.argv[1:]],
        )
        if not cmd.json:
            for one in done:
                node = f", node {one.node}" if one.node else ""
                how = "already bound" if one.journal is None else "bound"
                cmd.line(f"{one.address}: {how} to {one.driver or 'no driver'}{node}")
                _say_unchecked(one.address, one.unchecked)
        return _settled(cmd, udev, wait, [one.as_dict() for one in done])


def _say_unchecked(address: str, names: tuple[str, ...]) -> None:
    if names:
        output.note(f"{address}: this user could not see everything for the rule {', '.join(names)}")


def _check_wait(wait: float | None) -> None:
    if wait is not None:
        seconds("--wait", wait)


def _settling(paths: Iterable[Path], cmd: Command, wait: float | None) -> AbstractContextManager[Settling | None]:
    """With --wait: what listens to udev from now on."""
    if wait is None:
        return nullcontext()
    from uvirtio.binding.settle import Settling

    return Settling(paths, cmd.roots)


def _settled(
    cmd: Command,
    udev: Settling | None,
    wait: float | None,
    devices: list[dict[str, Any]],
    failed: UvirtioError | None = None,
) -> int:
    """Wait for udev with --wait; then print the document of a command whose devices have changed drivers.

    They have changed whether udev finishes in time or not, and whether others failed: so all is reported.
    """
    members: dict[str, Any] = {} if failed is None else {"error": failed.as_dict()}
    failure: OperationFailed | None = None
    if udev is not None and wait is not None:
        try:
            there = udev.wait(wait)
            members["udev"] = "settled" if there else udev.why
            if not there and not cmd.json:
                output.note(f"nothing to wait for: {udev.why}")
        except OperationFailed as error:
            failure = error
            members.setdefault("error", error.as_dict())
    if cmd.json:
        cmd.document(devices=devices, **members)
    elif failure is not None:
        output.error(failure, cmd.name, as_json=False)
    return 0 if failure is None else failure.exit_code


def restore(
    cmd: Command,
    devs: Annotated[
        list[str] | None, typer.Argument(metavar="[DEV...]", help="Addresses of devices that bind has bound.")
    ] = None,
    every: Annotated[bool, typer.Option("--all", help="Every device in the journal.")] = False,
    forget: Annotated[
        bool, typer.Option("--forget", help="Only remove DEV from the journal; it keeps its driver.")
    ] = False,
    wait: WaitOption = None,
) -> int:
    """Give devices back to the drivers that they had before bind."""
    if bool(devs) == every or (forget and every):
        raise UsageError(
            "restore takes devices, or --all; --forget takes devices",
            expected="devices or --all, not both",
            remedy="`uvirtio journal` shows what is bound",
        )
    from uvirtio.binding import restore as restoring
    from uvirtio.binding.journal import entries, unread
    from uvirtio.host import sysfs

    _check_wait(wait)
    if forget:
        return _forget(cmd, devs or [])
    # All that is in the journal: devices that keep their driver are not waited for.
    listed = [device for entry in entries(cmd.roots) for device in entry.devices] if wait is not None else []
    with _settling([sysfs.device(one.bus, one.name, cmd.roots) for one in listed], cmd, wait) as udev:
        each = restoring.restore_each(cmd.roots, None if every else list(dict.fromkeys(devs or ())))
        unseen = unread(cmd.roots) if every else None
        failure = restoring.failure_of(each, unseen)
        if not cmd.json:
            for one in each:
                if isinstance(one, restoring.Restored):
                    cmd.line(f"{one.address}: {_ACTIONS[one.action]}".replace("DRIVER", one.driver or "no driver"))
                    _say_unchecked(one.address, one.unchecked)
            if not each:
                cmd.line("nothing to restore" + (", as far as the journal can be read" if unseen else ""))
            for error in [*(one.error for one in each if isinstance(one, restoring.Failed)), unseen]:
                if error is not None:
                    output.error(error, cmd.name, as_json=False)
        settled = _settled(cmd, udev, wait, [one.as_dict() for one in each], failure)
        return settled if failure is None else failure.exit_code


def _forget(cmd: Command, devs: list[str]) -> int:
    from uvirtio.binding import restore as restoring

    done = restoring.forget(cmd.roots, devs)
    if cmd.json:
        cmd.document(devices=[{**one.as_dict(), "before": was.as_dict()} for one, was in done])
        return 0
    for one, was in done:
        cmd.line(
            f"{one.address}: no longer in the journal; it has {one.driver or 'no driver'}, "
            f"and had {was.driver or 'no driver'} before bind"
        )
    return 0


_ACTIONS = {
    "restored": "given back to DRIVER",
    "already": "already back with DRIVER",
    "gone": "is gone, and no longer in the journal",
    "replaced": "is another device now, which keeps DRIVER; no longer in the journal",
}


# --- journal ------------------------------------------------------------------------------------------------


def journal(cmd: Command) -> int:
    """Show what bind has changed and restore would undo."""
    from uvirtio.binding.journal import damaged, entries, hidden, unread
    from uvirtio.binding.standing import standing

    found, failure = entries(cmd.roots), unread(cmd.roots)
    code = 0 if failure is None else failure.exit_code
    if cmd.json:
        documents = [entry.as_dict() for entry in found]
        for entry, document in zip(found, documents, strict=True):
            for device, shown in zip(entry.devices, document["devices"], strict=True):
                shown["now"] = standing(device, cmd.roots, entry.state)
        members: dict[str, Any] = {} if failure is None else {"error": failure.as_dict()}
        unseen, bad = ([str(path) for path in look(cmd.roots)] for look in (hidden, damaged))
        cmd.document(entries=documents, hidden=unseen, damaged=bad, **members)
        return code
    if failure is not None:
        output.error(failure, cmd.name, as_json=False)
    if not found:
        cmd.line("nothing is bound by uvirtio" + (", as far as the journal can be read" if failure else ""))
        return code
    rows: list[tuple[Any, ...]] = [
        (
            time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(entry.time)),
            entry.state,
            device.address,
            device.type,
            device.driver or "-",
            device.target or "-",
            _NOW[standing(device, cmd.roots, entry.state)],
        )
        for entry in found
        for device in entry.devices
    ]
    cmd.table(("WHEN", "STATE", "ADDRESS", "TYPE", "FROM", "TO", "NOW"), rows)
    return code


_NOW = {
    "bound": "bound",
    "unfinished": "unfinished",
    "as-before": "as before",
    "gone": "gone",
    "replaced": "another device",
    "claimed": "claimed by another program",
    "taken": "bound by another program",
}
