"""What the kernel shows of this machine is read in ``uvirtio/host`` alone: no other package parses a file."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import uvirtio

PACKAGE = Path(uvirtio.__file__).parent
EVERY = sorted(PACKAGE.rglob("*.py"))
GENERATED = {PACKAGE / "cli/completion/table.py"}  # from the commands' own options; completion loads little else
OUTSIDE = [path for path in EVERY if path.relative_to(PACKAGE).parts[0] != "host" and path not in GENERATED]

FILES = {
    "iomem", "meminfo", "vmstat", "cmdline", "swaps", "consoles", "crypto", "mountinfo", "pagemap", "lockdown",
    "self", "status", "limits", "route", "ipv6_route", "comm", "environ", "osrelease", "boot_id",
    "block_size_bytes", "enable_unsafe_noiommu_mode", "memory", "resource", "wake_lock",
}  # fmt: skip
"""Files of /proc and sysfs that ``host`` parses, by the last part of their paths."""

OF_OTHERS = {("cli", "status"), ("evidence", "status"), ("online", "resource")}
"""Files of the same names elsewhere: of ``virtioN``, and of a dax device."""

DRIVERS = {"vfio-pci", "uio_pci_generic", "vhost_vdpa", "pci-stub", "vp-vdpa", "kmem"}
"""The kernel's drivers that are named in ``host/drivers.py``."""


ADDRESSES = (
    "virtio_mmio",
    r"virtio-mmio\.",
    "LNRO",
    "vhost-vdpa",
    "vdpa:",
    "mmio:",
    "virtio[",
    "virtio(",
    r"virtio\d",
)
"""Parts of regular expressions that would be a second grammar of addresses."""


def breaches(package: str, text: str) -> Iterator[str]:
    """What a file of ``package`` does that only ``host`` does."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Attribute(attr="proc"):
                yield f"line {node.lineno}: a file of /proc"
            case ast.Attribute(attr="sys", value=ast.Attribute(attr="roots" | "_roots") | ast.Name("roots")) if (
                package in ("cli", "drivers")
            ):
                yield f"line {node.lineno}: {package} asks host and reads no sysfs itself"
            case ast.BinOp(op=ast.Div(), right=ast.Constant(str(path))):
                name = path.rpartition("/")[2]
                if name in FILES and (package, name) not in OF_OTHERS:
                    yield f"line {node.lineno}: {path} is parsed in host"
            case ast.Constant(str(name)) if name in DRIVERS:
                yield f"line {node.lineno}: {name} is named in host/drivers.py"
            case ast.Call(func=ast.Attribute(value=ast.Name("re")), args=[ast.Constant(str(form)), *_]):
                if any(part in form for part in ADDRESSES):
                    yield f"line {node.lineno}: {form} is for host/addresses.py"


@pytest.mark.parametrize("path", OUTSIDE, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_other_package_reads_what_host_reads(path: Path) -> None:
    package = path.relative_to(PACKAGE).parts[0]
    assert list(breaches(package, path.read_text(encoding="utf-8"))) == []


@pytest.mark.parametrize(
    "text",
    [
        'roots.proc / "iomem"',
        'sysfs.lines(self.roots.proc / "self/status")',
        'sysfs.read(roots.sys / "kernel/security/lockdown")',
        'run.roots.sys / "class"',
        'driver == "vfio-pci"',
        'sysfs.lines(found.path / "resource")',
        're.fullmatch(r"virtio[0-9]+", name)',
        're.compile(r"mmio:0x[0-9a-f]{1,16}", re.ASCII)',
    ],
)
def test_a_second_parser_is_seen(text: str) -> None:
    assert list(breaches("cli", text))


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("iomem", "proc"),
        ("meminfo", "proc"),
        ("vmstat", "proc"),
        ("cmdline", "proc"),
        ("pagemap", "pagemap"),
        ("lockdown", "sysfs"),
        ("mountinfo", "process"),
        ("limits", "process"),
        ("ipv6_route", "routes"),
        ("block_size_bytes", "memory"),
    ],
)
def test_one_file_of_host_names_it(name: str, home: str) -> None:
    texts = {path: path.read_text(encoding="utf-8") for path in EVERY}
    named = {
        path.stem
        for path, text in texts.items()
        if name in text
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.BinOp)
        and isinstance(node.right, ast.Constant)
        and str(node.right.value).rpartition("/")[2] == name
    }
    assert named - ({"process"} if name == "cmdline" else set()) == {home}  # a process has a command line, too
