"""The journal: what bind changed, so that restore can undo it even if bind was killed.

One file for each run in ``/run/uvirtio/journal.d``, mode 0600, written whole under a temporary name, synced and
then renamed. It is on the disk before the first change is made. ``/run`` does not survive a reboot and neither
does a binding; an entry of another boot is ignored.
"""

from __future__ import annotations

import os
import re
import shlex
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from uvirtio.errors import EnvironmentLack, OperationFailed, PermissionLack, UvirtioError
from uvirtio.host import privilege, sysfs
from uvirtio.host.digits import decimal
from uvirtio.host.proc import boot_id, kernel_release
from uvirtio.host.process import start_time
from uvirtio.host.roots import Roots

SCHEMA = "uvirtio-journal/1"
_LIMIT = 1 << 20
_NAME_MAX = 255  # NAME_MAX of Linux: no name below /sys or /dev is longer
_TIME_MAX = 1 << 37  # seconds, some 4000 years: what a date can be made of
_ID = re.compile(r"[0-9a-f-]{1,64}", re.ASCII)


class DeviceEntry(NamedTuple):
    """One device as it was before bind, and the driver that bind gives it."""

    address: str
    bus: str
    name: str
    target: str | None
    """The driver that bind gives it; None: it is only unbound (mmio)."""
    driver: str | None
    driver_override: str | None
    pci_id: str | None = None
    subsystem_id: str | None = None
    type: str = "unknown"
    iommu_group: int | None = None
    virtio_name: str | None = None
    """``virtio3`` as it was; the kernel assigns the lowest free number, so the order of restoring matters."""
    node: str | None = None
    """The node whose owner was changed; ``node_before`` is what it had before, as (uid, gid, mode)."""
    node_before: tuple[int, int, int] | None = None
    driverctl: str | None = None
    """The driver that driverctl had saved for the device before bind; None: it had saved none."""
    steps: tuple[str, ...] = ()
    """What bind has done, in its order; ``restore`` once restore has begun to change something."""

    @property
    def number(self) -> int:
        """The N of ``virtioN``; -1 where there was none."""
        number = decimal((self.virtio_name or "").removeprefix("virtio"))
        return -1 if number is None else number

    def as_dict(self) -> dict[str, Any]:
        """The record as the journal file and the JSON of ``journal`` have it."""
        return self._asdict()


class Entry(NamedTuple):
    """One run of bind."""

    id: str
    boot_id: str
    time: float
    pid: int
    pid_start: int | None
    argv: tuple[str, ...]
    kernel: str
    state: str
    """``binding`` (begun), ``bound`` (done) or ``pending`` (a write of it still waits in the kernel)."""
    devices: tuple[DeviceEntry, ...] = ()

    def device(self, address: str) -> DeviceEntry | None:
        """The record of the device with this ``DiscoveredDevice.key``; None: it is not in this entry."""
        return next((device for device in self.devices if device.address == address), None)

    def with_device(self, device: DeviceEntry) -> Entry:
        """A copy of the entry with this device's record replaced."""
        return self._replace(
            devices=tuple(device if old.address == device.address else old for old in self.devices)
        )

    def as_dict(self) -> dict[str, Any]:
        """The entry as the journal file and the JSON of ``journal`` have it."""
        made = self._asdict()
        made["devices"] = [device.as_dict() for device in self.devices]
        return made


def directory(roots: Roots) -> Path:
    """The directory of the journal: ``/run/uvirtio/journal.d`` below these roots."""
    return roots.run / "uvirtio" / "journal.d"


def new(devices: Sequence[DeviceEntry], roots: Roots, argv: Sequence[str] = ()) -> Entry:
    """An entry for this run; not written yet.

    Args:
        devices: The devices as they are now.
        roots: Where ``/proc`` is.
        argv: The command line, for the reader of the journal.
    """
    return Entry(
        id=f"{time.time_ns():016x}-{os.getpid():x}-{os.urandom(3).hex()}",
        boot_id=boot_id(roots),
        time=time.time(),
        pid=os.getpid(),
        pid_start=start_time(os.getpid(), roots),
        argv=tuple(argv),
        kernel=kernel_release(roots),
        state="binding",
        devices=tuple(devices),
    )


def store(entry: Entry, roots: Roots) -> None:
    """Write the entry atomically; it is on the disk when this returns.

    Raises:
        EnvironmentLack: The directory is read-only, full or not writable for this user.
    """
    import json  # here and below: a look at a machine without a journal does without it

    home = directory(roots)
    target = home / f"{entry.id}.json"
    temporary = home / f".{entry.id}.{os.urandom(4).hex()}.tmp"
    text = json.dumps({"schema": SCHEMA, **entry.as_dict()}, indent=1).encode()
    try:
        home.mkdir(mode=0o755, parents=True, exist_ok=True)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            left = memoryview(text)
            while left:
                left = left[os.write(fd, left) :]
            os.fsync(fd)
        finally:
            os.close(fd)
        temporary.replace(target)
        _sync(home)
    except OSError as error:
        with suppress(OSError):  # nothing was made, as on a read-only file system
            temporary.unlink(missing_ok=True)
        raise _unwritable("the journal cannot be written, so nothing may be changed", error, roots) from error


def _unwritable(what: str, error: OSError, roots: Roots) -> EnvironmentLack:
    home = directory(roots)
    there = next((place for place in home.parents if sysfs.exists(place)), home.parent)  # on its file system
    return EnvironmentLack(
        what,
        seen=f"{home}: {error.strerror}",
        expected="a directory on a file system with room, which root may write",
        remedy=privilege.remedy("run this as root", path=home, roots=roots)
        if privilege.refused(error)
        else f"see to it that {home} can be written: df {shlex.quote(str(there))}",
    )


def remove(entry: Entry, roots: Roots) -> None:
    """Delete the entry: all of its devices are as they were.

    Raises:
        EnvironmentLack: The directory is read-only or not writable for this user.
    """
    home = directory(roots)
    try:
        (home / f"{entry.id}.json").unlink(missing_ok=True)
        _sync(home)
    except OSError as error:
        raise _unwritable("what was done stays in the journal, which cannot be written", error, roots) from error


def drop(entry: Entry, address: str, roots: Roots) -> None:
    """Remove the record of one device; the file goes with the last one.

    Args:
        entry: The entry that has it.
        address: The ``DiscoveredDevice.key`` of the device.
        roots: Where the journal is.

    Raises:
        EnvironmentLack: The directory is read-only, full or not writable for this user.
    """
    now = _now(entry, roots)
    left = tuple(device for device in now.devices if device.address != address)
    if left:
        store(now._replace(devices=left), roots)
    else:
        remove(now, roots)


def update(entry: Entry, device: DeviceEntry, roots: Roots) -> None:
    """Replace the record of one device, and leave those of others as they are on the disk.

    Args:
        entry: The entry that has it.
        device: The new record.
        roots: Where the journal is.

    Raises:
        EnvironmentLack: The directory is read-only, full or not writable for this user.
    """
    store(_now(entry, roots).with_device(device), roots)


def _now(entry: Entry, roots: Roots) -> Entry:
    """The entry as it is on the disk: another process may have restored another device of it meanwhile."""
    return _load(directory(roots) / f"{entry.id}.json") or entry


def _sync(home: Path) -> None:
    fd = os.open(home, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def entries(roots: Roots, *, every_boot: bool = False) -> list[Entry]:
    """The entries in the journal, oldest first; files that are no entries are skipped.

    Args:
        roots: Where the journal is.
        every_boot: Those of earlier boots too.
    """
    here = boot_id(roots)
    loaded = (_load(path) for path in _files(roots) or [])
    found = [entry for entry in loaded if entry is not None and (every_boot or entry.boot_id == here)]
    return sorted(found, key=lambda entry: (entry.time, entry.id))


def entries_of(address: str, roots: Roots) -> list[tuple[Entry, DeviceEntry]]:
    """The entries of this boot that have the device, and its record in each; oldest first.

    The oldest one has the state before the first bind, unless it is about a device that is gone.
    """
    pairs = ((entry, entry.device(address)) for entry in entries(roots))
    return [(entry, device) for entry, device in pairs if device is not None]


def hidden(roots: Roots) -> list[Path]:
    """What of the journal this user cannot read: its directory, or entries; empty: nothing."""
    files = _files(roots)
    return [directory(roots)] if files is None else [path for path in files if _refusal(path) is not None]


def damaged(roots: Roots) -> list[Path]:
    """The files of the journal that this user can read and that hold no entry."""
    return [path for path in _files(roots) or [] if _load(path) is None and _is_open(path)]


def unread(roots: Roots) -> UvirtioError | None:
    """An error that names each part of the journal that says nothing to this user; None: all of it was read.

    EnvironmentLack where this user cannot read a part; OperationFailed where files hold no entry.
    """
    unseen, bad = hidden(roots), damaged(roots)
    if unseen:
        error = _refusal(unseen[0])
        kind, do = EnvironmentLack, f"see why it cannot be read: ls -l {shlex.quote(str(unseen[0]))}"
        if error is not None and privilege.refused(error):
            kind, do = PermissionLack, privilege.remedy("run this as root", path=unseen[0], roots=roots)
        return kind(
            "a part of the journal cannot be read, and what it says of bound devices is not known",
            seen=[str(path) for path in (*unseen, *bad)],
            expected="a journal that this user can read",
            remedy=do,
        )
    if bad:
        return OperationFailed(
            "files of the journal hold no entry, so that the devices in them cannot be given back by it",
            seen=[str(path) for path in bad],
            expected=f"entries of the form {SCHEMA}",
            remedy="`uvirtio list` shows what has a user-space driver, `uvirtio restore DEV` says how to give it "
            f"back by hand; then, as root: rm {shlex.quote(str(bad[0]))}",
        )
    return None


def _refusal(path: Path) -> OSError | None:
    """Why a file or directory cannot be opened for reading; None: it can be, or it is not there."""
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC))
    except FileNotFoundError as error:
        return error if os.path.lexists(path) else None  # a link that leads nowhere is there
    except OSError as error:
        return error
    return None


def _is_open(path: Path) -> bool:
    """Whether a file is there and can be read: one that was removed meanwhile is no damage."""
    return os.path.lexists(path) and _refusal(path) is None


def _files(roots: Roots) -> list[Path] | None:
    """The files of the journal without those that ``store`` still writes; None where they cannot be listed."""
    home = directory(roots)
    names = sysfs.listed(home)
    if names is None:
        return None
    return [home / name for name in names if name.endswith(".json") and not name.startswith(".")]


def _load(path: Path) -> Entry | None:
    text = sysfs.read(path, _LIMIT + 1)
    if text is None or len(text) > _LIMIT:
        return None
    import json

    try:
        raw = json.loads(text)
        if raw.pop("schema") != SCHEMA or not _ID.fullmatch(raw["id"]) or path.name != raw["id"] + ".json":
            return None
        raw["argv"] = tuple(str(word) for word in raw["argv"])
        if not all(isinstance(raw[key], str) for key in ("boot_id", "kernel", "state")):
            return None
        raw["time"] = float(raw["time"])
        if not 0 <= raw["time"] <= _TIME_MAX:  # nor is NaN
            return None
        records = [_record(item) for item in raw["devices"]]
        raw["devices"] = tuple(record for record in records if record is not None)
        return Entry(**raw) if raw["devices"] or not records else None
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError):
        return None


_TEXT = ("address", "bus", "name", "type")
_TEXT_OR_NONE = (
    "target",
    "driver",
    "driver_override",
    "pci_id",
    "subsystem_id",
    "virtio_name",
    "node",
    "driverctl",
)
_NO_PATHS = ("driver_override", "driverctl")
"""Written to a file or compared, and never part of a path: the kernel takes any text as an override."""


def _record(raw: Any) -> DeviceEntry | None:
    """A device record; None for nonsense, which hides no other record of its entry."""
    try:
        return _device(raw)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError):
        return None


def _device(raw: dict[str, Any]) -> DeviceEntry:
    """A device record from its JSON.

    Raises:
        ValueError: A name is none, or would lead out of the directory that it belongs to.
    """
    known = set(DeviceEntry._fields)
    made = {"driverctl": None} | {key: value for key, value in raw.items() if key in known}
    for key in (*_TEXT, *_TEXT_OR_NONE):
        value = made[key]
        if value is None and key in _TEXT_OR_NONE:
            continue
        if not isinstance(value, str) or "\0" in value or len(value.encode()) > _NAME_MAX:
            raise ValueError(key)
        if key in _NO_PATHS:
            continue
        if ".." in value.split("/"):
            raise ValueError(key)
        if key != "node" and "/" in value:
            raise ValueError(key)
    group = made["iommu_group"]
    if group is not None and type(group) is not int:
        raise ValueError("iommu_group")
    if made["bus"] not in ("pci", "platform", "vdpa"):
        raise ValueError("bus")
    made["steps"] = tuple(str(step) for step in made["steps"])
    if made["node_before"] is not None:
        uid, gid, mode = made["node_before"]
        made["node_before"] = (int(uid), int(gid), int(mode))
    return DeviceEntry(**made)
