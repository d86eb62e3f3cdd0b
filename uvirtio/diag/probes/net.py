"""The data path of a network card (5.1): two questions are sent, and the answers are looked at."""

from __future__ import annotations

from ipaddress import IPv4Address

from uvirtio.device import Device, Observer
from uvirtio.diag.probes.outcome import Around, Idle, PathResult
from uvirtio.drivers.net import Net, RxMode
from uvirtio.drivers.net.ping import arp_request, arp_told
from uvirtio.errors import NetRefused
from uvirtio.spec import features as f


class NetPath(Idle):
    """Sends two ARP requests through a network card, and looks for answers."""

    _WHO = IPv4Address("10.0.2.2")
    """The station of QEMU's own network. Elsewhere a probe for it (RFC 5227) claims no address for us."""
    _PATIENCE = 0.5
    """Seconds to wait for an answer where nothing says that there is one."""

    def __init__(self, device: Device, around: Around) -> None:
        """Take over the device; ``start`` brings it up.

        Args:
            device: An open network device.
            around: What stands around it.
        """
        self._device = device
        self._witness = around.witness
        self._ident = around.ident

    def start(self, observe: Observer) -> None:
        """Bring the device up with its driver."""
        self._net = Net(self._device, observe=observe)
        self._net.rely_on_interrupts()

    def exercise(self) -> PathResult:
        """Send frames until they are used, receive what is answered, and give a command."""
        net, device = self._net, self._device
        if not net.link:
            return PathResult("the link is down: no frame was sent", skipped=True)
        request = arp_request(net.mac, None, self._WHO)
        answers = 0
        for _ in range(2):  # the second one needs a kick that the device asks for
            net.send([request])
            # A network owes nothing; but a card whose link is up and whose other side reads has to use frames.
            device.wait(lambda: net.idle, timeout=device.timeout, what="the frame to be used")
            answers += self._answered()
        about = f"2 ARP requests sent, {answers} answered, {net.counts.received} frames received"
        odd = [*net.findings, *net.dropped]
        if not answers and self._is_supplied():
            odd.append(f"QEMU's own network did not answer for {self._WHO}")
        try:
            if device.has(f.Net.CTRL_RX):
                net.set_rx_mode(RxMode.PROMISC, True)
                about += "; a command acknowledged"
        except NetRefused as error:
            odd.append(f"{error.message}: {error.seen}")
        return PathResult(about, "; ".join(odd))

    def _answered(self) -> bool:
        patience = self._device.timeout if self._is_supplied() else min(self._PATIENCE, self._device.timeout)
        deadline = self._device.clock.monotonic() + patience
        while (left := deadline - self._device.clock.monotonic()) > 0:
            if any(arp_told(bytes(frame), self._WHO) for frame in self._net.receive(timeout=left)):
                return True
        return False

    def _is_supplied(self) -> bool:
        """Whether the card is in QEMU's own network, which was supplied for it."""
        if self._witness is None:
            return False
        netdev = self._witness("qom-get", path=f"/machine/peripheral/{self._ident}", property="netdev")
        return bool(netdev == f"{self._ident}-net")

    def change_configuration(self) -> PathResult | None:
        """Have the host take the link down, and up again."""
        if self._witness is None or not self._device.has(f.Net.STATUS):
            return None
        device, net = self._device, self._net
        before, seen = net.link, device.counters.config_changes
        self._witness("set_link", name=self._ident, up=not before)
        told = device.wait(
            lambda: device.counters.config_changes != seen, timeout=device.timeout, what="the change", owed=False
        )
        after = net.link
        self._witness("set_link", name=self._ident, up=before)
        words = {True: "up", False: "down"}
        detail = f"the host changed the link from {words[before]} to {words[after]}"
        if after == before:
            return PathResult(detail, "the host's change does not show in the configuration")
        return PathResult(detail, "" if told else "the configuration changed without a notification (4.1.5.4)")
