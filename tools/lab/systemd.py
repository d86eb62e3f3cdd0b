"""A systemd for the guest, with the libraries that it needs: downloaded by apt and unpacked, never installed.

It is that of the machine's own release, on whose files the guest runs; what these have is not taken from here.
``python -m lab.systemd`` (with tools/ on the path) prints the folder, for ``UVIRTIO_SYSTEMD=... tools/vm run``.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lab import LabError, cache, debian
from lab.process import run

PROGRAM = "usr/lib/systemd/systemd"
_KEPT = ("usr/lib/systemd", "usr/bin/systemctl", "usr/lib/x86_64-linux-gnu")
"""Of all that is unpacked: the manager, its one command, and libraries."""


def get(*, accept_expired: bool = False) -> Path:
    """The folder with usr/lib/systemd, usr/bin/systemctl and libraries; downloaded on first use.

    ``accept_expired``: also from an index that is too old to be trusted, which a release in the making may have.
    """
    suite = debian.machine_suite()
    where = cache.root() / "systemd" / suite
    return cache.build_once(where, lambda work: _download(suite, work, accept_expired))


def _download(suite: str, work: Path, accept_expired: bool) -> None:
    print(f"lab: fetching systemd of {suite} (once; kept in {cache.root()})", file=sys.stderr, flush=True)
    whole = work / "whole"
    whole.mkdir()
    with debian.updated_apt(suite, work, accept_expired=accept_expired) as apt:
        apt.extract(apt.needed("systemd"), whole)
    for name in _KEPT:
        (work / name).parent.mkdir(parents=True, exist_ok=True)
        run(["mv", str(whole / name), str(work / name)])
    run(["rm", "-rf", str(whole)])
    if not (work / PROGRAM).is_file():
        raise LabError(f"the package systemd of {suite} has no {PROGRAM}")


if __name__ == "__main__":
    print(get())
