"""What to do about a missing right: become root, or, for root, what else refuses it.

Root is not above everything: in a container it has a read-only /sys, few capabilities or a user namespace, and
lockdown, a security module or a device cgroup refuse root as well. To tell root to run as root is no help.
"""

from __future__ import annotations

import errno
import os
import shlex
from pathlib import Path

from uvirtio.host import process, sysfs
from uvirtio.host.roots import Roots


def remedy(
    become: str = "run as root", *, path: Path | None = None, also: str = "", roots: Roots | None = None
) -> str:
    """What to do about a refusal for lack of rights.

    Args:
        become: What to tell an ordinary user.
        path: The file that cannot be used, where there is one.
        also: Another remedy, good for both.
        roots: Where ``/proc`` and ``/sys`` are; None: the real ones.

    Returns:
        ``become`` for an ordinary user; for root, what else refuses it, as far as that is known.
    """
    first = become if os.geteuid() != 0 else _refuser(path, roots or Roots())
    return f"{first}; or {also}" if also else first


def refused(error: OSError) -> bool:
    """Whether an error is about rights; a read-only file system counts."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def _refuser(path: Path | None, roots: Roots) -> str:
    mount = None if path is None else _mount_of(path, roots)
    if mount is not None:
        return (
            f"this is root, but {mount} is mounted read-only here: run this outside of the container, or "
            f"mount -o remount,rw {shlex.quote(mount)}"
        )
    if not process.initial_user_namespace(roots):
        return "this is root of a user namespace only: run it as root of the machine, outside of the container"
    if process.status("self", roots) and not process.capable(process.CAP_SYS_ADMIN, roots):
        return "this is root without CAP_SYS_ADMIN: run it outside of the container, or give that all capabilities"
    if (mode := sysfs.locked_down(roots)) is not None:
        return f"this is root, but the kernel is locked down ({mode}): boot without secure boot"
    return (
        "this is root, so something else refuses it: a security module (SELinux, AppArmor; see dmesg and the "
        "audit log) or a device cgroup of a container or service"
    )


def _mount_of(path: Path, roots: Roots) -> str | None:
    """The mount point of the file system that holds a path, if it is mounted read-only; None if it is not."""
    try:
        here = Path("/") / path.relative_to(roots.etc.parent)
    except ValueError:
        here = path
    under = [m for m in process.mounts("self", roots) or [] if here.is_relative_to(m.point)]
    if not under:
        return None
    deepest = max(len(m.point) for m in under)
    last = [m for m in under if len(m.point) == deepest][-1]  # the last mount lies on top
    return last.point if last.read_only else None
