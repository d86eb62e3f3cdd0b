"""Follows a printed remedy on a made-up tree: the commands in it are run as the kernel would take them.

The programs of others that it may name are played here as they work: driverctl(8) by its script.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.fakes.fakesys import FakeKernel, FakeSys
from uvirtio.binding import sysfs_ops
from uvirtio.cli import main

_ECHO = re.compile(r"echo ?(?P<text>[^\s>;`]*) > (?P<path>/[^\s;`]+)")
_DRIVERCTL = re.compile(r"driverctl (?:--bus (?P<bus>\w+) )?unset-override (?P<name>[^\s;`]+)")
_UVIRTIO = re.compile(r"uvirtio (?P<words>restore [^;`.]*(?:\.\d)?[^;`.]*)")
_REMOVE = re.compile(r"rm (?P<path>/[^\s;`]+)")


class Driverctl:
    """driverctl 0.111: what set-override and unset-override do, in their order."""

    def __init__(self, fake: FakeSys, kernel: FakeKernel) -> None:
        self.fake, self.kernel = fake, kernel

    def set_override(self, name: str, driver: str, *, bus: str = "pci", save: bool = True) -> None:
        self._override(bus, name, driver)
        if save:
            self.fake.text(self._file(bus, name), driver + "\n")

    def unset_override(self, name: str, *, bus: str = "pci") -> None:
        self._override(bus, name, "")
        self._file(bus, name).unlink(missing_ok=True)

    def _file(self, bus: str, name: str) -> Path:
        return self.fake.roots.etc / "driverctl.d" / f"{bus}-{name}"

    def _override(self, bus: str, name: str, driver: str) -> None:
        home = self.fake.sys / "bus" / bus
        device = home / "devices" / name
        if (device / "driver").is_symlink():
            self.kernel.write(home / "drivers" / (device / "driver").readlink().name / "unbind", name, 1)
        self.kernel.write(device / "driver_override", driver + "\n", 1)
        if driver != "none":
            self.kernel.write(home / "drivers_probe", name, 1)


def commands(remedy: str) -> list[re.Match[str]]:
    """The commands in a remedy, in its order."""
    found = [match for pattern in (_ECHO, _DRIVERCTL, _UVIRTIO, _REMOVE) for match in pattern.finditer(remedy)]
    return sorted(found, key=lambda match: match.start())


def follow(remedy: str, fake: FakeSys, kernel: FakeKernel, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Do what a remedy says.

    Args:
        remedy: Its text; of two alternatives only the one that is meant.
        fake: The tree.
        kernel: What answers.
        monkeypatch: To put the kernel in the place of the child that writes.

    Returns:
        The exit code of each uvirtio command in it.
    """
    from uvirtio.binding import bind, restore

    for module in (bind, restore):
        monkeypatch.setattr(module, "ChildWriter", lambda: kernel)
    monkeypatch.setattr(sysfs_ops, "PROBE_INTERVAL", 0)
    codes = []
    found = commands(remedy)
    assert found, f"no command in {remedy!r}"
    for match in found:
        if match.re is _ECHO:
            kernel.write(Path(match["path"]), match["text"] or "\n", 1)
        elif match.re is _DRIVERCTL:
            Driverctl(fake, kernel).unset_override(match["name"], bus=match["bus"] or "pci")
        elif match.re is _REMOVE:
            Path(match["path"]).unlink()
        else:
            codes.append(main([*match["words"].split(), "--root", str(fake.top)]))
    return codes
