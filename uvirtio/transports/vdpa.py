"""Virtio over vDPA: what the ioctls of vhost-vdpa mean (not a transport of the standard; chapters 2 and 3 apply).

The kernel stands between: it reads the configuration as one, keeps the status, and connects kicks and calls to
eventfds. Queues are enabled before DRIVER_OK, which every device accepts. There is no interrupt status: each
queue has a call of its own, and so has the configuration. Where calls are not delivered, the device is polled,
and a change of the configuration is found by comparing it.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from contextlib import ExitStack, suppress

from uvirtio.errors import (
    ConfigError,
    DeviceFailure,
    NotSupported,
    NotVirtio,
    QueueError,
    UvirtioError,
)
from uvirtio.interfaces.runtime import Causes, QueueLayout, WatchesEvents
from uvirtio.interfaces.values import InterruptMode, Trace
from uvirtio.memory.clock import clock_of
from uvirtio.memory.eventfd import EventFd, EventFdDoorbell
from uvirtio.memory.trace import TracedDoorbell
from uvirtio.spec import features as f
from uvirtio.spec import ids, status
from uvirtio.transports.base import TransportBase
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import VdpaNode, VhostUserNode
    from uvirtio.interfaces.memory import Doorbell, Event

PACKED_BASE = 0x8000_8000
"""Start of a new packed ring: index 0 and wrap counter 1, in the low half for available, in the high for used."""

_UNBIND = -1
_QUEUES_MAX = 65536
_WATCHED = 64
"""Bytes that are compared. What a host changes at run time is within them for all types (5.2.4, 5.5.4, 5.15.4)."""

_LOOK = 10e-3
"""Seconds between two reads of the configuration where its changes are not signalled."""


class Vdpa(TransportBase):
    """A ``Transport`` over a vhost-vdpa node."""

    kind = "vdpa"
    legacy = False
    features_allowed = f.mask(
        f.VERSION_1, f.ACCESS_PLATFORM, f.INDIRECT_DESC, f.EVENT_IDX, f.RING_PACKED, f.IN_ORDER
    )
    quirks: Sequence[str] = ()

    def __init__(self, node: VdpaNode | VhostUserNode, *, trace: Trace | None = None) -> None:
        """Take over a node, and read what the device is.

        Args:
            node: The node; ``close()`` closes it.
            trace: Called with a line for each operation; None: no trace.

        Raises:
            NotVirtio: The device ID is 0.
            DeviceFailure: The device reports an impossible number of queues.
            DeviceGone: The parent device does not respond.
            NotSupported: The kernel lacks an ioctl.
            OperationFailed: The kernel refused.
        """
        super().__init__(node, trace=trace)
        self._node = node
        self._clock = clock_of(self)
        self._config_call: Event | None = None
        self._calls: dict[int, Event] = {}
        self._doorbells: dict[int, EventFdDoorbell] = {}
        self._enabled: set[int] = set()
        self._seen = b""
        self._next_look = 0.0
        self._packed = False
        self.device_id = node.get_device_id()
        if self.device_id == 0:
            raise NotVirtio(
                f"{node.address} is not a virtio device", seen="device id 0", expected="an id of chapter 5"
            )
        self.config_length = node.get_config_size()
        self.num_queues = node.get_vqs_count()
        if self.num_queues > _QUEUES_MAX:
            raise DeviceFailure(
                f"{node.address} reports more queues than virtio allows",
                seen=self.num_queues,
                expected=f"at most {_QUEUES_MAX}",
            )
        self._size_max = node.get_vring_num()

    # --- identity -------------------------------------------------------------------------------------------

    @property
    def interface(self) -> str:
        """One line for people: queues and configuration."""
        return f"vDPA, {self.num_queues} queues, {self.config_length} bytes of configuration"

    @property
    def translates(self) -> bool:
        """Return True: the kernel translates IOVAs."""
        return True

    @property
    def backend(self) -> VdpaNode | VhostUserNode:
        """The back end's object."""
        return self._node

    def _tell(self, text: str) -> None:
        if self._trace is not None:
            self._trace(text)

    def _tell_status(self, text: str, value: int) -> None:
        if self._trace is not None:
            self._trace(f"{text} {value:#x} ({'|'.join(status.names(value)) or 'reset'})")

    def _tell_features(self, text: str, features: int) -> None:
        if self._trace is not None:
            from uvirtio.transports.register_names import feature_bits  # only where there is a trace

            self._trace(f"{text} {features:#x} ({feature_bits(ids.type_name(self.device_id), features)})")

    def _tell_config(self, offset: int, access: str, value: int) -> None:
        if self._trace is not None:
            from uvirtio.transports.register_names import ConfigNames

            name, _ = ConfigNames(ids.type_name(self.device_id)).told(offset, 0, value, written=False)
            self._trace(f"config+{offset:#04x} {name + ' ' if name else ''}{access} {value:#x}")

    # --- features and status (2.1, 2.2) ---------------------------------------------------------------------

    def device_features(self) -> int:
        """Return the offered features, 64 or 128 bits."""
        features = self._node.get_features()
        self._tell_features("get_features ->", features)
        return features

    def set_driver_features(self, features: int) -> None:
        """Write the accepted features."""
        self._node.set_features(features)
        self._packed = bool(features >> f.RING_PACKED & 1)
        self._tell_features("set_features <-", features)

    def status(self) -> int:
        """Return the device status (2.1)."""
        value = self._node.get_status()
        self._tell_status("get_status ->", value)
        return value

    def set_status(self, value: int) -> None:
        """Write the device status (2.1); 0 resets the device."""
        if not value:
            self._seen = b""  # what a reset changes, such as a MAC address that was set, is no news
        self._node.set_status(value)
        self._tell_status("set_status <-", value)

    # --- device configuration (2.5) -------------------------------------------------------------------------

    def generation(self) -> int | None:
        """Return None: the kernel does not pass it on. Related fields are read until two readings agree."""
        return None

    def _check_config(self, offset: int, width: int) -> None:
        if offset + width > self.config_length:
            raise self._beyond_config(offset + width, self.config_length)

    def read_config(self, offset: int, width: int) -> int:
        """Read one field of the device configuration; see ``Transport``."""
        self._check_config(offset, width)
        data = self._node.get_config(offset, width)
        if len(data) != width:
            raise ConfigError(
                f"{self._node.address} returned only a part of its configuration",
                seen=f"{len(data)} bytes",
                expected=f"{width} bytes at offset {offset:#x}",
            )
        value = int.from_bytes(data, "little")
        self._tell_config(offset, f"read{width * 8} ->", value)
        return value

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Write one field of the device configuration; see ``Transport``."""
        self._check_config(offset, width)
        data = value.to_bytes(width, "little")
        self._node.set_config(offset, data)
        self._tell_config(offset, f"write{width * 8} <-", value)
        if self._seen:  # what the driver changes itself is no news
            self._seen = (self._seen[:offset] + data + self._seen[offset + width :])[: len(self._seen)]

    # --- queues (2.6, 3.1.1) --------------------------------------------------------------------------------

    def queue_layout(self, index: int) -> QueueLayout:
        """Return what is known of a queue before memory is allocated for it."""
        if index >= self.num_queues:
            return QueueLayout(size_max=0)
        own = self._node.get_vring_size(index)
        # The size of one queue, where it is reported, may be smaller than the one for all, and 0: no such queue.
        return QueueLayout(size_max=self._size_max if own is None else min(own, self._size_max))

    def enable_queue(self, index: int, size: int, desc: int, driver: int, device: int) -> Doorbell:
        """Set up and enable a queue; see ``Transport``."""
        if index in self._enabled:
            raise QueueError(f"queue {index} is already enabled", seen=1, expected="a queue after a reset")
        node = self._node
        doorbell = self._doorbells[index] = self._bell(f"queue {index}")
        node.set_vring_num(index, size)
        self._set_base(index)
        node.set_vring_addr(index, desc, driver, device)
        self._connect_queue(index, doorbell.fileno())
        node.set_vring_enable(index, True)
        self._enabled.add(index)
        self._tell(f"queue {index}: {size} entries at {desc:#x}, {driver:#x}, {device:#x}, enabled")
        return doorbell if self._trace is None else TracedDoorbell(doorbell, index, "its eventfd", self._trace)

    def _set_base(self, index: int) -> None:
        """Say where a ring begins; the reset has set the base of a split one to 0 already."""
        if self._packed:
            self._node.set_vring_base(index, PACKED_BASE)

    def _connect_queue(self, index: int, kick: int) -> None:
        """Hand over the eventfds of a queue."""
        self._node.set_vring_kick(index, kick)
        if index in self._calls:
            self._node.set_vring_call(index, self._calls[index].fileno())

    # --- interrupts (2.3, 2.9) ------------------------------------------------------------------------------

    def connect_interrupts(self, queues: Sequence[int], modes: Sequence[InterruptMode]) -> InterruptMode:
        """Enable the first of ``modes`` that works; see ``Transport``.

        Raises:
            NotSupported: None of them works, or the parent device has no vector at all.
        """
        if self._node.calls == 0:
            # vp_vdpa requests the configuration's vector even if no call is set, and without it ignores DRIVER_OK
            # with a kernel warning. So this is refused here.
            raise NotSupported(
                f"{self._node.address} cannot be started: its parent driver always needs a vector",
                seen=f"no MSI-X; {self._node.description}",
                expected="at least one MSI-X vector, for the configuration",
                remedy="use a function that has MSI-X (the balloon of QEMU 10 has), or bind it to vfio-pci",
            )
        return super().connect_interrupts(queues, modes)

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        have = self._node.calls
        if mode is InterruptMode.POLLING:
            self._seen = self._look()
            return None
        if mode is not InterruptMode.PER_QUEUE:
            return "vhost-vdpa gives each queue a call of its own"
        if have is not None and have < len(queues) + 1:
            return f"the parent device has {have} vectors for {len(queues)} queues and the configuration"
        self._config_call = self._call("configuration")
        self._node.set_config_call(self._config_call.fileno())
        for index in queues:  # handed over when the queue is enabled
            self._calls[index] = self._call(f"queue {index}")
        return None

    def _bell(self, name: str) -> EventFdDoorbell:
        """A doorbell for the node, which the node may watch."""
        doorbell = EventFdDoorbell()
        if isinstance(self._node, WatchesEvents):
            doorbell = self._node.watched_doorbell(name, doorbell)
        return doorbell

    def _call(self, name: str) -> Event:
        """An eventfd for the node, which the node may watch."""
        event = EventFd()
        return self._node.watched_event(name, event) if isinstance(self._node, WatchesEvents) else event

    def _disconnect(self) -> None:
        calls, self._calls = self._calls, {}
        config, self._config_call = self._config_call, None
        self._mode = InterruptMode.POLLING
        self._seen = b""
        with ExitStack() as stack:
            for event in calls.values():
                stack.callback(event.close)
            if config is not None:
                stack.callback(config.close)
                self._quietly_unbind()

    def _quietly_unbind(self) -> None:
        try:
            self._node.set_config_call(_UNBIND)
        except UvirtioError:
            pass  # the node is closed next, or the device was removed: no more calls come

    def events(self) -> Sequence[Event]:
        """Return the calls of the configuration and the queues; empty while polling."""
        if self._config_call is None:
            return []
        return [self._config_call, *self._calls.values()]

    def causes(self, fired: Container[int] | None = None) -> Causes:
        """Take the calls that are pending; see ``Transport``. While polling, compare the configuration."""
        if self._config_call is None:
            return Causes(config=self._config_changed())
        config = self._config_call.take()
        # A call may come without a cause (VDUSE sends one at the start): the ring is checked all the same.
        taken = [event.take() for event in self._calls.values()]
        return Causes(config=config, queues=any(taken))

    def _look(self) -> bytes:
        length = min(self.config_length, _WATCHED)
        return self._node.get_config(0, length) if length else b""

    def _config_changed(self) -> bool:
        """Without calls: whether the configuration differs from the one read before, if there is one."""
        now = self._clock.monotonic()
        if now < self._next_look:
            return False
        self._next_look = now + _LOOK
        before, self._seen = self._seen, self._look()
        return bool(before) and before != self._seen

    # --- the rest -------------------------------------------------------------------------------------------

    def dma_enable(self, on: bool) -> None:
        """Do nothing: the parent driver controls bus mastering."""

    def function_reset(self) -> bool:
        """Return False: vhost-vdpa has no reset but status 0."""
        return False

    def release_queues(self) -> None:
        """Close the doorbells and the calls, after the device has been reset.

        The kernel keeps an eventfd until it gets another or the node is closed; one that only the kernel still has
        does no harm.
        """
        try:
            for index in self._enabled:
                self._node.set_vring_kick(index, _UNBIND)
                self._node.set_vring_call(index, _UNBIND)
        finally:
            self._close_queues()

    def _close_queues(self) -> None:
        """Close the doorbells and the calls on this side."""
        self._enabled.clear()
        doorbells, self._doorbells = self._doorbells, {}
        for doorbell in doorbells.values():
            doorbell.close()
        self._disconnect()

    def _let_go(self) -> None:
        with suppress(UvirtioError):  # the node is closed next, and that takes them away
            self.release_queues()
