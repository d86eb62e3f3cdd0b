"""The kernel's wake locks (CONFIG_PM_WAKELOCKS): a name that is held keeps the machine from suspending."""

from __future__ import annotations

from uvirtio.host import sysfs
from uvirtio.host.roots import Roots


def supported(roots: Roots) -> bool:
    """Whether this kernel has wake locks."""
    return sysfs.exists(roots.sys / "power/wake_lock")


def take(name: str, roots: Roots) -> None:
    """Hold the wake lock ``name``.

    Raises:
        OSError: The kernel refuses.
    """
    (roots.sys / "power/wake_lock").write_text(name)


def drop(name: str, roots: Roots) -> None:
    """Release the wake lock ``name``.

    Raises:
        OSError: It is not held, or the kernel refuses.
    """
    (roots.sys / "power/wake_unlock").write_text(name)
