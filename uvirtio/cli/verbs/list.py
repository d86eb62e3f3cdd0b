"""``uvirtio list``: the virtio devices of this machine, from sysfs alone; no device is touched."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, FromOption, verb

if TYPE_CHECKING:
    from uvirtio.binding.discover import DiscoveredDevice
    from uvirtio.binding.rules import Verdicts


def register(app: typer.Typer) -> None:
    """Add ``list`` to the application."""
    verb(app, "list")(list_devices)


def list_devices(
    cmd: Command,
    kind: Annotated[str, typer.Argument(metavar="[TYPE]", help="Only this type: balloon, net, blk, ...")] = "",
    names: Annotated[
        bool, typer.Option("--names", help="Show the names of udev's hardware database, too.")
    ] = False,
    file: FromOption = "",
) -> None:
    """List the virtio devices of this machine, or of a dump.

    IN USE names the rules that see it at work here (mounted, network ...). A question mark: none does, but
    not all that they look at can be seen by this user; inspect DEV says what.
    """
    wanted = device_type(kind) if kind else None
    if file:
        from uvirtio.cli.verbs.from_file import list_file

        list_file(cmd, file, wanted)
        return
    from uvirtio.binding.discover import scan, unlisted
    from uvirtio.binding.facts import Facts
    from uvirtio.binding.hwdb import hardware
    from uvirtio.binding.rules import check

    facts = Facts(cmd.roots)
    shown = [
        (found, check(found, cmd.roots, facts))
        for found in scan(cmd.roots)
        if wanted is None or found.device_id == wanted[0]
    ]
    # Only when asked: loading libudev takes longer than everything else.
    called = [{"hardware": hardware(found, cmd.roots)} if names else {} for found, _ in shown]
    hidden = [f"{place} cannot be listed" for place in unlisted(cmd.roots)]
    if cmd.json:
        cmd.document(
            devices=[
                {**device_members(found, verdicts), **more}
                for (found, verdicts), more in zip(shown, called, strict=True)
            ],
            hidden=hidden,
        )
        return
    for text in hidden:
        cmd.line(f"not visible: {text}")
    if not shown:
        cmd.line("no virtio devices found" if wanted is None else f"no {wanted[1]} devices found")
        return
    cmd.table(
        (
            *("ADDRESS", "TYPE", "PCI ID", "INTERFACE", "DRIVER", "KERNEL DRIVER", "GROUP", "IN USE"),
            *(("HARDWARE",) if names else ()),
        ),
        [
            (*_row(found, verdicts), *(_called(one) for one in more.values()))
            for (found, verdicts), more in zip(shown, called, strict=True)
        ],
    )


def _called(hardware: dict[str, str | None] | None) -> str:
    return "-" if hardware is None else " ".join(filter(None, hardware.values()))


def device_type(kind: str) -> tuple[int, str]:
    """The device id and the name of a type.

    Args:
        kind: ``balloon``, ``virtio-balloon``, or ``unknown(N)`` for the id N.

    Raises:
        UsageError: There is no such type.
    """
    from uvirtio.spec import ids

    device_id = ids.require_type(kind)
    return device_id, ids.type_name(device_id)


def device_members(found: DiscoveredDevice, verdicts: Verdicts) -> dict[str, Any]:
    """One device as a member of ``devices`` in the JSON of ``list``."""
    from uvirtio.binding.api import describe

    return describe(found, verdicts).as_dict()


def _row(found: DiscoveredDevice, verdicts: Verdicts) -> tuple[str, ...]:
    from uvirtio.binding.rules import in_use

    rules = ",".join(dict.fromkeys(one.rule for one in in_use(verdicts.findings)))
    group = "-" if found.iommu_group is None else str(found.iommu_group)
    return (
        found.address,
        found.type,
        found.pci_id or "-",
        found.interface,
        found.driver or "-",
        found.kernel_driver or "-",
        f"{group} (no IOMMU)" if found.noiommu else group,
        rules or ("?" if _unseen_use(verdicts) else "-"),
    )


def _unseen_use(verdicts: Verdicts) -> bool:
    from uvirtio.binding.rules import IN_USE

    return any(one.rule in IN_USE for one in verdicts.unchecked)
