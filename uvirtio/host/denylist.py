"""The administrator's deny list, ``/etc/uvirtio/deny``.

One pattern a line; ``#`` starts a comment. A pattern is an address in any of the forms of
:mod:`uvirtio.host.addresses` but a type, a glob over addresses, or a lone ``*``, which stands for every real
device, but not for ``qemu:`` ones: those are processes of the user's own. Letters may be of either case, and a
glob is held against every way to write a PCI address. What is no name of the device itself (``eth0``,
``/dev/vda``) holds for as long as the kernel's driver has the device. The list is asked wherever a device would be
opened or bound, before anything is touched. A list that is there and cannot be read denies everything.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import suppress
from fnmatch import fnmatchcase
from pathlib import Path

from uvirtio.errors import Denied, UvirtioError
from uvirtio.host import addresses
from uvirtio.host.names import device_behind
from uvirtio.host.roots import Roots

QEMU_PREFIX = addresses.QEMU


def patterns(roots: Roots) -> list[str]:
    """The patterns of the deny list, in its order; empty where there is no list.

    Raises Denied when the list exists and cannot be read.
    """
    path = roots.etc / "uvirtio" / "deny"
    try:
        text = path.read_text(encoding="utf-8", errors="surrogateescape")
    except (FileNotFoundError, NotADirectoryError) as error:
        if not path.is_symlink():  # one that leads nowhere was meant to be a list
            return []
        raise _unreadable(path, error) from error
    except OSError as error:
        raise _unreadable(path, error) from error
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _unreadable(path: Path, error: OSError) -> Denied:
    return Denied(
        f"the deny list {path} cannot be read, so every device is denied",
        seen=error.strerror,
        expected="a readable file, or none",
        remedy=f"as root: chmod 0644 {path}",
    )


def denying(names: Iterable[str], roots: Roots) -> str | None:
    """The first pattern that denies one of ``names``, or None."""
    wanted = list(dict.fromkeys(spelling for name in names if name for spelling in addresses.spellings(name)))
    for pattern in patterns(roots):
        if pattern == "*":
            if not all(name.startswith(addresses.QEMU) for name in wanted):
                return pattern
        elif any(fnmatchcase(name, form) for form in _forms(pattern, roots) for name in wanted):
            return pattern
    return None


def _forms(pattern: str, roots: Roots) -> Iterator[str]:
    """A pattern as it is written, and as the canonical name of the device that it means."""
    yield pattern.lower()
    with suppress(UvirtioError):  # a glob, a word that means nothing here, a disk that is not there
        address = addresses.parse(pattern)
        yield address.canonical.lower()
        if address.family in addresses.LOOKED_UP:
            bus, name = device_behind(address, roots)
            yield f"vdpa:{name}".lower() if bus == "vdpa" else addresses.canonical(name).lower()


def without_effect(roots: Roots) -> list[str]:
    """The patterns that can deny no device: no glob, and no name that a device is asked about."""
    return [
        pattern
        for pattern in patterns(roots)
        if not set(pattern) & set("*?[") and not any(_is_device_name(form) for form in _forms(pattern, roots))
    ]


def _is_device_name(text: str) -> bool:
    try:
        return addresses.parse(text).family in addresses.OPENABLE | {"virtio"}
    except UvirtioError:
        return False


def check(names: Iterable[str], roots: Roots) -> None:
    """Raise Denied if the deny list names the device; ``names`` are all the names it goes by."""
    wanted = list(names)
    pattern = denying(wanted, roots)
    if pattern is not None:
        raise Denied(
            f"{wanted[0]} is on this machine's deny list",
            seen=f"the line {pattern!r} in {roots.etc / 'uvirtio' / 'deny'}",
            expected="no line that names the device",
            remedy="try a device of QEMU's instead (qemu:virtio-rng-pci), or ask whoever wrote the list",
        )
