"""The fuse: the administrator's deny list, ``/etc/uvirtio/deny``.

One pattern a line; ``#`` starts a comment. A pattern is an address (``0000:00:03.0``, or short ``00:03.0``,
``mmio:0xfeb02e00``, ``/dev/vhost-vdpa-0``), a glob over addresses, or a lone ``*``, which stands for every real
device, but not for ``qemu:`` ones: those are processes of the user's own. Letters may be of either case. It is
asked wherever a device would be opened or bound, before anything is touched. A list that is there and cannot be
read denies everything.
"""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatchcase
from pathlib import Path

from uvirtio.errors import Denied
from uvirtio.host.roots import Roots

QEMU_PREFIX = "qemu:"


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
    wanted = [name.lower() for name in names if name]
    for pattern in patterns(roots):
        # A PCI address without its domain is of domain 0.
        forms = (pattern.lower(), "0000:" + pattern.lower())
        for name in wanted:
            if pattern == "*":
                if not name.startswith(QEMU_PREFIX):
                    return pattern
            elif any(fnmatchcase(name, form) for form in forms):
                return pattern
    return None


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
