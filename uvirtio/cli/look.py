"""``list``, ``doctor`` and ``features``: they look, by sysfs alone, and touch nothing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from uvirtio.cli.common import Run, verb
from uvirtio.errors import EnvironmentLack, UsageError

if TYPE_CHECKING:
    from uvirtio.binding.discover import Found
    from uvirtio.binding.rules import Verdicts


def register(app: typer.Typer) -> None:
    verb(app, "list")(list_devices)
    verb(app, "doctor")(doctor)
    verb(app, "features")(features)


# --- list ---------------------------------------------------------------------------------------------------


def list_devices(
    run: Run,
    kind: Annotated[str, typer.Argument(metavar="[TYPE]", help="Only these: balloon, net, blk, ...")] = "",
) -> None:
    """The virtio devices of this machine."""
    from uvirtio.binding.discover import scan
    from uvirtio.binding.facts import Facts
    from uvirtio.binding.rules import check

    wanted = _device_type(kind) if kind else None
    facts = Facts(run.roots)
    shown = [
        (found, check(found, run.roots, facts))
        for found in scan(run.roots)
        if wanted is None or found.device_id == wanted[0]
    ]
    if run.json:
        run.document(devices=[device_members(found, verdicts) for found, verdicts in shown])
        return
    if not shown:
        run.line("no virtio device here" if wanted is None else f"no {wanted[1]} device here")
        return
    run.table(
        ("ADDRESS", "TYPE", "PCI ID", "INTERFACE", "DRIVER", "KERNEL DRIVER", "GROUP", "IN USE"),
        [_row(found, verdicts) for found, verdicts in shown],
    )


def _device_type(kind: str) -> tuple[int, str]:
    """The device id and the name of a type. Raises UsageError."""
    from uvirtio.spec import ids

    device_id = ids.require_type(kind)
    return device_id, ids.type_name(device_id)


def device_members(found: Found, verdicts: Verdicts) -> dict[str, Any]:
    """One device as the JSON of ``list`` has it."""
    from uvirtio.binding.api import describe

    return describe(found, verdicts).as_dict()


def _row(found: Found, verdicts: Verdicts) -> tuple[str, ...]:
    from uvirtio.binding.rules import in_use

    # A question mark: not every rule about use could see enough to say no.
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


# --- doctor -------------------------------------------------------------------------------------------------


def doctor(run: Run) -> int:
    """What this machine has for driving devices from user space, and what it lacks."""
    from uvirtio.binding.doctor import checks

    found = checks(run.roots)
    lacks = [one for one in found if one.verdict == "fail"]
    if run.json:
        run.document(checks=[one.as_dict() for one in found], verdict="fail" if lacks else "pass")
    else:
        for one in found:
            run.line(f"{_MARK[one.verdict]:<4}  {one.name}: {one.detail}")
            if one.remedy:
                run.line(f"      remedy: {one.remedy}")
    return EnvironmentLack.exit_code if lacks else 0


_MARK = {"pass": "ok", "warn": "WARN", "fail": "FAIL", "skip": "skip"}


# --- features -----------------------------------------------------------------------------------------------


def features(
    run: Run,
    kind: Annotated[str, typer.Argument(metavar="TYPE", help="balloon, net, blk, ...")],
    word: Annotated[str, typer.Argument(metavar="WORD", help="0x..., 0b..., decimal, or sysfs's row of 0 and 1.")],
) -> None:
    """Say what the bits of a raw feature word mean."""
    from uvirtio.spec import features as f

    device_id, name = _device_type(kind)
    value = parse_word(word)
    found = f.names(name, value)
    broken = f.unmet(value, f.dependencies(name))
    if run.json:
        run.document(
            type=name,
            device_id=device_id,
            word=value,
            bits=[
                {
                    "bit": one.bit,
                    "name": one.name if one.known else None,
                    "spec": one.section,
                    "kind": one.kind.value,
                }
                for one in found
            ],
            unknown=[one.bit for one in found if not one.known],
            unmet=[{"bit": one.bit, "any_of": list(one.any_of)} for one in broken],
        )
        return
    run.line(f"{name} {value:#x}")
    run.table(
        ("BIT", "NAME", "KIND", "SECTION"),
        [(str(one.bit), one.name if one.known else "?", one.kind.value, one.section) for one in found],
    )
    for rule in broken:
        needed = " or ".join(f.feature(name, bit).name for bit in rule.any_of)
        run.line(f"{f.feature(name, rule.bit).name} needs {needed}, which is not set (2.2.1)")


_ROW_OF_BITS = 64  # what the kernel prints in virtioN/features, lowest bit first


def parse_word(text: str) -> int:
    """A feature word of up to 128 bits. Raises UsageError.

    A row of 64 or 128 zeros and ones is what sysfs prints: bit 0 first.
    """
    from uvirtio.spec.features import MAX_BITS

    plain = text.strip()
    if len(plain) in (_ROW_OF_BITS, 2 * _ROW_OF_BITS) and set(plain) <= {"0", "1"}:
        return int(plain[::-1], 2)
    try:
        value = int(plain, 0) if len(plain) <= 200 else -1  # a longer one cannot fit, and costs time
    except ValueError:
        value = -1
    if not 0 <= value < 1 << MAX_BITS:
        raise UsageError(
            f"{text[:60]!r} is no feature word",
            seen=text[:200],
            expected=f"0 to 2^{MAX_BITS} - 1: 0x130000022, 0b1010, decimal, or a row of 64 zeros and ones",
        )
    return value
