"""Debian's packages: downloaded by apt and unpacked, never installed.

apt does the verifying (signed index, hashes). It gets a configuration of its own, so that neither the
machine's package lists nor its sources change and no privilege is needed: the machine's own mirror, with
the suite replaced by the one that has the package.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path

from lab import LabError, cache
from lab.arches import X86_64, Arch
from lab.process import run

ACCEPT_EXPIRED = "take packages even where the mirror's index is past its Valid-Until, as of a mirror that rests"
"""What the option of the tools that download says of itself."""


def newest(
    folder: str,
    suite: str,
    package: str,
    build: Callable[[Apt, Path, Path], None],
    arch: Arch = X86_64,
    *,
    accept_expired: bool,
) -> tuple[Path, str]:
    """The ``package`` that ``suite`` has today, in a place of its own in ``folder`` of the cache, and its origin.

    ``build(apt, work, place)`` is called where it is not there yet. What no run wanted for a fortnight is removed.
    """
    top = Path(tempfile.mkdtemp(prefix=".apt-", dir=cache.root()))
    try:
        with updated_apt(suite, top, arch, accept_expired=accept_expired) as apt:
            version = apt.version(package).rpartition(":")[2]  # an epoch's colon would end a part of PATH
            place = cache.root() / folder / f"{suite}-{version}"
            cache.build_once(place, lambda work: build(apt, work, place))
            origin = f"{suite}, {apt.expired}" if apt.expired else suite
    finally:
        shutil.rmtree(top, ignore_errors=True)
    os.utime(place)
    for old in cache.stale(place.parent.glob(f"{suite}-*")):
        shutil.rmtree(old, ignore_errors=True)
    return place, origin


def unpack(package: str, suite: str, work: Path, *, accept_expired: bool = False) -> None:
    """Download a package of ``suite`` alone, and unpack it into ``work``."""
    with updated_apt(suite, work, accept_expired=accept_expired) as apt:
        apt.unpack(package, work)


@contextmanager
def updated_apt(suite: str, work: Path, arch: Arch = X86_64, *, accept_expired: bool = False) -> Iterator[Apt]:
    """apt with today's index of ``suite``, in a folder in ``work`` that goes again.

    LabError where the index is older than its signers wanted, unless that is accepted.
    """
    top = work / "apt"
    apt = Apt(top, suite, arch)
    apt.run("apt-get", "-qq", "update")
    apt.check_age(datetime.now(UTC), accept_expired=accept_expired)
    yield apt
    run(["rm", "-rf", str(top)])


class Apt:
    """apt with its own lists, cache and sources below ``top``."""

    def __init__(self, top: Path, suite: str, arch: Arch = X86_64) -> None:
        self._top = top
        self.suite = suite
        self.expired = ""
        """What is wrong with the index's age, where that was accepted."""
        for part in ("lists/partial", "cache/archives/partial", "empty"):
            (top / part).mkdir(parents=True)
        (top / "status").touch()
        (top / "sources.list").write_text(_sources(suite))
        # What the machine says about fetching (proxies, time-outs, certificates) holds here as well.
        fetching = [line for line in run(["apt-config", "dump"]).splitlines() if line.startswith("Acquire::")]
        settings = {
            "Dir::State": top,
            "Dir::State::Lists": top / "lists",
            "Dir::State::status": top / "status",
            "Dir::Cache": top / "cache",
            "Dir::Etc::SourceList": top / "sources.list",
            "Dir::Etc::SourceParts": top / "empty",
            "Dir::Etc::Main": top / "none",
            "Dir::Etc::Parts": top / "empty",
            "Dir::Etc::Preferences": top / "none",
            "Dir::Etc::PreferencesParts": top / "empty",
            "APT::Architecture": arch.debian,
            "APT::Architectures": arch.debian,
            "APT::Sandbox::User": "root" if os.geteuid() == 0 else "",  # _apt can't write into our folder
            "Acquire::Check-Valid-Until": "false",  # check_age does, whatever this machine's own apt is told
            "Acquire::Languages": "none",
            "Acquire::Retries": "3",
        }
        lines = [*fetching, *(f'{key} "{value}";' for key, value in settings.items() if value != "")]
        (top / "apt.conf").write_text("\n".join(lines) + "\n")

    def check_age(self, now: datetime, *, accept_expired: bool) -> None:
        """Raise LabError when the index's own date of expiry has passed, or note that in ``expired``.

        The index is signed with that date, so that an old one with known faults cannot be given for the newest. A
        mirror that is not kept up to date has such an index too; releases that are out have no such date.
        """
        until = [
            parsedate_to_datetime(date)
            for path in (self._top / "lists").glob("*Release")
            for date in re.findall(r"^Valid-Until: (.+)$", path.read_text(errors="replace"), re.MULTILINE)
        ]
        if not until or min(until) >= now:
            return
        day = f"{min(until):%Y-%m-%d}"
        if not accept_expired:
            raise LabError(
                f"the mirror's index of {self.suite} was valid until {day} (Valid-Until of its Release file), so"
                " that newer packages may be missing from it; to take what it has all the same: --accept-expired"
            )
        self.expired = f"whose index expired {day}"
        print(f"lab: the mirror's index of {self.suite} expired {day}; going on (--accept-expired)", flush=True)

    def run(self, *command: str, into: Path | None = None) -> str:
        """Run an apt tool in the private configuration, which downloads to ``into``; its standard output."""
        environment = {**os.environ, "APT_CONFIG": str(self._top / "apt.conf")}
        return run([*command], cwd=into or self._top, env=environment)

    def version(self, package: str) -> str:
        """The version of ``package`` that would be installed; LabError if there is none."""
        match = re.search(r"^ *Candidate: (\d\S*)$", self.run("apt-cache", "policy", package), re.MULTILINE)
        if match is None:
            raise LabError(
                f"the mirror has no {package} in {self.suite} any more; if it belongs to a kernel of the cache,"
                f" remove that from {cache.root()}/kernels"
            )
        return match.group(1)

    def needed(self, *packages: str) -> list[str]:
        """``packages`` and all that they depend on, in a system where nothing is installed."""
        said = self.run("apt-get", "-s", "--no-install-recommends", "install", *packages)
        return re.findall(r"^Inst (\S+) ", said, re.MULTILINE)

    def extract(self, packages: list[str], root: Path) -> None:
        """Download ``packages`` (NAME or NAME=VERSION), and unpack them as a root: /bin is usr/bin, and so on."""
        for name in ("bin", "sbin", "lib", "lib64"):
            (root / "usr" / name).mkdir(parents=True)
            (root / name).symlink_to(f"usr/{name}")
        folder = self._top / "debs"
        folder.mkdir()
        self.run("apt-get", "-qq", "download", *packages, into=folder)
        unpack = 'dpkg-deb --fsys-tarfile "$1" | tar -x --no-same-owner --keep-directory-symlink -C "$2"'
        for deb in sorted(folder.glob("*.deb")):
            run(["sh", "-c", unpack, "sh", str(deb), str(root)])
        run(["rm", "-rf", str(folder)])

    def unpack(self, package: str, where: Path) -> None:
        """Download ``package`` and unpack it into ``where``."""
        self.run("apt-get", "-qq", "download", package)
        debs = list(self._top.glob(f"{package}_*.deb"))
        if len(debs) != 1:
            raise LabError(f"apt-get download {package} left {len(debs)} packages")
        run(["dpkg", "-x", str(debs[0]), str(where)])


def _sources(suite: str) -> str:
    """A one-line sources list: the machine's own Debian mirror, with ``suite`` for the machine's."""
    codename = machine_suite()
    for source in _machine_sources():
        if source.suite == codename and "main" in source.components:
            options = f"[signed-by={source.signed_by}] " if source.signed_by else ""
            return f"deb {options}{source.uri} {suite} main\n"
    raise LabError(
        f"no line of /etc/apt/sources.list* has the suite {codename} with main: unpack a Debian kernel package"
        " with dpkg -x, run depmod -b on it, and name its path with --kernel"
    )


def machine_suite() -> str:
    """The Debian release of this machine."""
    text = Path("/etc/os-release").read_text()
    match = re.search(r'^VERSION_CODENAME="?([a-z0-9]+)"?$', text, re.MULTILINE)
    if match is None:
        raise LabError("/etc/os-release names no VERSION_CODENAME")
    return match.group(1)


@dataclass(frozen=True, slots=True)
class _Source:
    uri: str
    suite: str
    components: tuple[str, ...]
    signed_by: str


def _machine_sources() -> list[_Source]:
    """The binary package sources of this machine, in both formats of sources.list(5)."""
    found: list[_Source] = []
    etc = Path("/etc/apt")
    for path in [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]:
        if not path.is_file():
            continue
        text = path.read_text(errors="replace")
        if path.suffix == ".sources":
            found += _deb822(text)
        elif path.suffix == ".list":
            found += _one_line(text)
    return found


def _one_line(text: str) -> list[_Source]:
    found = []
    for line in text.splitlines():
        match = re.match(r"deb\s+(?:\[([^]]*)\]\s+)?(\S+)\s+(\S+)\s+([^#]+)", line.strip())
        if match:
            options, uri, suite, components = match.groups()
            signed = re.search(r"signed-by=(\S+)", options or "", re.IGNORECASE)
            found.append(_Source(uri, suite, tuple(components.split()), signed.group(1) if signed else ""))
    return found


def _deb822(text: str) -> list[_Source]:
    found = []
    text = "\n".join(line for line in text.splitlines() if not line.startswith("#"))
    for stanza in re.split(r"\n\s*\n", text):
        fields = {key.lower(): value.strip() for key, value in re.findall(r"^([\w-]+):[ \t]*(.*)$", stanza, re.M)}
        if "deb" not in fields.get("types", "").split() or fields.get("enabled", "yes").lower() == "no":
            continue
        signed = fields.get("signed-by", "")
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                found.append(_Source(uri, suite, tuple(fields.get("components", "").split()), signed))
    return found
