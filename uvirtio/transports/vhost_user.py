"""Virtio over vhost-user: what its messages mean (not a transport of the standard; chapters 2 and 3 apply).

It is the control path of vDPA, by messages to another process, with these differences: addresses are those of the
memory that both processes share, guest-physical ones; the end of the other process is an event, because kicks and
calls do not show it; and the back end says that the configuration has changed, or nothing does.
"""

from __future__ import annotations

from collections.abc import Container, Sequence

from uvirtio.interfaces.runtime import USED, Causes
from uvirtio.interfaces.values import InterruptMode, Trace
from uvirtio.spec import features as f
from uvirtio.transports.vdpa import PACKED_BASE, Vdpa
from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from uvirtio.interfaces.backend import VhostUserNode
    from uvirtio.interfaces.memory import Event

_CAUSES = {
    (False, False): Causes(),
    (False, True): USED,
    (True, False): Causes(config=True),
    (True, True): Causes(config=True, queues=True),
}
"""All that there can be; making one costs as much as taking an event."""


class VhostUser(Vdpa):
    """A ``Transport`` over a vhost-user back end."""

    kind = "vhost-user"
    features_allowed = f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX, f.RING_PACKED, f.IN_ORDER)

    def __init__(self, node: VhostUserNode, *, trace: Trace | None = None) -> None:
        """Take over a node, and read what the device is; parameters and errors as for ``Vdpa``.

        Args:
            node: The node; ``close()`` closes it.
            trace: Called with a line for each operation; None: no trace.
        """
        super().__init__(node, trace=trace)
        self._back_end = node

    @property
    def interface(self) -> str:
        """One line for people: queues and configuration."""
        return f"vhost-user, {self.num_queues} queues, {self.config_length} bytes of configuration"

    @property
    def translates(self) -> bool:
        """Return False: there is no IOMMU."""
        return False

    # --- queues (2.6, 3.1.1) --------------------------------------------------------------------------------

    def _set_base(self, index: int) -> None:
        """Say where a ring begins; no reset has told the back end so."""
        self._back_end.set_vring_base(index, PACKED_BASE if self._packed else 0)

    def _connect_queue(self, index: int, kick: int) -> None:
        """Hand over the eventfds of a queue, the call first: the kick starts the ring."""
        # A call even where nothing waits for it: few back ends have been tried without one.
        call = self._calls[index] = self._calls.get(index) or self._call(f"queue {index}")
        self._back_end.set_vring_call(index, call.fileno())
        self._back_end.set_vring_kick(index, kick)

    def release_queues(self) -> None:
        """Close the doorbells and the calls, after the device has been reset: no ring uses them any more."""
        self._close_queues()

    # --- interrupts (2.3, 2.9) ------------------------------------------------------------------------------

    def _try_mode(self, mode: InterruptMode, queues: Sequence[int]) -> str | None:
        if mode is InterruptMode.POLLING:
            return None
        if mode is not InterruptMode.PER_QUEUE:
            return "vhost-user gives each queue a call of its own"
        self._calls = {
            index: self._call(f"queue {index}") for index in queues
        }  # handed over when the queue is enabled
        return None

    def events(self) -> Sequence[Event]:
        """Return the hang-up, the change of the configuration, and the calls; no calls while polling."""
        control = self._control()
        return control if self._mode is InterruptMode.POLLING else [*control, *self._calls.values()]

    def _control(self) -> list[Event]:
        node = self._back_end
        return [node.removal] if node.config_changes is None else [node.removal, node.config_changes]

    def causes(self, fired: Container[int] | None = None) -> Causes:
        """Take what is pending; see ``Transport``.

        Raises:
            DeviceGone: The back end has hung up.
        """
        config = called = False
        for event in self._control():  # the hang-up is the first, and its take() fails
            if (fired is None or event.fileno() in fired) and event.take():
                config = True
        # A call may come without a cause (some back ends send one at the start): the ring is checked all the same.
        if self._mode is not InterruptMode.POLLING:
            for event in self._calls.values():
                if (fired is None or event.fileno() in fired) and event.take():
                    called = True
        return _CAUSES[config, called]
