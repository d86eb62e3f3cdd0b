"""What a device needs in addition, supplied unless its ``-device`` argument names its own.

A network card gets QEMU's own network (10.0.2.0/24), cut off from the host's. Memory and disks are memfds of this
process: nothing is left behind, and a test can read them. A disk may be an image of the caller instead.
"""

from __future__ import annotations

import os
import stat
from collections import deque
from collections.abc import Mapping, Sequence

from uvirtio.backends.qemu.models import is_mmio
from uvirtio.errors import NotSupported, UsageError
from uvirtio.host.pattern import Pattern
from uvirtio.typed import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pathlib import Path
    from typing import Any

    from uvirtio.backends.qemu.peer import Peer
    from uvirtio.memory.window import FileWindow

DISK_SIZE = 64 << 20
PLUGGABLE_SIZE = 1 << 30
_QCOW2 = b"QFI\xfb"

_ON = ("on", "yes", "true", "y")
"""What QEMU takes for a property that is on."""

_PORT = Pattern(r"\bvirt(?:console|serialport)\b")
"""A port of a serial device; without ``bus=`` it goes to the first such device."""

_OPTION = Pattern(r",([^=,]+)=((?:[^,]|,,)*)")


class Image(NamedTuple):
    """A raw disk image of the caller. ``read_only``: this user may not write it."""

    path: Path
    read_only: bool


class Part:
    """One device with what it needs."""

    def __init__(self, ident: str, device: str) -> None:
        """Make it with nothing that it needs.

        Args:
            ident: QEMU's name of the device.
            device: The complete ``-device`` argument.
        """
        self.id = ident
        self.device = device
        self.objects: list[dict[str, Any]] = []
        """QEMU objects that have to exist first: ``qom-type``, ``id`` and properties."""

        self.arguments: list[str] = []
        """What can be made by QEMU's command line alone, when it starts."""

        self.disk = ""
        """The name of the supplied disk; empty: none is supplied."""

        self.image: Image | None = None
        """The caller's image behind that disk; None: a memfd."""

        self.netdev = ""
        """The name of the supplied network, QEMU's own without a way out (``user``); empty: none is supplied."""

        self.peer = ""
        """The name of the supplied character device, whose other end this process has; empty: none is supplied."""

        self.behind: list[str] = []
        """``-device`` arguments of what is on the device's own bus."""

        self.size = 0
        """Length of the memfd behind the device, in bytes; 0: there is none."""

    @property
    def plugs_memory(self) -> bool:
        """Whether the device is supplied with memory to plug."""
        return any(one["qom-type"] == "memory-backend-file" for one in self.objects)

    @property
    def at_start(self) -> str:
        """What has to be known when QEMU starts; empty if the device can come later."""
        return "memory" if self.plugs_memory else self.arguments[0].removeprefix("-") if self.arguments else ""


def lacks_disk(device: str) -> bool:
    """Whether a device needs a disk and names none; a SCSI host device has its disks on a bus of its own."""
    name, options = take_apart(device)
    return name.startswith("virtio-scsi") or (name.startswith("virtio-blk") and "drive" not in options)


def part_of(device: str, ident: str, image: Image | None = None, *, elsewhere: str = "") -> Part:
    """Return a device with what its argument lacks.

    Args:
        device: The ``-device`` argument.
        ident: QEMU's name of the device.
        image: The caller's image for a disk; None: a memfd.
        elsewhere: QEMU's other arguments: a SCSI host device whose bus they name is supplied with no disk, and a
            serial device with no port where they have one.

    Raises:
        UsageError: The device has no use for the image.
    """
    name, options = take_apart(device)
    needs_disk = lacks_disk(device)
    if "id" not in options:
        device += f",id={ident}"
    part = Part(ident, device)
    if name.startswith("virtio-scsi") and image is None and f"bus={ident}." in elsewhere:
        pass
    elif needs_disk:
        # Another name where it is not ours: diagnostics resize what was supplied, and nothing else.
        part.disk, part.image = f"{ident}-{'disk' if image is None else 'image'}", image
        part.size = DISK_SIZE if image is None else 0
        if name.startswith("virtio-scsi"):
            part.behind.append(f"scsi-hd,bus={ident}.0,drive={part.disk},id={ident}-hd")
        else:
            part.device += f",drive={part.disk}"
    elif image is not None:
        raise UsageError(
            f"{device.partition(',')[0]} has no use for the image {image.path}",
            seen=device,
            expected="a virtio-blk device without drive=, or a virtio-scsi device",
            remedy="give as many images as there are disks",
        )
    elif name.startswith(("virtio-mem", "virtio-pmem")) and "memdev" not in options:
        part.size = PLUGGABLE_SIZE
        memory = {"qom-type": "memory-backend-file", "id": f"{ident}-memory", "size": part.size, "share": True}
        part.objects.append(memory)
        part.device += f",memdev={ident}-memory"
    elif name.startswith("virtio-crypto") and "cryptodev" not in options:
        part.objects.append({"qom-type": "cryptodev-backend-builtin", "id": f"{ident}-crypto"})
        part.device += f",cryptodev={ident}-crypto"
    elif name.startswith("virtio-net"):
        if not is_mmio(name) and "romfile" not in options:
            # The boot ROM is in a package of its own, and nothing is booted.
            part.device += ",romfile="
        if "netdev" not in options:
            part.netdev = f"{ident}-net"
            part.device += f",netdev={part.netdev}"
    elif name.startswith("virtio-serial") and not _PORT.search(elsewhere):
        part.peer = f"{ident}-port"
        part.behind.append(f"virtconsole,bus={ident}.0,chardev={part.peer},id={ident}-console")
    elif name.startswith("virtio-sound") and "audiodev" not in options:
        part.arguments += ["-audiodev", f"none,id={ident}-audio"]
        part.device += f",audiodev={ident}-audio"
    elif name.startswith("virtio-9p"):
        if "fsdev" not in options:  # QEMU's file system of nothing but itself: none of the host's files
            part.arguments += ["-fsdev", f"synth,id={ident}-files"]
            part.device += f",fsdev={ident}-files"
        if "mount_tag" not in options:
            part.device += f",mount_tag={ident}"
    if options.get("free-page-hint") in _ON and "iothread" not in options:
        options["iothread"] = f"{ident}-thread"
        part.device += f",iothread={ident}-thread"
    if "iothread" in options:
        part.objects.append({"qom-type": "iothread", "id": options["iothread"]})
    # virtio-rng makes its own entropy source (rng-builtin).
    return part


class Supply:
    """The parts of one machine, and the descriptors that they need."""

    def __init__(self, elsewhere: str = "") -> None:
        """Make it without parts.

        Args:
            elsewhere: QEMU's other arguments, in one text.
        """
        self.elsewhere = elsewhere
        self.parts: list[Part] = []
        """In the given order."""

        self.files: dict[str, int] = {}
        """The memfd behind a device, by the device's id: a disk, or memory to plug."""

        self.peers: dict[str, Peer] = {}
        """The other end of a device, by the device's id."""

        self.taken: set[str] = set()
        """Every id that a device has had."""

    def add(self, device: str, image: Image | None = None, *, late: bool = False) -> Part:
        """Add one device, with an id if it has none, and with what it lacks.

        Args:
            device: The ``-device`` argument.
            image: The caller's image for a disk; None: a memfd.
            late: The machine runs, and inherits nothing more: there is no other end of the device.

        Raises:
            UsageError: Another device has this id, or the image is for no disk.
        """
        ident = take_apart(device)[1].get("id") or next(
            name for number in range(len(self.taken), 1 << 32) if (name := f"dev{number}") not in self.taken
        )
        if ident in self.taken:
            raise UsageError(
                f"the id {ident} is taken",
                seen=device,
                expected="an id that no device of this machine has had",
                remedy="leave id= out",
            )
        part = part_of(device, ident, image, elsewhere=self.elsewhere)
        if part.peer and late:
            part.peer = ""
            part.behind.clear()
        if part.peer:
            from uvirtio.backends.qemu.peer import Peer

            self.peers[ident] = Peer()
        if part.size:
            self.files[ident] = os.memfd_create(f"uvirtio-{ident}", os.MFD_CLOEXEC)
            os.ftruncate(self.files[ident], part.size)
        self.taken.add(ident)
        self.parts.append(part)
        return part

    @property
    def slots(self) -> int:
        """Number of pieces of memory that may be plugged, for ``-m slots``."""
        return sum(part.plugs_memory for part in self.parts)

    @property
    def hotplug(self) -> int:
        """Bytes of memory that may be plugged, for ``-m maxmem``."""
        return sum(part.size for part in self.parts if part.plugs_memory)

    def arguments(self) -> list[str]:
        """Return the parts as arguments of QEMU, which inherits the descriptors; each object before its device."""
        made: list[str] = []
        for part in self.parts:
            made += part.arguments
            path = f"/proc/self/fd/{self.files[part.id]}" if part.id in self.files else ""
            for one in part.objects:
                made += ["-object", _object(one, path)]
            if part.disk:
                made += ["-drive", _drive(part, path)]
            if part.peer:
                made += ["-chardev", f"socket,id={part.peer},fd={self.peers[part.id].fileno()}"]
            if part.netdev:
                made += ["-netdev", f"user,id={part.netdev},restrict=on"]
        for part in self.parts:
            for device in (part.device, *part.behind):
                made += ["-device", device]
        return made

    def drop(self, ident: str) -> None:
        """Close what was supplied to a device that does not exist any more."""
        self.parts = [part for part in self.parts if part.id != ident]
        fd = self.files.pop(ident, None)
        if fd is not None:
            os.close(fd)
        peer = self.peers.pop(ident, None)
        if peer is not None:
            peer.close()

    def close(self) -> None:
        """Close the descriptors; idempotent."""
        while self.files:
            os.close(self.files.popitem()[1])
        while self.peers:
            self.peers.popitem()[1].close()


def _object(one: Mapping[str, Any], path: str) -> str:
    words = [one["qom-type"]]
    words += [f"{key}={_word(value)}" for key, value in one.items() if key != "qom-type"]
    if one["qom-type"] == "memory-backend-file":
        words.append(f"mem-path={path}")
    return ",".join(words)


def _word(value: Any) -> str:
    return {True: "on", False: "off"}[value] if isinstance(value, bool) else str(value)


def _drive(part: Part, path: str) -> str:
    if part.image is None:
        return f"if=none,id={part.disk},format=raw,file={path},file.locking=off"
    place = str(part.image.path).replace(",", ",,")
    return f"if=none,id={part.disk},format=raw,file={place},readonly={_word(part.image.read_only)}"


def image_at(path: str | os.PathLike[str]) -> Image:
    """Return the raw image at ``path``, checked as far as this user may.

    Raises:
        UsageError: It does not exist, is not a file, cannot be read, or is a qcow2 image.
    """
    from pathlib import Path  # here: the start of QEMU does without

    place = Path(path).absolute()
    try:
        fd = os.open(place, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            regular = stat.S_ISREG(os.fstat(fd).st_mode)
            magic = os.pread(fd, len(_QCOW2), 0) if regular else b""
        finally:
            os.close(fd)
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise _no_image(place, why, "a file that this user may read") from error
    if not regular:
        raise _no_image(place, "no regular file", "a raw disk image")
    if magic == _QCOW2:
        raise _no_image(place, "a qcow2 image", "a raw disk image", "qemu-img convert -O raw IMAGE RAW")
    return Image(place, not os.access(place, os.W_OK))


def images_of(devices: Sequence[str], drives: Sequence[str | os.PathLike[str] | None]) -> list[Image | None]:
    """Assign images to devices, in the order of the disks.

    Args:
        devices: The ``-device`` arguments.
        drives: Paths of raw images; None among them: a memfd.

    Returns:
        The image of each device, or None.

    Raises:
        UsageError: There are more images than disks, or one cannot be a disk.
    """
    left = deque(None if path is None else image_at(path) for path in drives)
    found = [left.popleft() if left and lacks_disk(device) else None for device in devices]
    if left:
        raise UsageError(
            "there are more drives than disks",
            seen=f"{len(drives)} drives",
            expected=f"at most {len(drives) - len(left)}, one for each virtio-blk device without drive=, "
            "and each virtio-scsi device",
        )
    return found


def _no_image(path: Path, seen: str, expected: str, remedy: str = "name a raw disk image") -> UsageError:
    return UsageError(f"{path} cannot be a disk", seen=seen, expected=expected, remedy=remedy)


def take_apart(device: str) -> tuple[str, dict[str, str]]:
    """Split a ``-device`` argument into the driver's name and the options; ``,,`` is a comma in a value."""
    name = device.partition(",")[0]
    given = device[len(name) :]
    found = _OPTION.findall(given) if given else ()  # the expression is compiled where it is needed
    return name, {key: value.replace(",,", ",") for key, value in found}


def memory_of(files: Mapping[str, int], ident: str, address: str) -> FileWindow:
    """Return the memory that a device plugs, through the memfd that was supplied to it.

    Args:
        files: The supplied memfds, by the device's id.
        ident: QEMU's name of the device.
        address: Its address, for errors.

    Raises:
        NotSupported: The device has a memory backend of the caller's (``memdev=``).
    """
    fd = files.get(ident)
    if fd is None:
        raise NotSupported(
            f"the memory behind {address} is not a file of this process",
            seen="a memory backend of the caller",
            expected="the one that is supplied",
            remedy="leave memdev= out of the device's options",
        )
    from uvirtio.memory.window import FileWindow  # here: QEMU starts without

    return FileWindow(os.dup(fd), 0, os.fstat(fd).st_size, what=f"the memory behind {address}")
