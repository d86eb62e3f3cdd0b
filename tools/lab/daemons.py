"""Vhost-user back ends of a Debian release: downloaded by apt and unpacked, never installed.

To have their folder in PATH is to have these programs. Libraries that none of them needs are removed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from lab import LabError, cache, debian, qemus, unpacked
from lab.debian import Apt
from lab.process import run

_TESTPMD: Final = "dpdk-testpmd"
_DPDK: Final = ("dpdk-dev", f"usr/bin/{_TESTPMD}")
_OTHERS: Final = (
    ("qemu-utils", "usr/bin/qemu-storage-daemon"),
    ("virtiofsd", "usr/libexec/virtiofsd"),
    ("passt", "usr/bin/passt"),
)
"""Packages and what is taken from them; in Debian 12 they are on this machine, or are too old."""

_NEWEST: Final = (("vhost-device-vsock", "usr/bin/vhost-device-vsock"),)
"""What no release has yet."""

# testpmd finds these by name, and its list of needed libraries has the first alone.
_PLUGINS: Final = ("librte_mempool_ring", "librte_net_vhost")

_SYSFS: Final = """
mount -t tmpfs none /sys
mkdir /sys/module
for n in 0 1; do
    mkdir -p /sys/devices/system/cpu/cpu$n/topology /sys/devices/system/node/node0/cpu$n
    echo $n > /sys/devices/system/cpu/cpu$n/topology/core_id
done
exec "$@"
"""

AS_ROOT: Final = ("unshare", "--user", "--map-root-user", "--mount")
"""A user namespace of its own, whose root a daemon may be."""

WITH_CORES: Final = (*AS_ROOT, "sh", "-c", _SYSFS, "sh")
"""What testpmd runs in: DPDK looks for its cores in sysfs, and tests and benches have none."""

# Of what the packages depend on: no compilers, no interpreters.
_NEEDED: Final = re.compile(
    r"qemu-utils|virtiofsd|passt|vhost-device-vsock|dpdk-dev|ibverbs-providers|zlib1g|"
    r"(?!.*-dev$|.*-bin$|.*-common$)lib(?!perl|python|sqlite|db5|x11|gl|mesa|llvm|stdc|gcc-\d).*"
)


def get(version: str, *, accept_expired: bool = False) -> Path:
    """The folder with the programs that belong to a QEMU of ``qemus``; DPDK alone for this machine's own.

    Args:
        version: As for ``qemus.get``.
        accept_expired: Also from an index that is too old to be trusted.
    """
    if version in qemus.MOVING:
        place, _ = debian.newest(
            "daemons",
            qemus.MOVING[version],
            "qemu-utils",
            _building(*_OTHERS, *_NEWEST, _DPDK),
            accept_expired=accept_expired,
        )
        return place / "programs"
    suite = qemus.SUITES[version] if version else debian.machine_suite()
    programs = (*_OTHERS, _DPDK) if version else (_DPDK,)
    target = cache.root() / "daemons" / suite

    def fetch(work: Path) -> None:
        with debian.updated_apt(suite, work, accept_expired=accept_expired) as apt:
            _building(*programs)(apt, work, target)

    return cache.build_once(target, fetch) / "programs"


def _building(*programs: tuple[str, str]) -> Callable[[Apt, Path, Path], None]:
    return lambda apt, work, target: _download(apt, work, target, programs)


def _download(apt: Apt, work: Path, target: Path, programs: Iterable[tuple[str, str]]) -> None:
    """Unpack the programs into ``work``, which will be at ``target``."""
    print(
        f"lab: fetching vhost-user back ends of {apt.suite} (once; up to 40 MB, kept in {cache.root()})",
        flush=True,
    )
    packages = [package for package, _ in programs]
    apt.extract([name for name in apt.needed(*packages) if _NEEDED.fullmatch(name)], work)
    files = [work / file for _, file in programs]
    plugins = _plugins(work) if any(package == _DPDK[0] for package in packages) else []
    _keep(work, [*files, *plugins])
    for file in files:
        told = plugins if file.name == _TESTPMD else []
        program, *before = [target / one.relative_to(work) for one in (file, *told)]
        unpacked.place(work, file.name, wrapper_text(target, program, before))


def wrapper_text(root: Path, program: Path, plugins: Iterable[Path] = ()) -> str:
    """The script that runs ``program``, which lies below ``root``; ``plugins`` are DPDK's."""
    return unpacked.script(root, program, *(word for plugin in plugins for word in ("-d", plugin)))


def _plugins(root: Path) -> list[Path]:
    """DPDK's drivers that testpmd is told of."""
    folder = root / unpacked.LIBRARIES / "dpdk"
    found = [file for name in _PLUGINS for file in folder.rglob(f"{name}.so.*") if not file.is_symlink()]
    if len(found) != len(_PLUGINS):
        raise LabError(f"not one each of {', '.join(_PLUGINS)} in {folder}")
    return found


def _keep(root: Path, files: list[Path]) -> None:
    """Remove all that these files do not need, the libraries of others among it."""
    libraries, loader = root / unpacked.LIBRARIES, root / unpacked.LOADER
    kept = {loader, *files}
    for file in files:
        said = run([str(loader), "--library-path", str(libraries), "--list", str(file)])
        kept |= {Path(found) for found in re.findall(r"=> (/\S+)", said)}
    kept |= {file.resolve() for file in kept}
    names = {path.name for path in kept}
    for path in sorted(root.rglob("*"), reverse=True):
        if path.is_symlink() or path.is_file():
            if path not in kept and path.name not in names:  # links to links are of the same name
                path.unlink()
        elif path.is_dir() and not any(path.iterdir()):
            path.rmdir()
