"""What bind would do, and what would stop it: all the checks, and no change.

``plan`` needs no privilege. What an ordinary user cannot see is reported as unchecked.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from uvirtio.binding import journal, rules, standing
from uvirtio.binding.checks import Check, driver_state, writable
from uvirtio.binding.discover import DiscoveredDevice
from uvirtio.binding.facts import Facts
from uvirtio.binding.rules import Finding, Unchecked
from uvirtio.errors import Denied, InUse, ModuleLack, NoIommu, PermissionLack, Refused, UsageError, UvirtioError
from uvirtio.host import denylist, modules, privilege, remedies, sysfs
from uvirtio.host.drivers import UIO, VDPA, VFIO
from uvirtio.host.roots import Roots

_DRIVERS = {"pci": (VFIO, UIO), "vdpa": (VDPA,), "platform": ()}
"""The drivers that bind can use, by bus; their modules have the same names."""


@dataclass(frozen=True, slots=True)
class PlanStep:
    """One write to sysfs: ``value`` is written to ``path``."""

    path: Path
    value: str
    why: str

    def as_dict(self) -> dict[str, Any]:
        """The step as the JSON of ``plan`` has it."""
        return {"path": str(self.path), "value": self.value, "why": self.why}


@dataclass(frozen=True, slots=True)
class Member:
    """One device that would change drivers."""

    found: DiscoveredDevice
    target: str | None
    """The driver to bind; None: the device is only unbound from the one that it has (mmio)."""
    steps: tuple[PlanStep, ...]
    findings: tuple[Finding, ...]
    unchecked: tuple[Unchecked, ...]

    @property
    def hands_out_a_node(self) -> bool:
        """Whether the target hands the whole device to whoever may open its node."""
        return self.target in (VFIO, VDPA) or (self.found.vfio and self.target == self.found.driver)

    def as_dict(self) -> dict[str, Any]:
        """The member as the JSON of ``plan`` has it."""
        return {
            "address": self.found.address,
            "type": self.found.type,
            "driver": self.found.driver,
            "target": self.target,
            "steps": [step.as_dict() for step in self.steps],
            "findings": [finding.as_dict() for finding in self.findings],
            "unchecked": [item.rule for item in self.unchecked],
        }


@dataclass(frozen=True, slots=True)
class Plan:
    """What bind of one device would do; ``problems`` are the errors that bind would raise, the first one first."""

    found: DiscoveredDevice
    driver: str | None
    members: tuple[Member, ...]
    checks: tuple[Check, ...]
    problems: tuple[UvirtioError, ...]

    @property
    def nothing_to_do(self) -> bool:
        """Whether the device has the wanted driver already."""
        return not any(member.steps for member in self.members)

    def as_dict(self) -> dict[str, Any]:
        """The plan as the JSON of ``plan`` has it."""
        return {
            "address": self.found.address,
            "device": self.found.as_dict(),
            "driver": self.driver,
            "nothing_to_do": self.nothing_to_do,
            "members": [member.as_dict() for member in self.members],
            "checks": [check.as_dict() for check in self.checks],
            "problems": [problem.as_dict() for problem in self.problems],
        }


def plan(
    found: DiscoveredDevice,
    roots: Roots,
    driver: str | None = None,
    group: bool = False,
    force: Collection[str] = (),
    *,
    along: Collection[str] = (),
    facts: Facts | None = None,
) -> Plan:
    """Everything that bind of this device would check and write.

    Args:
        found: The device.
        roots: Where ``/sys``, ``/proc`` ... are read.
        driver: The driver to bind; None: vfio-pci for a function in an IOMMU group (a variant of vfio-pci that has
            it stays), vhost_vdpa on the vdpa bus, none for an mmio window.
        group: Take the other functions of the IOMMU group along.
        force: Names of rules to override.
        along: The addresses of devices that the same run binds.
        facts: A snapshot that several plans share; None: a new one.

    Returns:
        The plan; every obstacle but the errors below is in its ``problems``.

    Raises:
        UsageError: There is no such driver or rule.
    """
    _check_words(found, driver, force)
    facts = Facts(roots) if facts is None else facts
    problems: list[UvirtioError] = []
    target, lack = _choose(found, driver, roots)
    already = found.driver is not None and found.driver == target
    functions = [found]
    if group and not already:
        others = facts.mates.of(found)
        if others is None:
            problems.append(_unlisted(found, roots))
            others = []
        functions += [m for m in others if rules.kernel_holds(m) and m.address not in along]
    members = tuple(
        _member(function, target, roots, facts, group=group, explicit=driver, along=along, already=already)
        for function in functions
    )
    for member in members:
        try:
            for one in (member.found, *facts.standing_on(member.found)):
                denylist.check(one.names, roots)
        except Denied as denied:
            problems.append(denied)
    if (journaled := _journaled(found, target, facts)) is not None:
        problems.append(journaled)
    if not already:
        for member in members:
            problems.extend(_refusals(member, force, lack is not None))
        if lack is not None:
            problems.append(lack)
    checks, missing = _environment(found, target, roots, facts, lack)
    if not already:
        problems.extend(missing)
    return Plan(found, target, members, tuple(checks), tuple(problems))


def _unlisted(found: DiscoveredDevice, roots: Roots) -> UvirtioError:
    """--group takes all members, and nothing that may be only some of them."""
    return PermissionLack(
        f"the members of IOMMU group {found.iommu_group} are not known",
        seen=f"{sysfs.iommu_group_folder(found.iommu_group or 0, roots)}, or a function in it, cannot be read",
        expected="a directory that lists the functions of the group",
        remedy=privilege.remedy("run this as root, where all of /sys is visible", path=roots.sys, roots=roots),
    )


def _journaled(found: DiscoveredDevice, target: str | None, facts: Facts) -> UvirtioError | None:
    """A device that is already bound is not bound to another driver: its state before that would be lost."""
    having = facts.live(found.key)
    if having is None:
        return None
    entry, device = having
    if device.target == target or found.driver != device.target:
        return None
    return Refused(
        f"{found.address} is bound to {device.target} by an earlier run",
        seen=f"the journal entry {entry.id}",
        expected="a device that its kernel driver has",
        remedy=_remedy("earlier-bind", found),
    )


def _check_words(found: DiscoveredDevice, driver: str | None, force: Collection[str]) -> None:
    known = {rules.name_of(function) for function in rules.RULES} | {"unsafe-owner", "many"}
    for word in force:
        if word not in known:
            raise UsageError(f"there is no rule {word!r}", seen=word, expected=", ".join(sorted(known)))
    kept = found.driver if found.vfio else None  # a variant of vfio-pci, which only others can bind
    if driver is not None and driver not in (*_DRIVERS[found.bus], kept):
        raise UsageError(
            f"{found.address} cannot be bound to {driver}",
            seen=driver,
            expected=" or ".join(_DRIVERS[found.bus]) or "no driver: a window is only taken from virtio-mmio",
        )


def _choose(found: DiscoveredDevice, driver: str | None, roots: Roots) -> tuple[str | None, UvirtioError | None]:
    """The driver to bind, and what prevents that (no IOMMU)."""
    if found.bus == "platform":
        return None, None
    if found.bus == "vdpa":
        return VDPA, None
    if driver == UIO:
        return UIO, None
    if found.vfio and driver in (None, found.driver):
        return found.driver, None
    if found.iommu_group is not None or (driver == VFIO and sysfs.noiommu_mode(roots)):
        return VFIO, None
    return driver, NoIommu(
        f"{found.address} is in no IOMMU group, and vfio-pci needs one",
        seen="no iommu_group link",
        expected="a machine with an IOMMU that the kernel uses",
        remedy=f"best: {remedies.iommu()}. "
        f"Or accept unrestricted DMA and choose: --driver {UIO}; or --driver {VFIO} after, as "
        "root, echo 1 > /sys/module/vfio/parameters/enable_unsafe_noiommu_mode, where the kernel has that",
    )


def _member(
    found: DiscoveredDevice,
    target: str | None,
    roots: Roots,
    facts: Facts,
    *,
    group: bool,
    explicit: str | None,
    along: Collection[str],
    already: bool,
) -> Member:
    verdicts = rules.check(found, roots, facts)
    findings = []
    for finding in verdicts.findings:
        if finding.rule == "group" and (group or _all_along(found, along, facts)):
            continue
        if finding.rule == "unsafe-dma" and explicit == UIO:
            # Naming this driver is consent; opening it asks for --unsafe-dma.
            finding = finding._replace(severity="warn")
        if already:
            finding = finding._replace(severity="warn")  # nothing is taken from any use
        findings.append(finding)
    return Member(found, target, tuple(steps(found, target, roots)), tuple(findings), tuple(verdicts.unchecked))


def _all_along(found: DiscoveredDevice, along: Collection[str], facts: Facts) -> bool:
    others = facts.mates.of(found) or []
    return all(other.address in along or not rules.kernel_holds(other) for other in others)


def steps(found: DiscoveredDevice, target: str | None, roots: Roots) -> list[PlanStep]:
    """The writes that bind ``target`` to the device; none where it is bound already."""
    if found.driver == target:
        return []
    home = sysfs.bus(found.bus, roots)
    override = home / "devices" / found.name / "driver_override"
    made = []
    if target is not None:
        made.append(PlanStep(override, target, f"let only {target} match it"))
    if found.driver is not None:
        made.append(
            PlanStep(home / "drivers" / found.driver / "unbind", found.name, f"take it from {found.driver}")
        )
    if target is not None:
        made.append(PlanStep(home / "drivers_probe", found.name, f"let {target} take it"))
        before = found.driver_override or "\n"
        made.append(PlanStep(override, before, "as it was, so that a plain reprobe gives it back"))
    return made


def _refusals(member: Member, force: Collection[str], no_iommu: bool) -> list[UvirtioError]:
    """One error with all that refuses this member, so that one run shows every reason."""
    refusing = [
        finding
        for finding in rules.refusals(member.findings, force)
        if not (finding.rule == "unsafe-dma" and no_iommu)  # said better, with the choices, by NoIommu
    ]
    if not refusing:
        return []
    names = list(dict.fromkeys(finding.rule for finding in refusing))
    hard = [finding.rule for finding in refusing if not finding.forceable]
    kind = InUse if any(name in rules.IN_USE for name in names) else Refused
    if hard:
        remedy = _remedy(hard[0], member.found)
    else:
        remedy = "if you are sure: " + " ".join(f"--force {name}" for name in names)
    return [
        kind(
            f"{member.found.address} ({member.found.type}) is refused by the rule {' and '.join(names)}",
            seen="; ".join(f"{finding.rule}: {finding.evidence}" for finding in refusing),
            expected="a device that this machine does not use",
            remedy=remedy,
        )
    ]


_REMEDIES = {
    "mounted": "choose another disk: this one carries the running system, and that is never forced",
    "network": "it carries what you came by, or the root: from the machine's console it may be another matter",
    "memory-in-use": "have the host shrink requested-size to 0 first; this rule cannot be forced",
    "group": "--group takes all of them, after the same checks on each",
    "earlier-bind": "first: uvirtio restore {address}",
    "container": "run this where /sys can be written",
    "vf-pf": "set sriov_numvfs to 0 first",
}


def _remedy(rule: str, found: DiscoveredDevice) -> str:
    if rule == "vf-pf" and (owner := sysfs.physical_function(found.path)) is not None:
        # Without virtual functions there would be no such device either.
        return f"first give its physical function back to the kernel's driver: uvirtio restore {owner}"
    return _REMEDIES.get(rule, "this rule cannot be forced").replace("{address}", found.address)


def _environment(
    found: DiscoveredDevice, target: str | None, roots: Roots, facts: Facts, lack: UvirtioError | None
) -> tuple[list[Check], list[UvirtioError]]:
    """What there is for binding the device, and the errors for what is missing besides an IOMMU."""
    made: list[Check] = []
    missing: list[UvirtioError] = []
    if found.bus == "pci":
        if lack is not None:
            made.append(Check("iommu", "fail", lack.message, lack.remedy or ""))
        elif found.iommu_group is None:
            made.append(Check("iommu", "warn", "no IOMMU holds this device", "opening it asks for --unsafe-dma"))
        else:
            made.append(Check("iommu", "pass", f"IOMMU group {found.iommu_group}"))
    if target is not None:
        check, absent = _module(target, found.bus, roots)
        made.append(check)
        missing += [] if absent is None else [absent]
    made.append(_way_back(found, target, roots, facts))
    if (problem := _rights(found, roots)) is not None:
        made.append(Check("rights", "fail", problem.message, problem.remedy or ""))
        missing.append(problem)
    else:
        made.append(Check("rights", "pass", "sysfs can be written"))
    return made, missing


def _module(target: str, bus: str, roots: Roots) -> tuple[Check, UvirtioError | None]:
    """Whether the driver is there or can be loaded, and the error where it is missing."""
    state = driver_state(target, bus, roots)
    if state == "loaded":
        return Check("module", "pass", f"{target} is loaded"), None
    if state == "loadable":
        return Check("module", "pass", f"{target} is not loaded; bind will modprobe it"), None
    why = modules.why_missing(target, roots)
    detail = f"{target} is not loaded, and {why}"
    if state == "unknown":
        return Check("module", "warn", f"{detail}; bind will try modprobe"), None
    lack = ModuleLack(
        f"the module {target} is not installed",
        seen=f"no {target} in {sysfs.bus(bus, roots) / 'drivers'}, and {why}",
        expected="a kernel with this module",
        remedy=modules.remedy(target, roots),
    )
    return Check("module", "fail", detail, lack.remedy or ""), lack


def _way_back(found: DiscoveredDevice, target: str | None, roots: Roots, facts: Facts) -> Check:
    """What restore will do by its record: that of an earlier bind, or the one of the device as it is now."""
    if (having := facts.live(found.key)) is not None:
        entry, device = having
        now = standing.standing(device, roots, entry.state)
        if now in ("claimed", "taken"):
            what = "claimed" if now == "claimed" else "bound"
            remedy = f"uvirtio restore {found.address} says what to do"
            return Check(
                "way-back", "warn", f"another program has {what} it since; restore leaves it to that", remedy
            )
        driver = device.driver
    elif found.driver is not None and found.driver == target:
        if journal.hidden(roots):
            detail = f"{found.driver} has it already; what it had before is in a journal that cannot be read here"
            return Check("way-back", "warn", detail, "as root: uvirtio journal")
        return Check(
            "way-back",
            "warn",
            f"{found.driver} has it already, and not by uvirtio: restore does not know what it had before",
            f"once no program uses it, by hand: {standing.by_hand(found, roots)}",
        )
    else:
        driver = found.driver
    if driver is None:
        return Check("way-back", "warn", "it has no driver of its own; restore will leave it without one")
    return Check("way-back", "pass", f"restore gives it back to {driver}")


def _rights(found: DiscoveredDevice, roots: Roots) -> UvirtioError | None:
    home = sysfs.bus(found.bus, roots)
    files = [home / "drivers_probe", home / "devices" / found.name / "driver_override"]
    if found.driver is not None:
        files.append(home / "drivers" / found.driver / "unbind")
    for path in files:
        if sysfs.exists(path) and not writable(path):
            return PermissionLack(
                "this user may not change drivers",
                seen=f"{path} cannot be written",
                expected="root, and a /sys that is not read-only",
                remedy=privilege.remedy("run this as root", path=path, roots=roots),
            )
    return None


def plans(
    founds: Sequence[DiscoveredDevice],
    roots: Roots,
    driver: str | None = None,
    group: bool = False,
    force: Collection[str] = (),
) -> list[Plan]:
    """A plan for each device, all from one snapshot, each aware of the others; group members appear once only.

    Args:
        founds: The devices.
        roots: As for ``plan``.
        driver: As for ``plan``.
        group: As for ``plan``.
        force: As for ``plan``.

    Raises:
        UsageError: There is no such driver or rule.
    """
    facts = Facts(roots)
    along = {found.address for found in founds}
    made = []
    for found in founds:
        one = plan(found, roots, driver, group, force, along=along, facts=facts)
        along |= {member.found.address for member in one.members}
        made.append(one)
    for finding in rules.refusals(rules.many(founds), force):
        problem = Refused(
            f"{finding.evidence}: refused by the rule {finding.rule}",
            seen=f"{len(founds)} devices named",
            expected=f"at most {rules.MANY}",
            remedy=f"if all of them are meant: --force {finding.rule}",
        )
        made[0] = replace(made[0], problems=(problem, *made[0].problems))
    return made
