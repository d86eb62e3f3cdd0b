"""The files of ``/proc`` about the whole machine, each parsed only here.

A file that is missing or unreadable is None (or empty): an ordinary user sees less than root. Files of single
processes are in ``uvirtio.host.process``, routes in ``uvirtio.host.routes``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from uvirtio.errors import PermissionLack
from uvirtio.host import privilege, sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.pattern import Pattern
from uvirtio.host.process import unescape
from uvirtio.host.roots import Roots

SYSTEM_RAM = "System RAM"
SOFT_RESERVED = "Soft Reserved"

# --- iomem --------------------------------------------------------------------------------------------------

_IOMEM = Pattern(r"( *)([0-9a-f]+)-([0-9a-f]+) : (.*)", re.ASCII)


class IoRange(NamedTuple):
    """One line of ``/proc/iomem``: the physical addresses ``start`` to ``end - 1``, and their owner."""

    start: int
    end: int
    name: str
    """The owner: a driver, a device or a kind of memory."""
    depth: int = 0
    """How many other lines it is nested in."""

    def __str__(self) -> str:
        return f"{self.start:#x}-{self.end - 1:#x} : {self.name}"

    @property
    def size(self) -> int:
        """Its length in bytes."""
        return self.end - self.start

    @property
    def hidden(self) -> bool:
        """Whether the kernel shows zeros in place of the addresses, as it does without CAP_SYS_ADMIN."""
        return self.end <= 1

    def overlaps(self, start: int, end: int) -> bool:
        """Whether it has an address in ``start`` to ``end - 1``."""
        return self.start < end and start < self.end

    def covers(self, start: int, end: int) -> bool:
        """Whether it has every address in ``start`` to ``end - 1``."""
        return self.start <= start and end <= self.end


def iomem(roots: Roots) -> list[IoRange] | None:
    """All lines of ``/proc/iomem``, in its order; None where it cannot be read.

    Names are shown to every user, addresses to CAP_SYS_ADMIN only: see ``IoRange.hidden``.
    """
    text = sysfs.lines(roots.proc / "iomem")
    if text is None:
        return None
    matches = [match for line in text if (match := _IOMEM.fullmatch(line))]
    return [
        IoRange(int(match[2], 16), int(match[3], 16) + 1, match[4].strip(), len(match[1]) // 2)
        for match in matches
    ]


def iomem_addresses(roots: Roots) -> list[IoRange]:
    """All lines of ``/proc/iomem``, with their addresses.

    Raises:
        PermissionLack: The file cannot be read, or the kernel hides the addresses from this user.
    """
    found = iomem(roots)
    if found is None:
        raise PermissionLack(
            f"{roots.proc / 'iomem'} cannot be read, so it is not known what this machine's addresses belong to",
            seen="no readable file",
            expected="the list of this machine's addresses",
            remedy=privilege.remedy(path=roots.proc / "iomem", roots=roots),
        )
    if all(line.hidden for line in found):
        raise PermissionLack(
            f"{roots.proc / 'iomem'} hides its addresses, so it is not known what they belong to",
            seen="zeros" if found else "no lines",
            expected="addresses, which the kernel shows to CAP_SYS_ADMIN only",
            remedy=privilege.remedy(path=roots.proc / "iomem", roots=roots),
        )
    return found


_LONGEST = 1 << 20
"""Characters of a file of names and numbers that are read."""


# --- files of names and numbers -----------------------------------------------------------------------------


def numbers(path: Path) -> dict[str, int]:
    """The first number after each name in a file such as meminfo, vmstat or a cgroup's memory.stat.

    Lines of another form are skipped. Values in ``kB``, which is KiB (proc(5)), are converted to bytes.

    Raises:
        OSError: The file cannot be read.
    """
    found: dict[str, int] = {}
    with open(path, encoding="ascii", errors="replace", opener=sysfs.unwaiting) as file:
        text = file.read(_LONGEST)
    for line in text.splitlines():
        name, *values = line.replace(":", " ").split() or [""]
        value = decimal(values[0]) if values else None
        if value is not None:
            found[name] = value << (10 if values[1:2] == ["kB"] else 0)
    return found


def meminfo(roots: Roots) -> dict[str, int]:
    """``/proc/meminfo``: sizes in bytes.

    Raises:
        OSError: The file cannot be read.
    """
    return numbers(roots.proc / "meminfo")


def vmstat(roots: Roots) -> dict[str, int]:
    """``/proc/vmstat``: counters since boot, and numbers of pages of the CPU; empty where it cannot be read."""
    try:
        return numbers(roots.proc / "vmstat")
    except OSError:
        return {}


# --- interrupts ---------------------------------------------------------------------------------------------


def interrupts(roots: Roots) -> dict[int, tuple[int, str]]:
    """What ``/proc/interrupts`` counts: for each number how often on all CPUs, and what handles it.

    Lines that have no number (NMI, LOC ...) are left out; empty where the file cannot be read.
    """
    rows = _interrupt_rows(roots)
    return {number: (count, words[-1].strip() if len(words) > 2 else "") for number, count, words in rows}


def interrupt_chips(roots: Roots) -> set[str]:
    """The controllers of the interrupts in use (``GICv3``, ``IR-PCI-MSI-0000:00:01.0``); empty: unknown."""
    return {words[0] for _, _, words in _interrupt_rows(roots) if words}


def _interrupt_rows(roots: Roots) -> Iterator[tuple[int, int, list[str]]]:
    """Each line with a number: that, how often on all CPUs, and (controller, its own number, the rest)."""
    text = sysfs.lines(roots.proc / "interrupts") or []
    cpus = len(text[0].split()) if text else 0
    for line in text[1:]:
        number, colon, rest = line.partition(":")
        words = rest.split(None, cpus + 2)
        of, counts = decimal(number.strip()), [decimal(word) for word in words[:cpus]]
        if colon and of is not None and None not in counts:
            yield of, sum(filter(None, counts)), words[cpus:]


# --- the kernel itself --------------------------------------------------------------------------------------


def kernel_release(roots: Roots) -> str:
    """What ``uname -r`` prints; empty where it cannot be read."""
    return sysfs.read(roots.proc / "sys/kernel/osrelease", 256) or ""


def boot_id(roots: Roots) -> str:
    """A random identifier of this boot; empty where it cannot be read."""
    return sysfs.read(roots.proc / "sys/kernel/random/boot_id", 64) or ""


def command_line(roots: Roots) -> str:
    """The kernel's command line as the boot loader gave it; empty where it cannot be read."""
    return sysfs.read(roots.proc / "cmdline") or ""


_SPACE = " \t\n\v\f\r"


def parameters(line: str) -> list[tuple[str, str | None]]:
    """Split a kernel's command line into parameters, by the kernel's own rules (next_arg).

    Quotation marks protect blanks, and are removed around a whole parameter or value. Everything after ``--`` is
    for the init process, and is left out.

    Args:
        line: The command line.

    Returns:
        (Name, value) of each parameter; the value is None where there is no ``=``.
    """
    found: list[tuple[str, str | None]] = []
    at = 0
    while True:
        while at < len(line) and line[at] in _SPACE:
            at += 1
        if at >= len(line):
            return found
        begin, quoted = at, False
        while at < len(line) and (quoted or line[at] not in _SPACE):
            quoted ^= line[at] == '"'
            at += 1
        word = line[begin:at]
        if word.startswith('"'):
            word = word[1:].removesuffix('"')
        equals = word.find("=", 1)
        if word == "--":
            return found
        if equals < 0:
            found.append((word, None))
        else:
            name, value = word[:equals], word[equals + 1 :]
            found.append((name, value[1:].removesuffix('"') if value.startswith('"') else value))


def misc_devices(roots: Roots) -> list[str]:
    """The names of the registered misc devices; empty where ``/proc/misc`` cannot be read."""
    words = (line.split() for line in sysfs.lines(roots.proc / "misc") or [])
    return [found[1] for found in words if len(found) == 2]


# --- users of devices ---------------------------------------------------------------------------------------


def swaps(roots: Roots) -> list[str] | None:
    """The swap files and devices in use; None where ``/proc/swaps`` cannot be read."""
    text = sysfs.lines(roots.proc / "swaps")
    return None if text is None else [unescape(line.split()[0]) for line in text[1:] if line.split()]


def consoles(roots: Roots) -> list[tuple[str, bool]]:
    """The kernel's consoles, each as (name, whether it is ``/dev/console``)."""
    found = []
    for line in sysfs.lines(roots.proc / "consoles") or []:
        match = re.match(r"(\S+)\s+\S+\s+\(([^)]*)\)", line)
        if match:
            found.append((match[1], "C" in match[2]))
    return found


def crypto(roots: Roots) -> list[dict[str, str]] | None:
    """The algorithms in ``/proc/crypto``, each as a dictionary of its fields; None where it cannot be read."""
    text = sysfs.read(roots.proc / "crypto")
    if text is None:
        return None
    made = []
    for stanza in text.split("\n\n"):
        pairs = (line.partition(":") for line in stanza.splitlines())
        made.append({key.strip(): value.strip() for key, _, value in pairs})
    return made
