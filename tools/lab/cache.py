"""The cache folder: downloaded kernels, virtual environments, test reports.

Everything in it can be made again, and whoever finds a finished thing there may trust it: directories are
built elsewhere and renamed, and two runs at once wait for each other on a lock file.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path


def root() -> Path:
    """``$XDG_CACHE_HOME/uvirtio``, or ``~/.cache/uvirtio``; made if it is not there."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    top = Path(base) if base.startswith("/") else Path.home() / ".cache"
    path = top / "uvirtio"
    path.mkdir(parents=True, exist_ok=True)
    return path


_STALE_SECONDS = 14 * 86400


def stale(marks: Iterable[Path]) -> list[Path]:
    """Those of these files and folders that were not used (touched) for a fortnight."""
    limit = time.time() - _STALE_SECONDS
    return [mark for mark in marks if mark.exists() and mark.stat().st_mtime < limit]


@contextmanager
def lock(name: str) -> Iterator[None]:
    """Hold the lock ``name``; the kernel lets go of it however this process ends."""
    path = root() / f"{name}.lock"
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def build_once(target: Path, build: Callable[[Path], None]) -> Path:
    """``target``, built by ``build(directory)`` if it is not there: either whole or not at all."""
    if target.is_dir():
        return target
    target.parent.mkdir(parents=True, exist_ok=True)
    with lock(f"{target.parent.name}-{target.name}"):
        if target.is_dir():  # another run was faster
            return target
        work = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            build(work)
            work.chmod(0o755)  # mkdtemp gives 0700, and an ordinary user of the guest has to read it
            work.rename(target)
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return target
