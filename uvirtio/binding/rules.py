"""Whether this machine uses a device: named rules, each with evidence.

Each rule checks one way in which this machine may depend on a device. A rule answers with findings (refuse or
warn, and whether ``--force RULE`` may override it), and with ``Unchecked`` where this user cannot see enough to
answer. Rules read; they open no device node.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, NamedTuple, Protocol

from uvirtio.binding import standing
from uvirtio.binding.discover import DiscoveredDevice
from uvirtio.binding.facts import Facts
from uvirtio.binding.holders import drivers_of
from uvirtio.host import modules, proc, sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.drivers import KMEM, VFIO, is_for_user_space
from uvirtio.host.pages import CPU_PAGE
from uvirtio.host.process import Mount
from uvirtio.host.roots import Roots


class Finding(NamedTuple):
    """What a rule found against a device, and the evidence."""

    rule: str
    evidence: str
    severity: Literal["refuse", "warn"] = "refuse"
    forceable: bool = True

    def as_dict(self) -> dict[str, Any]:
        """The finding as the JSON of ``plan`` and ``inspect`` has it."""
        return {
            "rule": self.rule,
            "evidence": self.evidence,
            "severity": self.severity,
            "forceable": self.forceable,
        }


class Unchecked(NamedTuple):
    """A rule that could not see everything, and why."""

    rule: str
    why: str


Answer = Finding | Unchecked


class Rule(Protocol):
    """A function that answers for one device; it is called as its rule is, with underscores."""

    __name__: str

    def __call__(self, found: DiscoveredDevice, facts: Facts, /) -> Iterator[Answer]:
        """Answer for a device, from a snapshot."""
        ...


_OTHERS_FILES = "the open files of other users' processes"


class Verdicts(NamedTuple):
    """What all rules found for one device."""

    findings: list[Finding]
    unchecked: list[Unchecked]


def check(found: DiscoveredDevice, roots: Roots, facts: Facts | None = None) -> Verdicts:
    """Apply every rule to one device. A rule that refuses is not reported as unchecked, too.

    Args:
        found: The device.
        roots: Where ``/sys``, ``/proc`` ... are read.
        facts: A snapshot that several checks share; None: a new one.
    """
    facts = Facts(roots) if facts is None else facts
    findings: list[Finding] = []
    unchecked: dict[str, Unchecked] = {}
    carried = facts.standing_on(found)
    for rule in RULES:
        # What the kernel does with a vDPA device on this function ends with it, too.
        name = name_of(rule)
        facts.unreadable.clear()
        for one in (found, *carried) if name in IN_USE else (found,):
            for answer in rule(one, facts):
                if isinstance(answer, Finding):
                    _add(findings, answer)
                else:
                    unchecked.setdefault(answer.rule, answer)
        if facts.unreadable:
            unchecked.setdefault(name, Unchecked(name, f"{facts.unreadable[0]} cannot be listed"))
    for finding in findings:
        if finding.severity == "refuse":
            unchecked.pop(finding.rule, None)
    return Verdicts(findings, list(unchecked.values()))


def _add(findings: list[Finding], new: Finding) -> None:
    """Keep each evidence once, with its worst consequence."""
    for index, old in enumerate(findings):
        if (old.rule, old.evidence) == (new.rule, new.evidence):
            findings[index] = max(old, new, key=lambda one: (one.severity == "refuse", not one.forceable))
            return
    findings.append(new)


def name_of(rule: Rule) -> str:
    """The name of a rule, as findings and ``--force`` have it."""
    return rule.__name__.replace("_", "-")


def refusals(findings: Iterable[Finding], force: Iterable[str] = ()) -> list[Finding]:
    """The findings that still refuse when the rules in ``force`` are overridden."""
    forced = set(force)
    return [f for f in findings if f.severity == "refuse" and not (f.forceable and f.rule in forced)]


def kernel_holds(found: DiscoveredDevice) -> bool:
    """Whether a kernel driver is bound to the device, and no user-space one."""
    return found.driver is not None and not found.for_user_space


# --- mounted -----------------------------------------------------------------------------------------------


def mounted(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A file system, swap, or anything stacked on a disk of this device."""
    stack = facts.block_stack(found)
    if not stack:
        return
    names = {node.name for node in stack}
    numbers = {node.number for node in stack if node.number}
    critical = False
    on_it: dict[str, Mount] = {}
    for mount in facts.mounts_on(numbers, names):
        on_it.setdefault(mount.point, mount)
    on_it.update((mount.point, mount) for mount in facts.btrfs_mounts(names))
    for point, mount in sorted(on_it.items()):
        critical = critical or _vital(point)
        yield Finding("mounted", f"{mount.source} is mounted on {point}", forceable=not _vital(point))
    for kind, name in _mounted_by_sysfs(names, facts):
        # Mounted in a name space that we cannot see, or below an overlay: it may be the root.
        if not any(facts.block_name(m.source) == name for m in on_it.values()):
            critical = critical or facts.layered_root
            evidence = f"{name}: {kind} in a mount that is not visible here"
            yield Finding("mounted", evidence, forceable=not facts.layered_root)
    for swap in facts.swaps or []:
        if facts.block_name(swap) in names:
            critical = True
            yield Finding("mounted", f"{swap} is swap", forceable=False)
        elif (under := _mount_of_file(swap, facts)) is not None and under.device in numbers:
            critical = True
            yield Finding("mounted", f"the swap file {swap} lies on it", forceable=False)
    for node in stack:
        for holder in facts.names(node.path / "holders"):
            label = sysfs.read(facts.roots.sys / "class/block" / holder / "dm/name", 4096)
            shown = f"{holder} ({label})" if label else holder
            yield Finding("mounted", f"{node.name} is held by {shown}", forceable=not critical)
        for process in facts.holders(node.node):
            yield Finding("mounted", f"{node.node} is open in {process}", forceable=not critical)
    for name, backing in facts.loops_on(names):
        yield Finding("mounted", f"{name} stands on {backing}")
    if not on_it:
        for node in stack:
            udev = sysfs.lines(facts.roots.run / f"udev/data/b{node.number}") or []
            kind = next((line.partition("=")[2] for line in udev if line.startswith("E:ID_FS_TYPE=")), "")
            if kind.endswith("_member"):  # zfs, LVM, md: used by the kernel without a mount that names it
                yield Finding("mounted", f"{node.name} is a {kind}")
            elif kind:
                yield Finding("mounted", f"{node.name} holds data ({kind})", severity="warn")
    if not facts.mounts_complete:
        yield Unchecked("mounted", "the mounts of other name spaces")
    elif facts.layered_root and not on_it:
        yield Unchecked("mounted", "what lies below the overlay on /")
    elif facts.swaps is None:
        yield Unchecked("mounted", "/proc/swaps")
    elif not facts.open_complete:
        yield Unchecked("mounted", _OTHERS_FILES)


def _vital(point: str) -> bool:
    """Whether the machine cannot run without this mount point: it is never taken away, even by --force."""
    return point in ("/", "/efi") or bool(re.match(r"/(boot|usr|etc)(/|$)", point))


def _mounted_by_sysfs(names: set[str], facts: Facts) -> Iterator[tuple[str, str]]:
    """File systems that are mounted somewhere, in a name space that we can see or not: /sys/fs/ext4/vda1."""
    for kind in ("ext4", "xfs", "f2fs", "erofs", "nilfs2"):
        for name in sorted(names & facts.members(facts.roots.sys / "fs" / kind)):
            yield kind, name


def _mount_of_file(path: str, facts: Facts) -> Mount | None:
    under = [m for m in facts.mounts if path == m.point or path.startswith(m.point.rstrip("/") + "/")]
    return max(under, key=lambda m: len(m.point), default=None)


# --- network -----------------------------------------------------------------------------------------------

_IFF_UP = 1  # <linux/if.h>


def network(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """An interface that is up, routed, or part of a bridge, bond or the like."""
    interfaces = [
        directory
        for place in found.places
        for directory in facts.below(place)
        if directory.parent.name == "net" and sysfs.link_name(directory / "subsystem") == "net"
    ]
    if not interfaces and found.kernel_driver == "virtio_net":
        yield Finding("network", "virtio_net holds it, and its interface is in another network name space")
    routes = facts.routes
    for directory in interfaces:
        name = directory.name
        above = [entry.partition("_")[2] for entry in facts.names(directory) if entry.startswith("upper_")]
        if (master := sysfs.link_name(directory / "master")) is not None:
            above.append(master)
        session = next((facts.ssh[one] for one in (name, *above) if one in facts.ssh), None)
        # To cut one's own connection cannot be undone over it: from another terminal it may be forced.
        forceable = session is None and not (facts.root_by_network and name in (routes or {}))
        if session is not None:
            yield Finding("network", f"{name} carries this SSH session, from {session}", forceable=False)
        if routes is not None and name in routes:
            what = "the default route" if routes[name] else "a route"
            yield Finding("network", f"{name} carries {what}", forceable=forceable)
        for entry in facts.names(directory):
            if entry == "master":
                yield Finding(
                    "network", f"{name} belongs to {sysfs.link_name(directory / entry)}", forceable=forceable
                )
            elif entry.startswith(("upper_", "lower_")):
                yield Finding("network", f"{entry.partition('_')[2]} stands on {name}", forceable=forceable)
        if (sysfs.number(directory / "flags") or 0) & _IFF_UP:
            yield Finding("network", f"{name} is up", forceable=forceable)
    if interfaces and routes is None:
        yield Unchecked("network", "/proc/net/route")


# --- memory-in-use -----------------------------------------------------------------------------------------


def memory_in_use(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """Memory of virtio-mem or virtio-pmem that Linux uses as its own. It cannot give it back; never forced."""
    for node in facts.nodes(found) if found.type == "pmem" else ():
        if node.subsystem == "dax" and sysfs.driver_of(node.path) == KMEM:  # drivers/dax/kmem.c
            yield Finding("memory-in-use", f"{node.name} is memory of the kernel's (kmem)", forceable=False)
    if found.type != "mem" or found.kernel_driver is None:
        return
    if facts.iomem is None or not any(line.name == proc.SYSTEM_RAM for line in facts.iomem):
        yield Unchecked("memory-in-use", "/proc/iomem")
        return
    # The driver's region has the device's name; what it gave to Linux is nested in it (virtio_mem.c).
    others = set(sysfs.device_names("virtio", facts.roots)) - {found.virtio_name}
    inside, depth = "", 0
    for line in facts.iomem:
        if line.depth <= depth:
            inside = ""
        if line.name == found.virtio_name or line.name in others:
            inside, depth = line.name, line.depth
        elif line.name.startswith(f"{proc.SYSTEM_RAM} (virtio_mem)") and inside not in others:
            yield Finding(
                "memory-in-use", f"/proc/iomem: {line.name} inside {inside or 'no named region'}", forceable=False
            )
            return


# --- balloon-inflated --------------------------------------------------------------------------------------


def balloon_inflated(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """The kernel's balloon holds pages; to unbind it is to give them all back at once."""
    if found.type not in ("balloon", "memory-balloon") or found.kernel_driver is None:
        return
    stat = facts.vmstat
    if "nr_balloon_pages" in stat:
        pages = stat["nr_balloon_pages"]
    elif "balloon_inflate" in stat:
        pages = stat["balloon_inflate"] - stat.get("balloon_deflate", 0)
    else:
        yield Unchecked("balloon-inflated", "/proc/vmstat has no balloon counters")
        return
    if pages > 0:
        yield Finding("balloon-inflated", f"/proc/vmstat: the kernel's balloon holds {pages} pages")


# --- console -----------------------------------------------------------------------------------------------


def console(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A console of the system, a terminal in use, or the port of a guest agent."""
    if found.type not in ("console", "rproc-serial") or not kernel_holds(found):
        return
    # hvc terminals have no link to their device in sysfs, so each may belong to this device.
    for name, main in facts.consoles:
        if name.startswith("hvc"):
            yield Finding("console", f"/proc/consoles: {name}", forceable=not main)
    nodes = [(node.node, sysfs.read(node.path / "name", 256)) for node in facts.nodes(found)]
    nodes += [
        (f"/dev/{name}", None) for name in facts.names(facts.roots.sys / "class/tty") if name.startswith("hvc")
    ]
    for node, label in nodes:
        for process in facts.holders(node):
            yield Finding("console", f"{node}{f' ({label})' if label else ''} is open in {process}")
    if not facts.open_complete:
        yield Unchecked("console", _OTHERS_FILES)


# --- root-share --------------------------------------------------------------------------------------------


def root_share(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A directory shared by 9p or virtiofs that is mounted."""
    if found.type not in ("9p", "fs") or not kernel_holds(found):
        return
    fstype = "9p" if found.type == "9p" else "virtiofs"
    tag = _mount_tag(found, facts)
    seen = False
    for mount in facts.mounts_of(fstype):
        if tag is not None and mount.source != tag:
            continue
        if fstype == "9p" and tag is None and re.search(r"trans=(tcp|unix|fd|rdma|xen)", mount.super_options):
            continue
        which = f"the tag {tag}" if tag is not None else f"a {fstype} share, which may be this one,"
        yield Finding("root-share", f"{which} is mounted on {mount.point}", forceable=not _vital(mount.point))
        seen = True
    if not seen and facts.layered_root:
        # The layers of an overlay need not be visible after switch_root.
        yield Finding("root-share", "/ is an overlay, and this share may lie below it")
    if not facts.mounts_complete:
        yield Unchecked("root-share", "the mounts of other name spaces")


def _mount_tag(found: DiscoveredDevice, facts: Facts) -> str | None:
    virtio = found.virtio_path or found.path / "virtio"
    tag = sysfs.read(virtio / "mount_tag", 4096) or sysfs.read(virtio / "tag", 4096)
    if tag:
        return tag
    top = facts.roots.sys / "fs/virtiofs"
    for name in facts.names(top):
        if sysfs.real(top / name / "device") == sysfs.real(virtio):
            return sysfs.read(top / name / "tag", 4096) or None
    return None


# --- iommu-device ------------------------------------------------------------------------------------------


def iommu_device(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """An IOMMU, a bridge, or a device on which others depend. Never forced."""
    if found.type == "iommu":
        yield Finding("iommu-device", "a virtio-iommu holds other devices", forceable=False)
    if found.pci_class is not None and found.pci_class >> 16 == 0x06:
        yield Finding("iommu-device", f"PCI class {found.pci_class:06x} is a bridge", forceable=False)
    for name in facts.names(found.path):
        if name.startswith("consumer:"):
            yield Finding("iommu-device", f"{name.partition(':')[2]} depends on it", forceable=False)


# --- display-input -----------------------------------------------------------------------------------------


def display_input(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """The boot display or a screen in use; a keyboard, mouse or tablet in use."""
    if not kernel_holds(found):
        return
    nodes = facts.nodes(found)
    if sysfs.number(found.path / "boot_vga") == 1:
        yield Finding("display-input", "it is the boot display (boot_vga)")
    for node in nodes:
        if node.subsystem == "graphics":
            yield Finding("display-input", f"{node.name} is a frame buffer of the console")
        if node.subsystem == "drm":
            for process in facts.holders(node.node):
                yield Finding("display-input", f"{node.node} is open in {process}")
        elif node.subsystem == "input":
            for process in facts.holders(node.node):
                yield Finding("display-input", f"{node.node} is open in {process}", severity="warn")
    if not facts.open_complete and any(node.subsystem in ("drm", "input") for node in nodes):
        yield Unchecked("display-input", _OTHERS_FILES)


# --- other-use ---------------------------------------------------------------------------------------------

VSOCK_TRANSPORT = "vmw_vsock_virtio_transport"
_OWN_RULE = frozenset({"block", "drm", "input", "graphics", "virtio-ports", "tty", "vfio-dev"})


def other_use(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """Any other node that is open, keys in use, the one source of entropy, a user-space driver at work."""
    others = [node.node for node in facts.nodes(found) if node.subsystem not in _OWN_RULE]
    if found.type == "vsock" and kernel_holds(found):
        others.append("/dev/vsock")
        # Each connected socket holds its transport's module (vsock_assign_transport in af_vsock.c), and no file.
        if count := modules.refcount(VSOCK_TRANSPORT, facts.roots):
            yield Finding("other-use", f"{count} vsock connections: refcnt of {VSOCK_TRANSPORT}")
    for place, process in drivers_of(found, facts):
        # A running user-space driver: unbind would wait for it, and may remove memory that it uses.
        yield Finding("other-use", f"{place} is open in {process}", forceable=False)
    for node in dict.fromkeys(others):
        if node not in found.nodes:
            for process in facts.holders(node):
                yield Finding("other-use", f"{node} is open in {process}")
    if (others or found.nodes) and not facts.open_complete:
        yield Unchecked("other-use", _OTHERS_FILES)
    if not kernel_holds(found):
        return
    if found.bus == "pci":
        facts.members(sysfs.bus("vdpa", facts.roots) / "devices")  # so that it is known whether it can be read
    for one in facts.standing_on(found):
        # Unbinding vp_vdpa removes its vDPA device, and restore does not create it again.
        yield Finding("other-use", f"the vDPA device vdpa:{one.name} stands on it")
    if found.type == "rng":
        hwrng = facts.roots.sys / "class/misc/hw_random"
        current = sysfs.read(hwrng / "rng_current", 4096) or ""
        available = (sysfs.read(hwrng / "rng_available", 4096) or "").split()
        if current.startswith("virtio_rng") and len(available) == 1:
            yield Finding("other-use", f"{current} is the only source of /dev/hwrng", severity="warn")
    if found.type == "crypto":
        yield from _crypto(facts)


def _crypto(facts: Facts) -> Iterator[Answer]:
    algorithms = proc.crypto(facts.roots)
    if algorithms is None:
        yield Unchecked("other-use", "/proc/crypto")
        return
    for fields in algorithms:
        driver, count = fields.get("driver", ""), fields.get("refcnt", "")
        if driver.startswith("virtio_crypto") and (decimal(count) or 0) > 1:
            yield Finding("other-use", f"/proc/crypto: {driver} has refcnt {count}")


# --- group -------------------------------------------------------------------------------------------------


def group(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """Others that change hands with this device: its IOMMU group, or the page of an mmio window."""
    if found.bus == "pci" and found.iommu_group is not None:
        members = facts.mates.group_members(found)
        if members is None:
            yield Unchecked("group", f"the members of IOMMU group {found.iommu_group}")
        held = [f"{m.address} ({m.driver})" for m in members or () if kernel_holds(m)]
        if held:
            yield Finding("group", f"IOMMU group {found.iommu_group} also has {', '.join(held)}", forceable=False)
    elif found.bus == "platform":
        held = [f"{m.address} ({m.driver})" for m in facts.mates.page_members(found) if m.driver is not None]
        if held:
            page = f"its page of {CPU_PAGE >> 10} KiB also has"
            yield Finding("group", f"{page} {', '.join(held)}", forceable=False)
        if found.window is None:
            yield Unchecked("group", "the addresses in /proc/iomem")


# --- vf-pf -------------------------------------------------------------------------------------------------


def vf_pf(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A physical function with virtual ones, or a virtual one whose parent user space drives."""
    count = sysfs.number(found.path / "sriov_numvfs")
    if count:
        yield Finding("vf-pf", f"{count} virtual functions are enabled on it", forceable=False)
    parent = found.path / "physfn"
    if is_for_user_space(parent, facts.roots):
        evidence = f"its physical function is bound to {sysfs.driver_of(parent)}, which wants a token"
        yield Finding("vf-pf", evidence, forceable=False)


# --- not-virtio --------------------------------------------------------------------------------------------


def not_virtio(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A device that is not virtio, or of a type that virtio 1.4 does not name."""
    del facts
    if found.interface == "none":
        yield Finding("not-virtio", f"PCI id {found.pci_id}, class {found.pci_class or 0:06x}", severity="warn")
    elif found.device_id is not None and found.type == f"unknown({found.device_id})":
        yield Finding("not-virtio", f"device type {found.device_id} has no name in virtio 1.4", severity="warn")


# --- foreign-override --------------------------------------------------------------------------------------


def foreign_override(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """Another tool has set a driver for this device."""
    having = facts.live(found.key)
    claimed = having is None or standing.claim(having[1], facts.roots) is not None
    if having is None and found.vfio and found.driver != VFIO:
        yield Finding("foreign-override", f"another program has bound {found.driver}, a variant of {VFIO}, to it")
    elif found.driver_override is not None and claimed:  # else it is uvirtio's own: see earlier-bind
        yield Finding("foreign-override", f"driver_override is {found.driver_override}")
    listed = facts.members(facts.roots.etc / "driverctl.d")
    for name in (f"{found.bus}-{found.name}", found.name):
        if name in listed:
            yield Finding("foreign-override", f"/etc/driverctl.d/{name} names a driver for it")


# --- earlier-bind ------------------------------------------------------------------------------------------


def earlier_bind(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """An earlier bind of uvirtio is not restored, and the device is not as that bind left it."""
    having = facts.live(found.key)
    if having is None:
        for path in facts.journal_unread:
            yield Unchecked("earlier-bind", f"the journal ({path} cannot be read)")
    elif found.driver != having[1].target:
        evidence = f"a bind to {having[1].target or 'no driver'} is still in the journal ({having[0].id})"
        yield Finding("earlier-bind", evidence, forceable=False)


# --- no-way-back -------------------------------------------------------------------------------------------


def no_way_back(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """No driver is bound to the device, so restore will leave it without one."""
    del facts
    if found.driver is None and found.interface != "none":
        yield Finding("no-way-back", "no driver holds it now; restore leaves it without one", severity="warn")


# --- unsafe-dma --------------------------------------------------------------------------------------------


def unsafe_dma(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """No IOMMU restricts the device: a bug in its driver can write anywhere in memory."""
    del facts
    if found.bus == "pci" and (found.iommu_group is None or found.noiommu):
        yield Finding("unsafe-dma", "it is in no IOMMU group")
    elif found.bus == "platform":
        # bind only takes it from its driver; the consent is asked for when it is opened.
        yield Finding("unsafe-dma", "an mmio window is used with physical addresses", severity="warn")


# --- suspend -----------------------------------------------------------------------------------------------


def suspend(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """This machine is about to suspend or to shut down: no time to change drivers."""
    del found
    for evidence in facts.sleeping:
        yield Finding("suspend", evidence, severity="warn")


# --- lockdown and container --------------------------------------------------------------------------------


def lockdown(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """Kernel lockdown prevents writes to configuration space and BARs."""
    if found.bus == "vdpa":
        return  # lockdown does not restrict its node
    mode = sysfs.locked_down(facts.roots)
    if mode is not None and (found.bus == "platform" or found.iommu_group is None):
        yield Finding("lockdown", f"kernel lockdown is {mode}: /dev/mem, uio and BARs are closed", forceable=False)


def container(found: DiscoveredDevice, facts: Facts) -> Iterator[Answer]:
    """A read-only /sys: nothing can be bound from here."""
    del found
    if facts.sysfs_read_only:
        yield Finding("container", "/sys is mounted read-only here", forceable=False)


RULES: tuple[Rule, ...] = (
    mounted,
    network,
    memory_in_use,
    balloon_inflated,
    console,
    root_share,
    iommu_device,
    display_input,
    other_use,
    group,
    vf_pf,
    not_virtio,
    foreign_override,
    earlier_bind,
    no_way_back,
    unsafe_dma,
    suspend,
    lockdown,
    container,
)

MANY = 4
"""The most devices that one command may name without --force many. That rule is about commands, not devices."""


def many(founds: Sequence[DiscoveredDevice]) -> list[Finding]:
    """More devices than are usually named one by one: most likely a glob that matched too much."""
    if len(founds) <= MANY:
        return []
    return [Finding("many", f"{len(founds)} devices at once, which is more than {MANY}")]


IN_USE = frozenset(
    {
        "mounted",
        "network",
        "memory-in-use",
        "balloon-inflated",
        "console",
        "root-share",
        "iommu-device",
        "display-input",
        "other-use",
    }
)
"""The rules about use by this machine; the others are about whether it can be bound."""


def in_use(findings: Iterable[Finding]) -> list[Finding]:
    """The findings by which this machine needs the device."""
    return [finding for finding in findings if finding.severity == "refuse" and finding.rule in IN_USE]
