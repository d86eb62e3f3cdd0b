"""A udev for the guest: downloaded by apt and unpacked, never installed.

The machine itself may run without one, and shall not get one. It is the package of the machine's own release,
because in the guest it runs on the machine's own libraries.

``python -m lab.udev`` (with tools/ on the path) prints the folder, for ``UVIRTIO_UDEV=... tools/vm run``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lab import LabError, cache, debian

_PACKAGE = "udev"
# Where the package has its one program for everything: systemd-udevd if called so, udevadm otherwise.
_PROGRAM = ("bin/udevadm", "usr/bin/udevadm")


def get(*, accept_expired: bool = False) -> Path:
    """The folder with the unpacked package (bin/udevadm, lib/udev/rules.d); downloaded on first use.

    ``accept_expired``: also from an index that is too old to be trusted, which a release in the making may have.
    """
    suite = debian.machine_suite()
    where = cache.root() / "udev" / suite
    return cache.build_once(where, lambda work: _download(suite, work, accept_expired))


def _download(suite: str, work: Path, accept_expired: bool) -> None:
    print(f"lab: fetching udev of {suite} (once; kept in {cache.root()})", file=sys.stderr, flush=True)
    debian.unpack(_PACKAGE, suite, work, accept_expired=accept_expired)
    if not any((work / program).is_file() for program in _PROGRAM):
        raise LabError(f"the package {_PACKAGE} of {suite} has none of {', '.join(_PROGRAM)}")


if __name__ == "__main__":
    print(get())
