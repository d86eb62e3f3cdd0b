"""The administrator's deny list, ``/etc/uvirtio/deny``.

One pattern a line, which ends where ``str.splitlines`` ends one; ``#`` starts a comment. udev-rules/ has a helper
that reads the list by itself, and a test that compares both. A pattern is an address in any of the forms of
``uvirtio.host.addresses`` except a type, a glob over addresses, or a lone ``*``, which matches every real device,
but not ``qemu:`` ones: those are processes of the user's own. Case does not matter, and a glob is matched against
every way to write a PCI address. A name that is not the device's own (``eth0``, ``/dev/vda``) matches as long as
the kernel's driver has the device. The list is checked before a device is opened or bound. A list that exists and
cannot be read denies everything.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator

from uvirtio.errors import Denied, UvirtioError
from uvirtio.host import addresses, limits
from uvirtio.host.roots import Roots

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"
"""Of UTF-8; some editors write one."""

_LONGEST = 1 << 20
"""Bytes. A longer list is no list: what is behind them would be obeyed or not by where it was cut."""


def patterns(roots: Roots) -> list[str]:
    """The patterns of the deny list, in its order; empty where there is no list.

    Raises:
        Denied: The list exists and cannot be read.
        LimitReached: It cannot be, for want of a descriptor.
    """
    path = _place(roots)
    try:
        pipe = stat.S_ISFIFO(os.stat(path).st_mode)  # noqa: PTH116  # reading one waits for a writer
        text = "" if pipe else _text(path)
    except (FileNotFoundError, NotADirectoryError) as error:
        if not os.path.islink(path):  # noqa: PTH114  # a dangling link was meant to be a list
            return []
        raise _unreadable(path, error.strerror) from error
    except PermissionError as error:
        import shlex  # here: lists are readable

        raise _unreadable(path, error.strerror, remedy=f"as root: chmod 0644 {shlex.quote(path)}") from error
    except OSError as error:
        lacking = limits.reached(error, f"the deny list {path} cannot be read")
        raise lacking or _unreadable(path, error.strerror) from error
    if pipe:
        raise _unreadable(path, "a pipe")
    lines = (line.split("#", 1)[0].strip() for line in text.splitlines())
    return [line for line in lines if line]


def _place(roots: Roots) -> str:
    # As text: every start of a qemu: device looks here, and pathlib takes longer to import than all else of it.
    return f"{roots.etc_name.rstrip('/')}/uvirtio/deny"


def _text(path: str) -> str:
    with open(path, "rb") as file:  # noqa: PTH123
        text = file.read(_LONGEST + 1)
    if len(text) > _LONGEST:
        raise _unreadable(path, f"more than {_LONGEST} bytes")
    return text.removeprefix(_BYTE_ORDER_MARK).decode("utf-8", "surrogateescape")


def _unreadable(path: str, seen: str | None, *, remedy: str = "") -> Denied:
    return Denied(
        f"the deny list {path} cannot be read, so every device is denied",
        seen=seen,
        expected="a readable file, or none",
        remedy=remedy or f"as root: put a file in the place of {path}, or remove it",
    )


def denying(names: Iterable[str], roots: Roots) -> str | None:
    """The first pattern that matches one of the names, or None.

    Args:
        names: The names of one device.
        roots: Where the list is.

    Raises:
        Denied: The list exists and cannot be read.
    """
    wanted = list(dict.fromkeys(spelling for name in names if name for spelling in addresses.spellings(name)))
    for pattern in patterns(roots):
        if pattern == "*":
            if not all(name.startswith(addresses.SIMULATED) for name in wanted):
                return pattern
        elif any(_matches(name, form) for form in _forms(pattern, roots) for name in wanted):
            return pattern
    return None


def _matches(name: str, form: str) -> bool:
    from fnmatch import fnmatchcase

    return fnmatchcase(name, form)


def _forms(pattern: str, roots: Roots) -> Iterator[str]:
    """A pattern as it is written, and the canonical name of the device that it stands for."""
    yield pattern.lower()
    try:
        address = addresses.parse(pattern)
        yield address.canonical.lower()
        if address.family in addresses.LOOKED_UP:
            from uvirtio.host.names import device_behind  # here: few lists have such a name

            bus, name = device_behind(address, roots)
            yield f"vdpa:{name}".lower() if bus == "vdpa" else addresses.canonical(name).lower()
    except UvirtioError:  # a glob, an unknown word, a disk that does not exist
        pass


def without_effect(roots: Roots) -> list[str]:
    """The patterns that can match no device: neither a glob nor a name of a device."""
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
    """Check that the deny list does not name a device.

    Args:
        names: All names of the device, the one for errors first.
        roots: Where the list is.

    Raises:
        Denied: The list names the device, or cannot be read.
    """
    wanted = list(names)
    pattern = denying(wanted, roots)
    if pattern is not None:
        raise Denied(
            f"{wanted[0]} is on this machine's deny list",
            seen=f"the line {pattern!r} in {_place(roots)}",
            expected="no line that names the device",
            remedy="try a device of QEMU's instead (qemu:virtio-rng-pci), or ask the administrator",
        )
