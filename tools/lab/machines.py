"""The machines of tests/vm/machines.toml: which devices, which kernels, which test files."""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from lab import CHECKOUT, LabError
from lab.arches import X86_64

FOLDER = CHECKOUT / "tests" / "vm"


@dataclass(frozen=True, slots=True)
class Machine:
    """One entry: what to boot, and the test files that run on it."""

    name: str
    kernels: tuple[str, ...]
    devices: tuple[str, ...]
    files: tuple[Path, ...]
    arguments: tuple[str, ...] = ()
    """For pytest, instead of ``files``: some of them, or some tests of theirs."""
    arch: str = X86_64.name
    machine: str = ""
    """QEMU's -M argument; the architecture's usual one."""
    cpu: str = ""
    """QEMU's -cpu argument."""
    acpi: bool = False
    """On aarch64: ACPI tables, by UEFI, instead of a device tree."""
    soft_reserved: str = ""
    """On aarch64 with ACPI: memory that the kernel finds set apart, SIZE@ADDRESS; see soft_reserve.py."""
    qemu: tuple[str, ...] = ()
    """More arguments for QEMU."""
    iommu: str = ""
    """What stands between devices and memory; the architecture's usual one."""
    memory: str = "1G"
    append: str = ""
    timeout: float = 1200.0
    whole: bool = False
    """With every test, on the older kernel, too; see tests/vm/plain_run.py."""
    modules: tuple[str, ...] = ()
    """Sets of modules that the kernel does not come with; see modules.py."""
    qemu_version: str = ""
    """Another QEMU than this machine's own; see qemus.py."""
    daemons: str = ""
    """Back ends of another release, in PATH; see daemons.py."""
    systemd: bool = False
    """With the service manager of this machine's release, unpacked and not started; see systemd.py."""
    extra: bool = False
    """Only for tools/test --all, or when it is named."""
    more_kernels: tuple[str, ...] = ()
    """Likewise, of a machine that is no extra one."""


def load() -> list[Machine]:
    """All machines; LabError if a test file runs on none of them."""
    table = tomllib.loads((FOLDER / "machines.toml").read_text())
    files = sorted(FOLDER.glob("test_*.py"))
    machines = []
    for name, entry in table.items():
        patterns = entry.pop("tests")
        chosen = tuple(path for path in files if any(fnmatchcase(path.name, pattern) for pattern in patterns))
        for key in ("kernels", "more_kernels", "devices", "modules", "qemu"):
            entry[key] = tuple(entry.get(key, ()))
        machines.append(Machine(name=name, files=chosen, **entry))
    homeless = set(files) - {path for machine in machines for path in machine.files}
    if homeless:
        names = ", ".join(sorted(path.name for path in homeless))
        raise LabError(f"{FOLDER / 'machines.toml'}: no machine runs {names}", 1)
    return machines
