"""What this machine has and lacks for user-space drivers. Read only: no device is opened.

``fail`` is for what prevents every back end; what prevents one back end and leaves others is ``warn``, or ``skip``
where it was never there.
"""

from __future__ import annotations

import os
import platform
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace

from uvirtio.binding import journal, rules, standing
from uvirtio.binding.checks import Check, driver_state
from uvirtio.binding.discover import scan, unlisted
from uvirtio.binding.facts import Facts
from uvirtio.errors import Denied, NotSupported
from uvirtio.host import cpu, denylist, memory, modules, pressure, privilege, process, remedies, sysfs
from uvirtio.host.cpu import require_host
from uvirtio.host.drivers import UIO, VDPA, VFIO
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.proc import interrupt_chips, kernel_release
from uvirtio.host.roots import Roots
from uvirtio.memory.fence import full_fence

__all__ = ["Check", "checks"]

_QEMU_OLDEST = (7, 2)
_NO_GROUPS_SEEN = "whether there is an IOMMU cannot be seen"
_MEMLOCK = 8 << 20  # Linux's default, enough for small rings


def checks(roots: Roots, *, qemu_version: Callable[[str], str] | None = None) -> list[Check]:
    """Check everything, in the order in which one would repair it. A failed check is no exception.

    Args:
        roots: Where ``/sys``, ``/proc`` ... are read.
        qemu_version: Takes QEMU's path and returns what ``--version`` prints; None: runs it.
    """
    made: list[Check] = []
    for look in (
        _python,
        _cpu,
        _kernel,
        _iommu,
        _vfio,
        _vfio_cdev,
        _vfio_noiommu,
        _vfio_access,
        _uio,
        _devmem,
        _plugged,
        _vdpa,
        _memlock,
        _pagemap,
        _hugepages,
        _pressure,
    ):
        made.extend(look(roots))
    made.extend(_qemu(qemu_version or _ask_qemu))
    for look in (_deny, _lockdown, _container, _devices, _journal):
        made.extend(look(roots))
    made.append(_ways(made))
    return made


def _python(roots: Roots) -> Iterator[Check]:
    del roots
    running = f"{platform.python_implementation()} {platform.python_version()}"
    try:
        require_host()
    except NotSupported as error:
        yield Check("python", "fail", f"{running}: {error.message}", error.remedy or "")
    else:
        yield Check("python", "pass", running)


def _all_of_sys(roots: Roots) -> str:
    return privilege.remedy("run as root, where all of /sys is visible", path=roots.sys, roots=roots)


def _cpu(roots: Roots) -> Iterator[Check]:
    del roots
    machine = cpu.machine()
    try:
        full_fence()
    except NotSupported as error:
        yield Check("cpu", "fail", f"{machine}: {error.message} ({error.seen})", error.remedy or "")
    else:
        yield Check("cpu", "pass", f"{machine}, with a full memory fence")


def _kernel(roots: Roots) -> Iterator[Check]:
    release = kernel_release(roots)
    if not sysfs.there(roots):
        yield Check("kernel", "warn", f"{release or 'unknown'}, without a /sys", "mount -t sysfs none /sys")
    else:
        yield Check("kernel", "pass", release or "unknown")


def _iommu(roots: Roots) -> Iterator[Check]:
    real = sysfs.iommu_groups(roots)
    if real is None:
        yield Check("iommu", "warn", "the IOMMU groups cannot be listed", _all_of_sys(roots))
    elif real:
        yield Check("iommu", "pass", f"{len(real)} groups")
    else:
        yield Check(
            "iommu",
            "warn",
            "no IOMMU groups: devices can write to all of memory",
            remedies.iommu(),
        )


def _module(name: str, driver: str, bus: str, roots: Roots, needed: str = "") -> Check:
    state = driver_state(driver, bus, roots)
    if state == "loaded":
        return Check(name, "pass", f"{driver} is loaded")
    if state == "loadable":
        return Check(name, "pass", f"{driver} can be loaded; bind does it")
    why, remedy = modules.why_missing(driver, roots), needed + modules.remedy(driver, roots)
    if state == "unknown":
        return Check(
            name, "warn", f"{driver} is not loaded, and {why}; bind tries modprobe", f"if it fails: {remedy}"
        )
    release = kernel_release(roots) or "unknown"
    return Check(name, "warn", f"module {driver} is not installed for kernel {release}: {why}", remedy)


def _vfio(roots: Roots) -> Iterator[Check]:
    found = _module(VFIO, VFIO, "pci", roots)
    if found.verdict == "pass" and sysfs.iommu_groups(roots) == []:
        found = replace(
            found, verdict="warn", detail=f"{found.detail}, but there is no IOMMU", remedy="switch the IOMMU on"
        )
    elif found.verdict == "pass" and _interrupts_can_be_forged(roots):
        found = replace(
            found,
            verdict="warn",
            detail=f"{found.detail}, but opens nothing: interrupts are not isolated, so devices could forge them",
            remedy=remedies.isolated_interrupts(),
        )
    yield found


def _interrupts_can_be_forged(roots: Roots) -> bool:
    isolated = cpu.isolates_interrupts(interrupt_chips(roots))
    return isolated is False and not sysfs.unsafe_interrupts_allowed(roots)


def _vfio_cdev(roots: Roots) -> Iterator[Check]:
    nodes = [name for name in sysfs.names(roots.dev / "vfio/devices") if name.startswith("vfio")]
    if nodes and sysfs.exists(roots.dev / "iommu"):
        yield Check("vfio-cdev", "pass", f"iommufd, and a character device each for {len(nodes)} functions")
    elif nodes:
        detail = "VFIO makes character devices, but there is no /dev/iommu: the groups are used"
        yield Check("vfio-cdev", "warn", detail, "as root: modprobe iommufd")
    elif sysfs.exists(roots.dev / "iommu") or (found := modules.presence("iommufd", roots)) == "installed":
        yield Check("vfio-cdev", "pass", "iommufd is there; bind shows whether VFIO makes character devices too")
    elif found == "unknown":
        why = modules.why_missing("iommufd", roots)
        yield Check("vfio-cdev", "skip", f"no /dev/iommu, and {why}: the groups are used, which is as good")
    else:
        yield Check("vfio-cdev", "skip", "this kernel has no iommufd: the groups are used, which is as good")


def _vfio_noiommu(roots: Roots) -> Iterator[Check]:
    switch = sysfs.noiommu_switch(roots)
    on = sysfs.noiommu_mode(roots)
    groups = sysfs.iommu_groups(roots)
    if groups is None:
        yield Check("vfio-noiommu", "skip", _NO_GROUPS_SEEN)
    elif groups:
        yield Check("vfio-noiommu", "skip", "not needed: there is an IOMMU")
    elif on is None:
        why = "this kernel's vfio has no such mode" if sysfs.is_dir(switch.parent) else "vfio is not loaded"
        yield Check("vfio-noiommu", "skip", f"{why} (CONFIG_VFIO_NOIOMMU)")
    elif on:
        yield _physical("vfio-noiommu", "VFIO without an IOMMU is switched on", roots)
    else:
        yield Check("vfio-noiommu", "warn", "VFIO without an IOMMU is switched off", f"as root: echo 1 > {switch}")


def _physical(name: str, detail: str, roots: Roots) -> Check:
    """What each back end needs that uses physical addresses: permission to read them, and huge pages."""
    pool = memory.huge_pages(roots)
    if sysfs.locked_down(roots) is not None:
        return Check(name, "warn", f"{detail}, but the kernel is locked down", "boot without secure boot")
    if not process.capable(process.CAP_SYS_ADMIN, roots):
        remedy = privilege.remedy("run as root", roots=roots)
        return Check(name, "warn", f"{detail}, but this user may not know physical addresses", remedy)
    if not pool.free:
        return Check(
            name,
            "warn",
            f"{detail}, but no huge page of 2 MiB is free for its memory",
            f"{remedies.huge_pages(pool, 24)}; a balloon needs half as many as it has MiB",
        )
    return Check(name, "pass", f"{detail}; {pool.free} huge pages are free; it wants --unsafe-dma")


def _vfio_access(roots: Roots) -> Iterator[Check]:
    top = roots.dev / "vfio"
    if (entries := sysfs.listed(top)) is None:
        yield Check("vfio-access", "warn", "/dev/vfio cannot be listed", "as root: chmod 0755 /dev/vfio")
        return
    groups = [name for name in entries if re.fullmatch(r"(noiommu-)?[0-9]+", name, re.ASCII)]
    # A kernel without groups (CONFIG_VFIO_GROUP=n) has a node for each function alone.
    functions = [] if groups else [f"devices/{name}" for name in sysfs.names(top / "devices")]
    nodes = [f"/dev/vfio/{name}" for name in groups or functions]
    if not nodes:
        yield Check("vfio-access", "skip", "no function is bound to vfio-pci, or to a variant of it")
        return
    yield _access("vfio-access", nodes, roots, before=("/dev/vfio/vfio" if groups else "/dev/iommu",))


def _access(name: str, nodes: list[str], roots: Roots, *, before: tuple[str, ...] = ()) -> Check:
    """Whether this user may open these nodes, and those ``before`` them that every program opens first."""
    # access(2) asks about the rights and opens nothing: to open a device resets it.
    paths = {node: roots.dev / node.removeprefix("/dev/") for node in (*before, *nodes)}
    closed = [node for node, path in paths.items() if not os.access(path, os.R_OK | os.W_OK)]
    if closed:
        remedy = privilege.remedy("run as root, or bind with --owner USER", path=paths[closed[0]], roots=roots)
        return Check(name, "warn", f"this user may not open {', '.join(closed)}", remedy)
    return Check(name, "pass", f"this user may open {', '.join(nodes)}")


def _uio(roots: Roots) -> Iterator[Check]:
    found = _module("uio", UIO, "pci", roots, "only needed without an IOMMU: ")
    groups = sysfs.iommu_groups(roots)
    if found.verdict != "pass":
        yield found
    elif groups is None:
        yield replace(found, verdict="skip", detail=f"{found.detail}; {_NO_GROUPS_SEEN}")
    elif groups:
        yield replace(found, verdict="skip", detail=f"{found.detail}; not needed: vfio-pci is the better way")
    else:
        yield _physical("uio", found.detail, roots)


def _devmem(roots: Roots) -> Iterator[Check]:
    windows = [found for found in scan(roots) if found.bus == "platform"]
    path = roots.dev / "mem"
    mode = sysfs.locked_down(roots)
    if not windows:
        yield Check("devmem", "skip", "no virtio-mmio window here")
    elif not sysfs.exists(path):
        yield Check("devmem", "warn", f"no {path}", "boot a kernel with CONFIG_DEVMEM; in a container: mknod")
    elif mode is not None:
        yield Check("devmem", "warn", f"{path} is closed by lockdown ({mode})", "switch secure boot off")
    elif not os.access(path, os.R_OK | os.W_OK):
        # access(2) asks about the rights and opens nothing.
        remedy = privilege.remedy("run as root (CAP_SYS_RAWIO)", path=path, roots=roots)
        yield Check("devmem", "warn", f"this user may not open {path}", remedy)
    elif held := [found.address for found in windows if found.driver is not None]:
        facts = Facts(roots)
        free = [
            found
            for found in windows
            if found.driver is None and all(other.driver is None for other in facts.mates.page_members(found))
        ]
        yield Check(
            "devmem",
            "pass",
            f"{path} reaches {len(free)} of {len(windows)} windows; a page of {CPU_PAGE >> 10} KiB in which the "
            "kernel drives one is closed as a whole (IO_STRICT_DEVMEM)",
            f"uvirtio bind {held[0]} --group",
        )
    else:
        yield Check("devmem", "pass", f"{path} reaches {len(windows)} windows, which no driver has")


def _plugged(roots: Roots) -> Iterator[Check]:
    """What a program can do with the memory of a memory device."""
    if cpu.maps_any_memory_as_normal() or not any(found.type == "mem" for found in scan(roots)):
        return
    yield Check(
        "plugged-memory",
        "warn",
        f"memory can be plugged, but no program can use it: {cpu.machine()} maps it as device memory",
        remedies.plugged_memory(),
    )


def _vdpa(roots: Roots) -> Iterator[Check]:
    devices = sysfs.device_names("vdpa", roots)
    if not devices:
        here = sysfs.is_dir(sysfs.bus("vdpa", roots)) or modules.presence("vdpa", roots) != "missing"
        yield Check("vhost-vdpa", "skip", "no vdpa device here" if here else "this kernel has no vdpa")
        return
    yield _module("vhost-vdpa", VDPA, "vdpa", roots)
    made = (sysfs.vdpa_node(sysfs.device("vdpa", name, roots)) for name in devices)
    if nodes := [node for node in made if node is not None]:
        yield _access("vhost-vdpa-access", nodes, roots)
    for name in sysfs.names(roots.sys / "class/vduse"):
        if sysfs.number(roots.sys / "class/vduse" / name / "msg_timeout") == 0:
            yield Check(
                "vduse",
                "warn",
                f"a program that uses {name} waits for ever when the process behind it stops",
                f"as root: echo 30 > /sys/class/vduse/{name}/msg_timeout",
            )


def _memlock(roots: Roots) -> Iterator[Check]:
    limit = process.locked_memory_limit(roots)
    if process.capable(process.CAP_IPC_LOCK, roots) or limit == resource.RLIM_INFINITY:
        yield Check("memlock", "pass", "no limit on pinned memory")
    elif limit is None:
        yield Check("memlock", "skip", "/proc/self/limits does not say")
    elif limit < _MEMLOCK:
        yield Check(
            "memlock",
            "warn",
            f"only {limit} bytes may be pinned",
            "a file in /etc/security/limits.d with: USER - memlock 65536 (in KiB), then log in again",
        )
    else:
        yield Check("memlock", "pass", f"{limit} bytes may be pinned; a balloon needs as many as it takes")


def _pagemap(roots: Roots) -> Iterator[Check]:
    if process.capable(process.CAP_SYS_ADMIN, roots):
        yield Check("pagemap", "pass", "physical addresses can be read (CAP_SYS_ADMIN)")
    else:
        yield Check(
            "pagemap",
            "warn",
            "frame numbers read as 0 without CAP_SYS_ADMIN: no balloon, and no device without ACCESS_PLATFORM",
            privilege.remedy("run as root for these", roots=roots),
        )


def _hugepages(roots: Roots) -> Iterator[Check]:
    some = [f"{pool.total} of {pool.kib}kB" for pool in memory.huge_page_pools(roots) if pool.total]
    if some:
        yield Check("hugepages", "pass", ", ".join(some))
    else:
        yield Check("hugepages", "skip", "none set aside: only wanted for devices without an IOMMU")


def _pressure(roots: Roots) -> Iterator[Check]:
    why = pressure.lacking(roots)
    if not why:
        yield Check("pressure", "pass", "the kernel tells of memory pressure (PSI): a balloon gives way to it")
        return
    yield Check(
        "pressure",
        "skip",
        f"no memory pressure information (PSI): {why}; a balloon gives way to low MemAvailable alone",
        "boot with psi=1; the kernel needs CONFIG_PSI",
    )


def _ask_qemu(path: str) -> str:
    try:
        done = subprocess.run(
            [path, "--version"],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=10,
            check=False,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout


def _qemu(ask: Callable[[str], str]) -> Iterator[Check]:
    from uvirtio.backends.qemu.models import MODELS, Q35

    found = {name: path for name, model in MODELS.items() if (path := shutil.which(model.binary)) is not None}
    if not found:
        yield Check("qemu", "warn", f"no {Q35.binary} in PATH: no qemu: devices", f"apt-get install {Q35.package}")
        return
    path = next(iter(found.values()))
    match = re.search(r"version ([0-9]{1,6})\.([0-9]{1,6})(\.[0-9]+)?", ask(path))
    oldest = ".".join(map(str, _QEMU_OLDEST))
    if match is None:
        yield Check("qemu", "warn", f"{path} does not tell its version", f"install QEMU {oldest} or later")
    elif (int(match[1]), int(match[2])) < _QEMU_OLDEST:
        yield Check("qemu", "warn", f"{path} is {match[1]}.{match[2]}", f"install QEMU {oldest} or later")
    else:
        yield Check("qemu", "pass", f"{path}, {match[0]}; machines: {' '.join(found)}")


def _deny(roots: Roots) -> Iterator[Check]:
    path = roots.etc / "uvirtio/deny"
    try:
        listed = denylist.patterns(roots)
    except Denied as error:
        yield Check("deny-list", "warn", f"{error.message} ({error.seen})", error.remedy or "")
        return
    if "*" in listed:
        yield Check("deny-list", "warn", f"{path} denies every real device; qemu: devices are exempt")
    elif lost := denylist.without_effect(roots):
        yield Check(
            "deny-list",
            "warn",
            f"{path} has lines that deny no device: {', '.join(lost)[:200]}",
            "write addresses as `uvirtio list` shows them, or globs over these",
        )
    elif listed:
        yield Check("deny-list", "pass", f"{path} has {len(listed)} patterns: {', '.join(listed)[:200]}")
    else:
        yield Check("deny-list", "pass", "no device is denied")


def _lockdown(roots: Roots) -> Iterator[Check]:
    mode = sysfs.lockdown(roots)
    if sysfs.locked_down(roots) is not None:
        yield Check(
            "lockdown", "warn", f"{mode}: uio, /dev/mem and BARs by sysfs are closed; VFIO with an IOMMU works"
        )
    else:
        yield Check("lockdown", "pass", mode or "not built in, or not visible here")


def _container(roots: Roots) -> Iterator[Check]:
    if process.sysfs_read_only(roots):
        yield Check("container", "warn", "/sys is mounted read-only: nothing can be bound from here")


def _devices(roots: Roots) -> Iterator[Check]:
    found = scan(roots)
    hidden = ", ".join(f"{place} cannot be listed" for place in unlisted(roots))
    if not found and not hidden:
        yield Check("devices", "skip", "no virtio device here")
        return
    user = [f"{d.address} ({d.type}, {d.driver})" for d in found if d.for_user_space]
    facts = Facts(roots)
    used = [d.address for d in found if rules.in_use(rules.check(d, roots, facts).findings)]
    detail = f"{len(found)} virtio devices, {len(used)} in use by this machine"
    detail += f"; for user space: {', '.join(user)}" if user else ""
    if hidden:
        yield Check("devices", "warn", f"{detail}; {hidden}", _all_of_sys(roots))
    else:
        yield Check("devices", "pass", detail)


def _journal(roots: Roots) -> Iterator[Check]:
    """What is left in the journal; first what restore cannot put back by itself, and what it cannot see."""
    now: dict[str, list[str]] = {}
    for entry in journal.entries(roots):
        for device in entry.devices:
            found = standing.standing(device, roots, entry.state)
            if found == "bound" and entry.state != "bound":
                found = "unfinished"
            now.setdefault(found, []).append(device.address)
    others = [*now.get("claimed", []), *now.get("taken", [])]
    told: list[tuple[str, str]] = []
    """What is wrong, with what to do about it."""
    if others:
        what = f"another program has claimed or bound since: {', '.join(others)}"
        told.append((what, f"uvirtio restore {others[0]} says what to do"))
    if "unfinished" in now:
        what = f"a bind did not come to its end: {', '.join(now['unfinished'])}"
        told.append((what, "uvirtio restore --all"))
    if hidden := journal.hidden(roots):
        what = f"cannot be read, so what is bound is not known: {', '.join(map(str, hidden))}"
        told.append((what, "as root: uvirtio doctor"))
    if damaged := journal.damaged(roots):
        told.append((f"hold no entry: {', '.join(map(str, damaged))}", "uvirtio restore --all says what to do"))
    if told:
        details, remedies_ = zip(*told, strict=True)
        yield Check("journal", "warn", "; ".join(details), "; ".join(remedies_))
    elif "bound" in now:
        yield Check("journal", "pass", f"bound, to be restored some day: {', '.join(now['bound'])}")
    elif now:
        names = ", ".join(address for some in now.values() for address in some)
        yield Check("journal", "pass", f"nothing is left bound; ended by themselves: {names}")
    else:
        yield Check("journal", "pass", "nothing is left bound")


def _ways(made: list[Check]) -> Check:
    """Whether any back end can be used."""
    verdicts = {check.name: check.verdict for check in made}
    ways = []
    if verdicts["iommu"] == verdicts[VFIO] == "pass":
        ways.append(VFIO)
    if verdicts["vfio-noiommu"] == "pass":
        ways.append("vfio-pci without an IOMMU (--unsafe-dma)")
    if verdicts["uio"] == "pass":
        ways.append("uio_pci_generic (--unsafe-dma)")
    if verdicts["devmem"] == "pass":
        ways.append("/dev/mem (--unsafe-dma)")
    if verdicts["vhost-vdpa"] == "pass":
        ways.append("vhost-vdpa")
    if verdicts["qemu"] == "pass":
        ways.append("qemu:")
    if not ways:
        return Check("ways", "fail", "no way to reach any device", "the easiest: apt-get install qemu-system-x86")
    return Check("ways", "pass", ", ".join(ways))
