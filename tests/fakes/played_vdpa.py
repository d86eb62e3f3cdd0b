"""vhost-vdpa, played: the rules that the kernel has for a node, and a device that serves split rings behind it.

It answers by ioctl number, keeps the order in which it was asked, and refuses what the kernel refuses. The device
reaches memory only through the maps that were made, by this process's own addresses.
"""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from uvirtio.backends.vhost_vdpa import uapi
from uvirtio.host.roots import Roots
from uvirtio.host.syscalls import Kernel
from uvirtio.spec import features as f

FD = 1000
ENOTSUPP = 524
PATTERN = bytes(range(256)) * 16
"""What the device answers with, unless it is told to serve otherwise."""

NAMES = {value: name for name, value in vars(uapi).items() if name.startswith("VHOST_") and value > 0xFFFF}
NAMES[uapi.VHOST_SET_OWNER] = "VHOST_SET_OWNER"
NAMES[uapi.VHOST_VDPA_SUSPEND] = "VHOST_VDPA_SUSPEND"
NAMES[uapi.VHOST_VDPA_RESUME] = "VHOST_VDPA_RESUME"
MODERN = f.mask(f.VERSION_1, f.ACCESS_PLATFORM)


class Queue:
    def __init__(self) -> None:
        self.num = 0
        self.addresses: tuple[int, int, int] | None = None
        self.base = 0
        self.kick = self.call = -1
        self.enabled = False
        self.seen = 0


class Played:
    """One device of one kernel. ``refuse`` maps an ioctl's name to an errno, or to a function of its argument."""

    def __init__(
        self,
        top: Path,
        *,
        device_id: int = 4,
        config: bytes = b"",
        queues: int = 1,
        num_max: int = 256,
        sizes: dict[int, int] | None = None,
        features: int = MODERN,
        backend_features: int = 0b1111110,
        iova: tuple[int, int] = (0, (1 << 64) - 1),
        pins: bool = False,
        name: str = "vdpa0",
    ) -> None:
        self.roots = Roots.under(top)
        self.device_id, self.config, self.num_max, self.sizes = device_id, bytearray(config), num_max, sizes
        self.features, self.backend_offered, self.iova, self.pins = features, backend_features, iova, pins
        self.queues = [Queue() for _ in range(queues)]
        self.status = 0
        self.taken = 0
        self.backend_taken = 0
        self.owned = False
        self.opened = self.closed = 0
        self.open_errno = 0
        self.config_call = -1
        self.suspended = False
        self.maps: dict[int, tuple[int, int]] = {}
        self.batch = 0
        self.log: list[str] = []
        self.messages: list[tuple[int, int, int, int]] = []
        self.refuse: dict[str, int | Callable[[Any], int]] = {}
        self.serve: Callable[[Played, bytes, int], bytes] = lambda _played, _out, room: PATTERN[:room]
        self.kernel = Kernel(ioctl=self.ioctl, open=self.open, close=self.close, write=self.write)
        self._sysfs(name)

    def _sysfs(self, name: str) -> None:
        device = self.roots.sys / "devices/virtual/vduse" / name / name
        (device / "vhost-vdpa-0").mkdir(parents=True)
        bus = self.roots.sys / "bus/vdpa"
        (bus / "devices").mkdir(parents=True, exist_ok=True)
        (bus / "drivers/vhost_vdpa").mkdir(parents=True, exist_ok=True)
        (bus / "devices" / name).symlink_to(device)
        (device / "driver").symlink_to(bus / "drivers/vhost_vdpa")
        self.roots.dev.mkdir(parents=True, exist_ok=True)
        (self.roots.dev / "vhost-vdpa-0").touch()
        (self.roots.proc / "self").mkdir(parents=True, exist_ok=True)
        self.pinned = 0

    @property
    def pinned(self) -> int:
        return self._pinned

    @pinned.setter
    def pinned(self, size: int) -> None:
        self._pinned = size
        (self.roots.proc / "self/status").write_text(
            f"Name:\tx\nVmLck:\t       0 kB\nVmPin:\t{size // 1024:8} kB\n"
        )

    # --- the node -------------------------------------------------------------------------------------------

    def open(self, path: str, flags: int) -> int:
        assert path == str(self.roots.dev / "vhost-vdpa-0")
        assert flags == os.O_RDWR | os.O_CLOEXEC
        if self.open_errno:
            raise OSError(self.open_errno, "played")
        self.opened += 1
        self._reset()
        return FD

    def close(self, fd: int) -> None:
        assert fd == FD
        self.closed += 1
        self._reset()
        self.maps.clear()
        self.pinned = 0

    def ioctl(self, fd: int, request: int, argument: Any) -> int:
        assert fd == FD
        name = NAMES.get(request, hex(request))
        self.log.append(name)
        self.run()
        refused = self.refuse.get(name, 0)
        number = refused(argument) if callable(refused) else refused
        number = number or self._answer(name, argument)
        if number:
            raise OSError(number, "played")
        return 0

    def _answer(self, name: str, argument: Any) -> int:
        plain = name.removeprefix("VHOST_").removeprefix("VDPA_").lower()
        if "VRING" in name and plain not in ("get_vring_num",):
            if plain != "set_vring_enable" and plain != "get_vring_size" and not self.owned:
                return errno.EPERM
            index = argument.index
            if index >= len(self.queues):
                return errno.ENOBUFS
            return int(getattr(self, f"_{plain}")(self.queues[index], argument) or 0)
        method = getattr(self, f"_{plain}", None)
        return errno.ENOBUFS if method is None else int(method(argument) or 0)

    def _reset(self) -> None:
        self.status = self.taken = 0
        self.suspended = False
        for queue in self.queues:
            queue.addresses, queue.num, queue.base, queue.seen, queue.enabled = None, 0, 0, 0, False

    def _set_owner(self, _argument: Any) -> int:
        if self.owned:
            return errno.EBUSY
        self.owned = True
        return 0

    def _get_backend_features(self, word: Any) -> None:
        word.value = self.backend_offered

    def _set_backend_features(self, word: Any) -> int:
        if word.value & ~self.backend_offered:
            return errno.EOPNOTSUPP
        self.backend_taken = word.value
        return 0

    def _get_device_id(self, word: Any) -> None:
        word.value = self.device_id

    def _get_status(self, word: Any) -> None:
        word.value = self.status

    def _set_status(self, word: Any) -> int:
        if word.value and self.status & ~word.value:
            return errno.EINVAL
        if word.value == 0:
            self._reset()
        else:
            self.status = word.value
        return 0

    def _get_features(self, word: Any) -> None:
        word.value = self.features & (1 << 64) - 1

    def _set_features(self, word: Any) -> int:
        if self.status & 8:
            return errno.EBUSY
        self.taken = word.value
        return 0

    def _get_config_size(self, word: Any) -> None:
        word.value = len(self.config)

    def _bounds(self, buffer: bytearray) -> tuple[int, int]:
        offset, length = struct.unpack_from("<II", buffer)
        return (offset, length) if length and offset + length <= len(self.config) else (-1, 0)

    def _get_config(self, buffer: bytearray) -> int:
        offset, length = self._bounds(buffer)
        if offset < 0:
            return errno.EINVAL
        buffer[8:] = self.config[offset : offset + length]
        return 0

    def _set_config(self, buffer: bytearray) -> int:
        offset, length = self._bounds(buffer)
        if offset < 0:
            return errno.EINVAL
        self.config[offset : offset + length] = buffer[8:]
        return 0

    def _get_vqs_count(self, word: Any) -> None:
        word.value = len(self.queues)

    def _get_vring_num(self, word: Any) -> None:
        word.value = self.num_max

    def _get_vring_size(self, _queue: Queue, state: Any) -> int:
        if self.sizes is None:
            return errno.EOPNOTSUPP
        state.num = self.sizes[state.index]
        return 0

    def _set_vring_num(self, queue: Queue, state: Any) -> int:
        if not 0 < state.num <= 0xFFFF or state.num & (state.num - 1):
            return errno.EINVAL
        queue.num = state.num
        return 0

    def _set_vring_addr(self, queue: Queue, addr: Any) -> int:
        desc, avail, used = addr.desc_user_addr, addr.avail_user_addr, addr.used_user_addr
        if addr.flags or desc % 16 or avail % 2 or used % 4 or self.status & 4:
            return errno.EINVAL
        queue.addresses = (desc, avail, used)
        return 0

    def _set_vring_base(self, queue: Queue, state: Any) -> int:
        if self.status & 4:
            return errno.EINVAL
        queue.base = state.num
        return 0

    def _get_vring_base(self, queue: Queue, state: Any) -> None:
        state.num = queue.seen

    def _set_vring_kick(self, queue: Queue, file: Any) -> None:
        queue.kick = file.fd

    def _set_vring_call(self, queue: Queue, file: Any) -> None:
        queue.call = file.fd

    def _set_vring_enable(self, queue: Queue, state: Any) -> None:
        queue.enabled = bool(state.num)
        if queue.enabled and queue.call >= 0:
            os.eventfd_write(queue.call, 1)  # VDUSE does that: a call without a cause

    def _set_config_call(self, fd: Any) -> None:
        self.config_call = fd.value

    def _get_iova_range(self, found: Any) -> None:
        found.first, found.last = self.iova

    def _suspend(self, _argument: Any) -> None:
        self.suspended = True

    def _resume(self, _argument: Any) -> None:
        self.suspended = False

    # --- maps -----------------------------------------------------------------------------------------------

    def write(self, fd: int, data: bytes) -> int:
        assert fd == FD
        assert len(data) == 72
        version, asid = struct.unpack_from("<II", data)
        assert version == (2 if self.backend_taken & 2 else 1)
        assert asid == 0
        iova, size, vaddr, perm, kind = struct.unpack_from("<QQQBB", data, 8)
        self.messages.append((kind, iova, size, perm))
        self.log.append(f"iotlb {kind}")
        number = self._message(kind, iova, size, vaddr)
        if number:
            raise OSError(number, "played")
        return len(data)

    def _message(self, kind: int, iova: int, size: int, vaddr: int) -> int:
        refused = self.refuse.get(f"iotlb {kind}", 0)
        if refused:
            return refused if isinstance(refused, int) else refused(size)
        if kind == uapi.VHOST_IOTLB_UPDATE:
            first, last = self.iova
            overlaps = any(
                start < iova + size and iova < start + length for start, (_, length) in self.maps.items()
            )
            if not size or iova < first or iova + size - 1 > last or overlaps:
                return errno.EFAULT  # whatever it was: vhost_chr_write_iter has one word for all
            self.maps[iova] = (vaddr, size)
            self.pinned += size if self.pins else 0
        elif kind == uapi.VHOST_IOTLB_INVALIDATE:
            for start, (_, length) in list(self.maps.items()):
                if iova <= start and start + length <= iova + size:
                    del self.maps[start]
                    self.pinned -= length if self.pins else 0
        elif kind == uapi.VHOST_IOTLB_BATCH_BEGIN:
            self.batch += 1
        elif kind == uapi.VHOST_IOTLB_BATCH_END:
            self.batch -= 1
        return 0

    def _vaddr(self, iova: int, length: int) -> int:
        for start, (vaddr, size) in self.maps.items():
            if start <= iova and iova + length <= start + size:
                return vaddr + iova - start
        raise AssertionError(f"the device goes to {iova:#x}, where nothing is mapped")

    def load(self, iova: int, length: int) -> bytes:
        return ctypes.string_at(self._vaddr(iova, length), length)

    def store(self, iova: int, data: bytes) -> None:
        ctypes.memmove(self._vaddr(iova, len(data)), data, len(data))

    # --- the device -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Serve the queues that were kicked, as a device does between two looks of the driver."""
        if not self.status & 4 or self.suspended:
            return
        for queue in self.queues:
            if queue.enabled and queue.kick >= 0 and _drained(queue.kick):
                self._serve(queue)

    def _serve(self, queue: Queue) -> None:
        assert queue.addresses is not None
        desc, avail, used = queue.addresses
        while queue.seen != int.from_bytes(self.load(avail + 2, 2), "little"):
            head = int.from_bytes(self.load(avail + 4 + 2 * (queue.seen % queue.num), 2), "little")
            out, room = b"", []
            at: int | None = head
            while at is not None:
                address, length, flags, following = struct.unpack("<QIHH", self.load(desc + 16 * at, 16))
                if flags & 2:
                    room.append((address, length))
                else:
                    out += self.load(address, length)
                at = following if flags & 1 else None
            answer = self.serve(self, out, sum(length for _, length in room))
            left = answer
            for address, length in room:
                self.store(address, left[:length])
                left = left[length:]
            self.store(used + 4 + 8 * (queue.seen % queue.num), struct.pack("<II", head, len(answer)))
            queue.seen = (queue.seen + 1) & 0xFFFF
            self.store(used + 2, queue.seen.to_bytes(2, "little"))
        if queue.call >= 0:
            os.eventfd_write(queue.call, 1)

    def change_config(self, config: bytes) -> None:
        """The host changes the configuration, and tells where somebody listens."""
        self.config[:] = config
        if self.config_call >= 0:
            os.eventfd_write(self.config_call, 1)


def _drained(fd: int) -> bool:
    try:
        return os.eventfd_read(fd) > 0
    except BlockingIOError:
        return False
