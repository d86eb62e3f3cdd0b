"""Addresses of vhost-user back ends.

    vhost-user:blk:/run/disk.socket                   a back end that runs
    vhost-user:fs,tag=shared:/run/fs.socket           with a field of the configuration that it does not have
    vhost-user:rng,exec=vhost-device-rng --fd={fd}    one that is started, and ended with the device
    vhost-user:qsd,queues=4/disk.img                  qemu-storage-daemon with a raw disk image
    vhost-user:qsd,binary=/opt/qsd/disk.img           another one: a path ends with the first file on it

Nothing in the protocol tells the type of the device: the address does. A command is split like a shell's, without
being given to one. ``{fd}`` in it is the number of a listening socket that it inherits, ``{connected}`` that of
a connected one; ``{socket}`` is a path at which it makes one.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from uvirtio.backends.vhost_user import fields
from uvirtio.backends.vhost_user.daemon import CONNECTED, FD, SOCKET, SpawnedDaemon, missing
from uvirtio.backends.vhost_user.node import VhostUserNode
from uvirtio.errors import BadAddress, NoSuchDevice, PermissionLack, UsageError
from uvirtio.host.addresses import VHOST_USER
from uvirtio.host.limits import SOCKET_PATH_MAX
from uvirtio.host.roots import Roots
from uvirtio.spec import ids

QSD: Final = "qsd"
QSD_PROGRAM: Final = "qemu-storage-daemon"
_QSD_INSTALL: Final = "apt-get install qemu-utils, or in Debian 12: apt-get install qemu-system-common"
_QSD_ANOTHER: Final = f"name another with binary=, or none: {_QSD_INSTALL}"
QSD_KEYS: Final = {
    "queues=": "number of request queues",
    "aio=": "threads, native or io_uring",
    "binary=": "the daemon's program",
}
"""Keys that may stand before FILE, each with a line for people."""

_AIO: Final = ("threads", "native", "io_uring")
_QUEUES_MOST: Final = 64
_EXEC: Final = ",exec="
_BINARY: Final = ",binary="


@dataclass(frozen=True, slots=True)
class Target:
    """A back end that an address names."""

    address: str
    device_id: int
    path: str = ""
    """Its socket; empty where it is started."""
    command: tuple[str, ...] = ()
    """The command that starts it; empty where it runs."""
    given: Mapping[str, str] = field(default_factory=dict)
    """Fields of the configuration, for a back end that has none."""

    @property
    def names(self) -> list[str]:
        """Other spellings of the address, for the deny list."""
        paths = dict.fromkeys([self.path, str(Path(self.path).resolve())]) if self.path else {}
        return [f"{VHOST_USER}{ids.type_name(self.device_id)}:{path}" for path in paths]


def parse(address: str) -> Target:
    """Take an address apart.

    Args:
        address: The whole address.

    Raises:
        BadAddress: It is none.
        NoSuchDevice: The disk image of ``qsd/`` does not exist.
        PermissionLack: This user may not look for it.
        EnvironmentLack: The daemon of ``qsd/`` is not there.
    """
    text = address.removeprefix(VHOST_USER)
    if text == QSD or text.startswith((f"{QSD}/", f"{QSD},")):
        at = end_of_keys(text)
        if "/" not in text:
            raise _bad(address, "no disk image follows")
        if at is None:
            path = text.partition(_BINARY)[2]
            raise missing(path.partition("/")[0] or path.rpartition("/")[0], _QSD_ANOTHER)
        return Target(address, 2, command=_qsd(address, text[:at], text[at + 1 :]))
    name = re.match(r"[^,:]*", text)[0]  # type: ignore[index]  # it matches the empty text, too
    rest = text[len(name) :]
    given: dict[str, str] = {}
    while rest.startswith(",") and not rest.startswith(_EXEC):
        key, value, rest = _field(rest)
        if key in given or not value:
            raise _bad(address, f"{key!r} does not stand there once, with a value")
        given[key] = value
    device_id = _type(address, name)
    for key, value in given.items():
        if said := fields.wrong(key, value, device_id):
            raise _bad(address, said)
    if rest.startswith(_EXEC):
        return Target(address, device_id, command=_words(address, rest.removeprefix(_EXEC)), given=given)
    path = rest.removeprefix(":")
    if not path:
        raise _bad(address, "neither a socket nor a command follows the type")
    if len(os.fsencode(path)) > SOCKET_PATH_MAX:
        raise _bad(address, f"the path of a socket has at most {SOCKET_PATH_MAX} bytes")
    return Target(address, device_id, path=path, given=given)


def _field(text: str) -> tuple[str, str, str]:
    """Take ``,KEY=VALUE`` off the beginning: the key, the value and the rest. A MAC address has colons in it."""
    key, _, after = text[1:].partition("=")
    known = fields.KEYS.get(key)
    match = (re.match(known.pattern, after) if known else None) or re.match(r"[^,:]*", after)
    assert match is not None
    return key, match[0], after[match.end() :]


def open_target(
    target: Target, *, timeout: float, roots: Roots | None = None, slots: bool = False
) -> VhostUserNode:
    """Connect to a back end, after starting it where the address says so. The caller has checked the deny list.

    Args:
        target: The back end.
        timeout: Seconds for its start, and for each of its replies.
        roots: Where /proc is.
        slots: Ask how many memory regions it takes; not where rings will be started.

    Raises:
        NoSuchDevice: Nothing listens at the socket.
        PermissionLack: This user may not connect.
        EnvironmentLack: There is no such program.
        OperationFailed: The process cannot be started, or ends at once.
        DeviceTimeout: The back end does not answer.
        ProtocolError: It does not speak vhost-user.
        DeviceGone: It closed the connection.
    """
    daemon = SpawnedDaemon(target.command, timeout=timeout) if target.command else None
    return VhostUserNode(
        daemon.path if daemon else target.path,
        target.device_id,
        address=target.address,
        timeout=timeout,
        given=target.given,
        slots=slots,
        daemon=daemon,
        roots=roots,
    )


def _type(address: str, name: str) -> int:
    try:
        return ids.require_type(name)
    except UsageError as error:
        raise _bad(address, str(error)) from error


def _words(address: str, command: str) -> tuple[str, ...]:
    try:
        words = tuple(shlex.split(command))
    except ValueError as error:
        raise _bad(address, f"the command cannot be split: {error}") from error
    if len(words) < 2 or sum(word.count(place) for word in words[1:] for place in (FD, CONNECTED, SOCKET)) != 1:
        raise _bad(address, f"the command has to have {FD}, {CONNECTED} or {SOCKET} among its arguments, once")
    return words


def end_of_keys(text: str) -> int | None:
    """Where the ``/`` is that ends the keys of ``qsd``; None where ``binary=`` has not ended.

    Only the value of ``binary=`` may have a ``/``. It ends with a comma, or with the first file on the path, for
    there is no path through a file.

    Args:
        text: An address that begins with ``qsd``, without ``vhost-user:``.
    """
    for match in re.finditer("/", text):
        _, key, value = text[: match.start()].partition(_BINARY)
        if not key or "," in value or shutil.which(value) or _is_file(value):
            return match.start()
    return None


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except OSError:  # no permission, or too long a name
        return False


def _qsd(address: str, head: str, file: str) -> tuple[str, ...]:
    """The command of qemu-storage-daemon with one disk image, which it writes to where this user may."""
    keys = _keys(address, head)
    if not file:
        raise _bad(address, "no disk image follows")
    _stat(file)
    program = keys.get("binary", QSD_PROGRAM)
    if shutil.which(program) is None:
        raise missing(program, _QSD_ANOTHER if "binary" in keys else _QSD_INSTALL)
    writable = os.access(file, os.W_OK)
    disk: dict[str, Any] = {
        "driver": "host_device" if Path(file).is_block_device() else "file",
        "node-name": "disk",
        "filename": str(Path(file).absolute()),
        "read-only": not writable,
        "aio": keys.get("aio", "threads"),
    }
    if keys.get("aio") == "native":
        disk["cache"] = {"direct": True}  # QEMU refuses it otherwise
    export = {
        "type": "vhost-user-blk",
        "id": "export",
        "node-name": "disk",
        "writable": writable,
        "num-queues": int(keys.get("queues", "1")),
        "addr": {"type": "fd", "str": FD},
    }
    return (program, "--blockdev", json.dumps(disk), "--export", json.dumps(export))


def _stat(file: str) -> None:
    """Check that a disk image is there."""
    try:
        Path(file).stat()
    except PermissionError as error:
        raise PermissionLack(
            f"this user may not look for a disk image {file}",
            seen=error.strerror,
            expected="search permission for the directories of the path",
            remedy="copy the image to a place of this user's, or have it allowed: setfacl -m u:USER:x DIRECTORY",
        ) from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        raise NoSuchDevice(
            f"there is no disk image {file}",
            seen=getattr(error, "strerror", None) or str(error),
            expected="a raw disk image",
            remedy=f"make one: truncate -s 64M {shlex.quote(file)}"
            if Path(file).parent.is_dir() and isinstance(error, FileNotFoundError)
            else "name one in a directory that there is",
        ) from error


def _keys(address: str, head: str) -> dict[str, str]:
    found: dict[str, str] = {}
    for part in head.split(",")[1:]:
        key, _, value = part.partition("=")
        if f"{key}=" not in QSD_KEYS or not value or key in found:
            known = ", ".join(key.rstrip("=") for key in QSD_KEYS)
            raise _bad(address, f"{part!r} is not one of {known}, once, with a value")
        found[key] = value
    queues = found.get("queues", "1")
    if queues not in map(str, range(1, _QUEUES_MOST + 1)):
        raise _bad(address, f"queues={queues} is not 1 to {_QUEUES_MOST}")
    if found.get("aio", _AIO[0]) not in _AIO:
        raise _bad(address, f"aio={found['aio']} is not {', '.join(_AIO)}")
    return found


def forms() -> Sequence[str]:
    """The forms of an address, for errors and help."""
    return (
        f"{VHOST_USER}TYPE[,KEY=VALUE...]:SOCKET",
        f"{VHOST_USER}TYPE[,KEY=VALUE...],exec=COMMAND",
        f"{VHOST_USER}{QSD}[,KEY=VALUE...]/FILE",
    )


def _bad(address: str, why: str) -> BadAddress:
    return BadAddress(
        f"{address!r} names no vhost-user back end: {why}",
        seen=address,
        expected=" or ".join(forms()),
        remedy=f"for example {VHOST_USER}blk:/run/disk.socket, or {VHOST_USER}{QSD}/disk.img",
    )
