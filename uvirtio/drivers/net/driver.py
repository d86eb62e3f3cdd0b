"""The network driver (5.1): frames in and out, the link, and what the control queue can set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from operator import index
from typing import ClassVar

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.base import integer
from uvirtio.drivers.net import config as configuration
from uvirtio.drivers.net.card import RECEIVE_OFFLOADS, Card, le16
from uvirtio.drivers.net.frame import WHOLE, Frame, FrameData, check_macs, mac_text
from uvirtio.drivers.net.receive import Layout, Receiver
from uvirtio.drivers.net.transmit import Transmitter
from uvirtio.errors import BadFrame, BadSize, NetStalled, UsageError
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec.net import Control

_Net = f.Net

_BASE = f.mask(
    *(_Net.MAC, _Net.STATUS, _Net.MTU, _Net.SPEED_DUPLEX, _Net.MRG_RXBUF),
    *(_Net.CTRL_VQ, _Net.CTRL_RX, _Net.CTRL_RX_EXTRA, _Net.CTRL_MAC_ADDR),
)
_OFFLOADS = RECEIVE_OFFLOADS | f.mask(
    *(_Net.CSUM, _Net.HOST_TSO4, _Net.HOST_TSO6, _Net.HOST_ECN, _Net.HOST_USO, _Net.CTRL_GUEST_OFFLOADS)
)
_CONTROLLED = f.mask(
    *(_Net.CTRL_VQ, _Net.CTRL_RX, _Net.CTRL_RX_EXTRA, _Net.CTRL_MAC_ADDR, _Net.CTRL_VLAN),
    *(_Net.GUEST_ANNOUNCE, _Net.CTRL_GUEST_OFFLOADS),
)

_LOOK = 0.01
"""Seconds between two looks at what the device has to tell while frames are sent without a wait."""


@dataclass(frozen=True, slots=True)
class NetCounts:
    """Frames and bytes since the start, without headers (5.1.6) and checksums at the end (FCS)."""

    sent: int
    """Frames that the device was given; whether the other side took them is not known."""
    sent_bytes: int
    received: int
    received_bytes: int
    dropped: int
    """Frames that came and could not be used; ``Net.dropped`` has the reasons."""


class Net(Card):
    """Driver of a network card (5.1): sends and receives Ethernet frames.

    The receive queues are always full of buffers; frames are taken out during the calls that receive. What comes
    between two calls waits with the device, which drops what is too much. A frame that is sent was accepted
    by the device, no more: nothing says that the other side has read it. While the link is down none is accepted.

    Checksums and segmentation are left to neither side unless ``offloads`` is given: each frame is then complete,
    as it would be on a cable.
    """

    features: ClassVar[int] = _BASE

    def __init__(
        self,
        device: Device,
        *,
        pairs: int = 1,
        mac: bytes | None = None,
        max_frame: int | None = None,
        offloads: bool = False,
        vlans: bool = False,
        announcements: bool = False,
        observe: Observer = unobserved,
    ) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open network device.
            pairs: Pairs of queues to use, if the device has as many (MQ).
            mac: The address to have, 6 bytes; None: the device's, or a random one where it has none.
            max_frame: Bytes of the longest frame to send, where the device tells no MTU; None: 1518.
            offloads: Accept the offloads of checksums and segmentation: frames may then come, and be sent,
                incomplete, as their ``header`` says.
            vlans: Accept the filter of VLANs; the device then drops tagged frames until ``add_vlan`` (5.1.6.5.3).
            announcements: Accept that the device asks for announcements (``announce``).
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``pairs`` is below 1, or ``mac`` is no address of one station.
            BadSize: ``max_frame`` is no length of a frame.
            ConfigError: The number of queue pairs or the MTU cannot be.
            NetRefused: The device refuses the pairs of queues, or the address.
            NotSupported: It cannot be given an address.
        """
        pairs, max_frame = index(pairs), integer(max_frame)
        if pairs < 1:
            raise UsageError("a network card has at least one pair of queues", seen=pairs, expected="1 or more")
        if mac is not None:
            check_macs([mac], multicast=False)
        if max_frame is not None and not spec.ETHERNET_HEADER <= max_frame <= spec.FRAME_MAX:
            expected = f"{spec.ETHERNET_HEADER}..{spec.FRAME_MAX} bytes"
            raise BadSize("no frame has this length", seen=max_frame, expected=expected)
        self._pairs_wanted, self._max_frame = pairs, max_frame
        self._options = (
            f.mask(_Net.MQ) * (pairs > 1)
            | _OFFLOADS * offloads
            | f.mask(_Net.CTRL_VLAN) * vlans
            | f.mask(_Net.GUEST_ANNOUNCE) * announcements
        )
        super().__init__(device, observe=observe)
        try:
            with self.session():
                self._begin(mac)
        except BaseException:
            self.close()
            raise

    # --- bring-up -------------------------------------------------------------------------------------------

    def _wanted(self) -> int:
        wanted = _BASE | self._options
        length = self.device.transport.config_length
        wanted &= ~configuration.beyond(length)
        if not length or self._is_back_end:
            # A back end alone has no control queue, whatever it offers: that is served by the virtual machine
            # monitor in front of it (vhost-user).
            wanted &= ~_CONTROLLED
        return wanted

    @property
    def _is_back_end(self) -> bool:
        return self.device.transport.kind == "vhost-user"

    def _dependencies(self) -> Iterable[f.Needs]:
        merged = (_Net.GUEST_TSO4, _Net.GUEST_TSO6, _Net.GUEST_USO4, _Net.GUEST_USO6)
        return [
            *f.dependencies("net"),
            # Without MRG_RXBUF each buffer would need 64 KiB (5.1.6.3.1).
            *(f.Needs(bit, (_Net.MRG_RXBUF,)) for bit in merged),
            # Slots that keep their place, which order rules out, are several times as fast.
            f.Needs(f.IN_ORDER, ()),
            # The request for an announcement is a bit of the status.
            f.Needs(_Net.GUEST_ANNOUNCE, (_Net.STATUS,)),
        ]

    def _queues(self) -> Sequence[QueueSpec]:
        device = self.device
        self._read()
        most = device.transport.num_queues // 2 if self._is_back_end else self._config.max_pairs
        self._pairs = min(self._pairs_wanted, max(1, most))
        found = []
        for pair in range(self._pairs):
            found.append(QueueSpec(2 * pair + spec.RECEIVEQ, f"receiveq{pair + 1}"))
            found.append(QueueSpec(2 * pair + spec.TRANSMITQ, f"transmitq{pair + 1}"))
        if device.has(_Net.CTRL_VQ):
            found.append(QueueSpec(self._control_index, "controlq", size=64))
        return found

    def _before_ok(self) -> None:
        self._setup()
        device, mtu = self.device, self._config.mtu
        merged = device.has(_Net.MRG_RXBUF)
        short = device.transport.legacy and not merged  # 5.1.6.1
        layout = Layout(
            header=spec.HEADER_SIZE_SHORT if short else spec.HEADER_SIZE,
            merged=merged,
            apart=device.transport.legacy and not device.has(f.ANY_LAYOUT),
            offloads=device.has(_Net.GUEST_CSUM),
        )
        tagged = spec.ETHERNET_HEADER + spec.VLAN_TAG
        longest = tagged + (spec.MTU_DEFAULT if mtu is None else mtu)
        if mtu is None and self._max_frame is not None:
            longest = self._max_frame
        cut = device.features & f.mask(_Net.HOST_TSO4, _Net.HOST_TSO6, _Net.HOST_USO)
        self._receivers: list[Receiver] = []
        self._transmitters: list[Transmitter] = []
        for pair in range(self._pairs):
            queues = device.queues[2 * pair], device.queues[2 * pair + 1]
            self._receivers.append(Receiver(device, queues[0], layout, longest, self._finding))
            self._transmitters.append(
                Transmitter(device, queues[1], layout, longest=spec.FRAME_MAX if cut else longest, mtu=mtu)
            )
        self._changes_sent = -1  # the link as it was before DRIVER_OK is no measure
        self._look_at = 0.0

    def _begin(self, mac: bytes | None) -> None:
        """What comes after DRIVER_OK: buffers for the device, and commands."""
        for receiver in self._receivers:
            receiver.post()
        for transmitter in self._transmitters:
            transmitter.quiet()
        if self._pairs > 1 and self._control is not None:  # a back end uses each queue that is enabled
            # 5.1.6.5.6.1: after the queues are set up, and before any but the first pair is used.
            self._command(Control.MQ, spec.MQ_VQ_PAIRS_SET, le16(self._pairs), what="use several pairs of queues")
        if mac is not None and mac != self._config.mac:
            self.set_mac(mac)

    def _about(self) -> str:
        counts = self.counts
        return f"{mac_text(self.mac)}, {counts.sent} frames sent, {counts.received} received"

    # --- what it counts ---------------------------------------------------------------------------------------

    @property
    def pairs(self) -> int:
        """Pairs of queues in use."""
        return self._pairs

    @property
    def max_frame(self) -> int:
        """Bytes of the longest frame that can be sent, without the checksum at its end."""
        return self._transmitters[0].longest

    @property
    def dropped(self) -> Counter[str]:
        """Frames that came and could not be used: how often, by the reason. The texts are for people."""
        return sum((one.dropped for one in self._receivers), Counter())

    @property
    def counts(self) -> NetCounts:
        """Frames and bytes since the start."""
        return NetCounts(
            sent=sum(one.frames for one in self._transmitters),
            sent_bytes=sum(one.bytes for one in self._transmitters),
            received=sum(one.frames for one in self._receivers),
            received_bytes=sum(one.bytes for one in self._receivers),
            dropped=self.dropped.total(),
        )

    # --- receiving (5.1.6.4) --------------------------------------------------------------------------------

    def take(self) -> list[bytes]:
        """Take the frames that have come, without waiting: the fast way, without their headers.

        With ``offloads`` use ``take_frames``: a header may say that its frame is not complete.

        Returns:
            The frames, whole, in the order of each queue; maybe none.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        with self.session():
            if self._pairs == 1:
                return self._receivers[0].take_frames()
            return [frame for receiver in self._receivers for frame in receiver.take_frames()]

    def receive(self, *, timeout: float | None = None) -> list[Frame]:
        """Return all frames that have come, in the order of each queue; wait for the first one.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            The frames; empty if none came in time, which is no error.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        found: list[Frame] = []

        def ready() -> bool:
            found.extend(self.take_frames())
            return bool(found)

        self._wait_for_frames(ready, timeout)
        return found

    def take_frames(self) -> list[Frame]:
        """Take the frames that have come, with their headers, without waiting.

        Returns:
            The frames, in the order of each queue; maybe none.

        Raises:
            RingCorruption: The used ring holds what cannot be.
        """
        # Of what was not negotiated nothing is believed: the frame counts as whole.
        header = None if self.device.has(_Net.GUEST_CSUM) else WHOLE
        with self.session():
            return [
                Frame.received(raw, receiver.header, header)
                for receiver in self._receivers
                for raw in receiver.take()
            ]

    def wait(self, *, timeout: float | None = None) -> bool:
        """Wait until something has come, and leave it to ``take``.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            Whether something came in time; what it is may turn out to be no frame.
        """
        return self._wait_for_frames(self.waits, timeout)

    def waits(self) -> bool:
        """Whether something has come and is not taken yet."""
        with self.session():
            return any(receiver.waits() for receiver in self._receivers)

    def rely_on_interrupts(self) -> None:
        """Leave the interrupts of the receive queues on, also while nothing waits: to see whether they come."""
        with self.session():
            for receiver in self._receivers:
                receiver.always = True
                receiver.listen(True)

    def _wait_for_frames(
        self, ready: Callable[[], bool], timeout: float | None, watch: Sequence[int] = ()
    ) -> bool:
        """``Device.wait`` with the interrupts of the receive queues, which are suppressed otherwise."""
        with self.session():
            for receiver in self._receivers:
                receiver.listen(True)
            try:
                return self.device.wait(ready, timeout=timeout, what="a frame", owed=False, watch=watch)
            finally:
                for receiver in self._receivers:
                    receiver.listen(False)

    def frames(self, *, timeout: float | None = None) -> Iterator[Frame]:
        """Iterate over frames; ends after ``timeout`` seconds without one (None: never)."""
        while found := self.receive(timeout=timeout):
            yield from found

    # --- sending (5.1.6.2) ----------------------------------------------------------------------------------

    def send(self, frames: Sequence[FrameData | Frame], *, pair: int = 0) -> int:
        """Send as many frames as there is room for, without waiting; none while the link is down.

        Args:
            frames: Whole frames, from the destination address on, without the checksum at the end; or ``Frame``
                objects with a header. They are copied.
            pair: The pair of queues to use, from 0.

        Returns:
            How many the device was given, from the first on.

        Raises:
            BadFrame: A frame is shorter than 14 bytes or longer than ``max_frame``, or its header asks for what
                was not negotiated. Nothing was sent.
            UsageError: There is no such pair.
            RingCorruption: The used ring holds what cannot be.
        """
        queue = self._transmitter(pair)
        queue.check(frames)
        with self.session():
            return self._send(queue, frames)

    def can_send(self, frame: FrameData | Frame) -> bool:
        """Whether ``send`` takes a frame: its length, and what its header asks for."""
        try:
            self._transmitters[0].check([frame])
        except BadFrame:
            return False
        return True

    def _send(self, queue: Transmitter, frames: Sequence[FrameData | Frame]) -> int:
        """Send what there is room for; nothing while the link is known to be down.

        A device drops frames then. QEMU (7.2 and 10.0, packed rings) even needs a reset afterwards. Linux does not
        send then either.
        """
        now, counters = self.device.clock.monotonic(), self.device.counters
        if now >= self._look_at:
            self._look_at = now + _LOOK
            self.device.service()
        if counters.config_changes != self._changes_sent:
            self._changes_sent = counters.config_changes
            self._status()
        return queue.send(frames) if self._link_up else 0

    def send_all(
        self, frames: Sequence[FrameData | Frame], *, timeout: float | None = None, pair: int = 0
    ) -> None:
        """Send frames, and wait for room, or for the link.

        Args:
            frames: As for ``send``.
            timeout: Seconds in all; the device's own where None.
            pair: The pair of queues to use, from 0.

        Raises:
            BadFrame: As for ``send``; nothing was sent.
            NetStalled: There was no room in time: the other side does not read, or the link is down. ``sent``
                frames were given to the device, which works on.
            UsageError: There is no such pair.
            RingCorruption: The used ring holds what cannot be.
        """
        queue = self._transmitter(pair)
        queue.check(frames)
        with self.session(timeout):
            sent = self._send(queue, frames)
            if sent == len(frames):
                return
            seconds = self.device.seconds(None)
            rest = list(frames[sent:])

            def ready() -> bool:
                nonlocal sent, rest
                done = self._send(queue, rest)
                sent, rest = sent + done, rest[done:]
                return not rest

            if not queue.wait(ready, seconds, "room for frames"):
                raise self._stalled(
                    f"took {sent} of {len(frames)} frames within {self.device.given(seconds):g} s", queue, sent
                )

    def flush(self, *, timeout: float | None = None) -> None:
        """Wait until the device has used all frames that were sent: it has then handed them on or dropped them.

        Args:
            timeout: Seconds to wait; the device's own where None.

        Raises:
            NetStalled: It has not in time; the frames stay with it.
            RingCorruption: The used ring holds what cannot be.
        """
        seconds = self.device.seconds(timeout)
        with self.session(seconds):
            for queue in self._transmitters:
                if not queue.wait(partial(_idle, queue), self.device.seconds(None), "the frames to be used"):
                    raise self._stalled(f"has not used all frames within {seconds:g} s", queue, 0)

    def _stalled(self, what: str, queue: Transmitter, sent: int) -> NetStalled:
        return NetStalled(
            f"{self.device.address} {what}",
            seen=f"{queue.out} frames with the device, link {'up' if self.link else 'down'}",
            expected="frames that are used (5.1.6.2)",
            remedy="see whether the other side of the link reads; the device can be used on",
            sent=sent,
        )

    @property
    def idle(self) -> bool:
        """Whether the device has used all frames that it was given, as far as can be seen now."""
        with self.session():
            return all(map(_idle, self._transmitters))

    @property
    def out(self) -> int:
        """Frames that the device was given and has not used."""
        return sum(one.out for one in self._transmitters)

    def _transmitter(self, pair: int) -> Transmitter:
        pair = index(pair)
        if not 0 <= pair < self._pairs:
            raise UsageError("there is no such pair of queues", seen=pair, expected=f"0..{self._pairs - 1}")
        return self._transmitters[pair]

    def announce(self, *, timeout: float | None = None) -> None:
        """Announce this card's address to the switches of its network, and tell the device so (5.1.6.5.4).

        One broadcast frame (RARP, RFC 903) is sent, whose sender they note. Where the device does not ask for it,
        the frame alone is sent.

        Args:
            timeout: Seconds in all; None: the device's own for each of both.

        Raises:
            NetStalled: There is no room for the frame.
            NetRefused, DeviceTimeout, ProtocolError: As for ``set_rx_mode``.
        """
        with self.session(timeout):
            self.send_all([rarp(self.mac)])
            if self.announcement_wanted:
                self._command(Control.ANNOUNCE, spec.ANNOUNCE_ACK, what="note the announcement")


def _idle(queue: Transmitter) -> bool:
    queue.reap()
    return not queue.out


def rarp(mac: bytes) -> bytes:
    """A broadcast frame by which switches learn where an address is: a RARP request for itself, as QEMU sends.

    Args:
        mac: The address, 6 bytes.
    """
    request = b"\x00\x01\x08\x00\x06\x04\x00\x03" + mac + bytes(4) + mac + bytes(4)
    return (spec.BROADCAST + mac + b"\x80\x35" + request).ljust(spec.FRAME_MIN, b"\0")
