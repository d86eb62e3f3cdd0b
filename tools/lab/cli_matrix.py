"""``tools/matrix``: which device was driven which way in, from the reports of ``tools/test``; nothing is typed in.

A test case carries a property ``cell`` for each device that it brought to DRIVER_OK (tests/cells.py). Only those
of tests that passed count. The table stands in docs/tested.md between two markers, and is rewritten there;
README.md has the same at a glance, without counts.
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ET
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from lab import CHECKOUT, arches, cache, machines

BEGIN, END = "<!-- tools/matrix begins -->", "<!-- tools/matrix ends -->"

DEVICES = ("balloon", "mem", "input", "rng", "blk", "scsi", "net")

WAYS = (
    # (transport, back end): what the package has code for, whether a test came by or not.
    ("pci-modern", "qemu"),
    ("pci-modern", "vfio-pci"),
    ("pci-modern", "uio"),
    ("pci-legacy", "qemu"),
    ("pci-legacy", "vfio-pci"),
    ("pci-legacy", "uio"),
    ("mmio", "qemu"),
    ("mmio", "devmem"),
    ("mmio-legacy", "qemu"),
    ("mmio-legacy", "devmem"),
    ("vdpa", "vhost-vdpa"),
    ("vhost-user", "vhost-user"),
)

IMPOSSIBLE = (
    # (transport, device or None, ring or None): what the standard has not, or no device here offers.
    (r"pci-legacy|mmio-legacy", None, "packed"),  # 6: needs VERSION_1
    (r"pci-legacy|mmio-legacy", "mem", None),  # 5.15: needs a modern interface
    (r"pci-legacy", "input", None),  # QEMU's have none
    (r"mmio", "mem", None),  # QEMU's has address 0 there
)


@dataclass
class Found:
    """What the tests of one cell say."""

    passed: int = 0
    places: set[str] = field(default_factory=set)


Table = dict[tuple[str, str, str, str], Found]
"""(transport, back end, ring, device) -> what was found."""


def main(arguments: list[str]) -> int:
    """Run tools/matrix; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/matrix",
        description="Read the reports of one or several runs of tools/test, and rewrite the tables in"
        " docs/tested.md and README.md: which device was driven over which transport, back end and ring.",
    )
    parser.add_argument("reports", nargs="*", type=Path, metavar="DIR", help="default: those of the newest run")
    parser.add_argument(
        "--fill",
        action="store_true",
        help="for runs of a part: leave the cells as they are, and fill those that are 'built' in docs/tested.md",
    )
    parser.add_argument("--print", action="store_true", dest="shown", help="print the table, and write nothing")
    parser.add_argument("--check", action="store_true", help="fail if one of the pages has another table")
    options = parser.parse_args(arguments)
    folders = options.reports or [_newest()]
    table = read(folders)
    if not table:
        print(f"tools/matrix: no cell in {', '.join(map(str, folders))}", file=sys.stderr)
        return 1
    tested = CHECKOUT / "docs/tested.md"
    if options.fill:
        table |= drawn(tested.read_text())
    if options.shown:
        print(draw(table), end="")
        return 0
    pages = {tested: draw(table), CHECKOUT / "README.md": glance(table)}
    changed = {}
    for page, text in pages.items():
        before = page.read_text()
        after = replaced(before, text)
        if after is None:
            print(f"tools/matrix: {page} has no {BEGIN} ... {END}", file=sys.stderr)
            return 1
        if after != before:
            changed[page] = after
    if options.check:
        return 1 if changed else 0
    for page, after in changed.items():
        page.write_text(after)
    cells = sum(found.passed for found in table.values())
    print(f"{len(table)} cells, {cells} tests that passed in them, from {len(folders)} folders")
    return 0


def replaced(page: str, text: str) -> str | None:
    """The page with ``text`` between its markers; None where it has none."""
    head, found, rest = page.partition(BEGIN)
    _, closed, tail = rest.partition(END)
    return f"{head}{BEGIN}\n\n{text}\n{END}{tail}" if found and closed else None


def _newest() -> Path:
    folders = (cache.root() / "reports").iterdir()
    return max((path for path in folders if any(path.glob("*.xml"))), key=lambda path: path.name)


def read(folders: list[Path]) -> Table:
    """What all reports of these folders say. A test that is in several counts once, as it ended in the last."""
    cases: dict[tuple[str, str | None, str | None], tuple[str, list[str]]] = {}
    arm = {machine.name for machine in machines.load() if machine.arch == arches.AARCH64.name}
    for report in (path for folder in folders for path in sorted(folder.glob("*.xml"))):
        lab = _LAB.fullmatch(report.stem)
        place = f"Linux {lab['kernel']}{' arm64' * (lab['machine'] in arm)}" if lab else ""
        for case in ET.parse(report).getroot().iter("testcase"):
            bad = any(case.find(word) is not None for word in ("failure", "error", "skipped"))
            noted = [one.get("value") or "" for one in case.iter("property") if one.get("name") == "cell"]
            cases[report.stem, case.get("classname"), case.get("name")] = (place, [] if bad else noted)
    table: Table = defaultdict(Found)
    for place, cells in cases.values():
        for cell in cells:
            device, transport, backend, ring, _, *machine = cell.split()
            one = table[transport, _BACKENDS.get(backend, backend), ring, device]
            one.passed += 1
            one.places.add(place or "".join(machine) or "daemons")  # which have no machine around them
    return dict(table)


_LAB = re.compile(r"vm-(?P<machine>.+?)-(?P<kernel>(\d+\.\d+|newest)(-\d+k)?)")
_BACKENDS = {"uio_pci_generic": "uio", "/dev/mem": "devmem"}


def draw(table: Table) -> str:
    """The table as Markdown."""
    known = list(WAYS) + sorted({key[:2] for key in table} - set(WAYS))
    lines = [
        "| transport | back end | ring | " + " | ".join(DEVICES) + " |",
        "|---" * (3 + len(DEVICES)) + "|",
    ]
    for transport, backend in known:
        for ring in ("split", "packed"):
            if _impossible(transport, None, ring):
                continue
            cells = []
            for device in DEVICES:
                found = table.get((transport, backend, ring, device))
                if found is not None:
                    cells.append(f"{', '.join(sorted(found.places))} ({found.passed})")
                else:
                    cells.append("-" if _impossible(transport, device, ring) else "built")
            if any(cell not in ("-", "built") for cell in cells) or ring == "split":
                lines.append(f"| {transport} | {backend} | {ring} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "A cell says where tests drove the device that way, and how many passed: `Linux 6.12` is a stock kernel",
        "in the VM, `arm64` on that architecture, `-16k` with pages of 16 KiB; `daemons` are other programs,",
        "behind a socket; the others are machines of `qemu:`, without a guest. *built*: there is code for it,",
        "and no test came by here. `-`: the standard has no such thing, or QEMU's device does not work there.",
    ]
    return "\n".join(lines) + "\n"


def drawn(page: str) -> Table:
    """The cells of a page, as ``draw`` has written them."""
    table: Table = {}
    text = page.partition(BEGIN)[2].partition(END)[0]
    for line in text.splitlines():
        transport, backend, ring, *cells = [cell.strip() for cell in line.strip().strip("|").split("|")] + [""] * 2
        for device, cell in zip(DEVICES, cells, strict=False):
            if found := re.fullmatch(r"(.+) \((\d+)\)", cell):
                table[transport, backend, ring, device] = Found(int(found[2]), set(found[1].split(", ")))
    return table


def glance(table: Table) -> str:
    """The same without rings, places and counts: one line for each way in."""
    lines = ["| transport | back end | " + " | ".join(DEVICES) + " |", "|---" * (2 + len(DEVICES)) + "|"]
    for transport, backend in list(WAYS) + sorted({key[:2] for key in table} - set(WAYS)):
        cells = []
        for device in DEVICES:
            tested = [ring for ring in ("split", "packed") if (transport, backend, ring, device) in table]
            untested = "-" if _impossible(transport, device, "split") else "built"
            cells.append(", ".join(tested) or untested)
        lines.append(f"| {transport} | {backend} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _impossible(transport: str, device: str | None, ring: str) -> bool:
    return any(
        re.fullmatch(where, transport) and which in (None, device) and how in (None, ring)
        for where, which, how in IMPOSSIBLE
    )
