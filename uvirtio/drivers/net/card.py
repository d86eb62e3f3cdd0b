"""A network card apart from its frames: address, link, and what the control queue can set (5.1.4, 5.1.6.5)."""

from __future__ import annotations

import os
from collections.abc import Sequence
from operator import index
from typing import ClassVar

from uvirtio.drivers.base import Driver
from uvirtio.drivers.net import config as configuration
from uvirtio.drivers.net.config import NetConfig
from uvirtio.drivers.net.control import ControlQueue, mac_table
from uvirtio.drivers.net.frame import check_macs
from uvirtio.errors import ConfigError, NotSupported, UsageError
from uvirtio.spec import features as f
from uvirtio.spec import net as spec
from uvirtio.spec.net import Control, RxMode

_Net = f.Net

RECEIVE_OFFLOADS = f.mask(
    *(_Net.GUEST_CSUM, _Net.GUEST_TSO4, _Net.GUEST_TSO6, _Net.GUEST_ECN, _Net.GUEST_USO4, _Net.GUEST_USO6)
)
"""The offloads that ``set_offloads`` switches."""

_MTU_MIN = 68
"""The least MTU that a device may have (5.1.4.1)."""

_EXTRA = frozenset({RxMode.ALLUNI, RxMode.NOMULTI, RxMode.NOUNI, RxMode.NOBCAST})


class Card(Driver):
    """The part of ``Net`` that sends and receives no frames."""

    device_id: ClassVar[int] = spec.TYPE

    def _setup(self) -> None:
        """Begin a start; ``_config`` has been read, and the queues are there."""
        device = self.device
        self._control: ControlQueue | None = None
        if device.has(_Net.CTRL_VQ):
            self._control = ControlQueue(device, device.queues[self._control_index])
        # Read again when it is asked for: what changes before DRIVER_OK is not notified.
        self._config_seen = -1
        self._link_up = self._config.link
        self._local: bytes | None = None

    def _read(self) -> None:
        """Read the configuration, before the queues are set up."""
        self._config = self._read_config()
        # 5.1.2: behind all pairs that the device has, used or not; there is one where MQ is not negotiated.
        self._control_index = 2 * self._config.max_pairs if self.device.has(_Net.MQ) else spec.CONTROLQ

    def _read_config(self) -> NetConfig:
        found = configuration.read(self.device)
        if found.mtu is not None and found.mtu < _MTU_MIN:
            raise ConfigError(
                f"{self.device.address} has an impossible MTU",
                seen=found.mtu,
                expected=f"{_MTU_MIN} or more (5.1.4.1)",
                remedy="the device is at fault; without=['MTU'] (--without MTU) drives it all the same",
            )
        return found

    # --- what it is (5.1.4) ---------------------------------------------------------------------------------

    @property
    def config(self) -> NetConfig:
        """The configuration, read again if it may have changed.

        Raises:
            ConfigUnstable: It changes at every read.
        """
        with self.session():
            self.device.service()
            if self._config_seen != self.device.counters.config_changes:
                self._config_seen = self.device.counters.config_changes
                self._config = self._read_config()
            return self._config

    @property
    def mac(self) -> bytes:
        """The address of this side, 6 bytes: the device's, or a random one where it has none (5.1.4.2)."""
        if self._local is not None:
            return self._local
        if self._config.mac is None:
            first, *rest = os.urandom(spec.MAC_SIZE)
            self._local = bytes([first & 0xFC | 2, *rest])  # local, and of one station
            return self._local
        return self._config.mac

    @property
    def link(self) -> bool:
        """Whether the link is up, as the device says now; without STATUS it counts as up (5.1.4.2).

        Raises:
            ConfigUnstable: The configuration changes at every read.
        """
        return self._status() & spec.STATUS_LINK_UP != 0

    def _status(self) -> int:
        if not self.device.has(_Net.STATUS):
            return spec.STATUS_LINK_UP
        with self.session():
            status = self.device.read_config(configuration.FIELDS["status"])[0]
            self._link_up = bool(status & spec.STATUS_LINK_UP)
            return status

    def wait_for_link(self, up: bool = True, *, timeout: float | None = None) -> bool:
        """Wait until the link is up, or down.

        Args:
            up: What to wait for.
            timeout: Seconds to wait; None: no limit.

        Returns:
            Whether it came to that in time.
        """
        up = bool(up)
        with self.session():
            return self.device.wait(lambda: self.link is up, timeout=timeout, what="the link", owed=False)

    # --- the control queue (5.1.6.5) ------------------------------------------------------------------------

    def set_rx_mode(self, mode: RxMode, on: bool, *, timeout: float | None = None) -> None:
        """Set what is received whatever the tables say (5.1.6.5.1). After a reset QEMU is promiscuous.

        Args:
            mode: Which of the modes.
            on: Whether it is on.
            timeout: Seconds to wait for the answer; the device's own where None.

        Raises:
            NotSupported: CTRL_RX, or for some modes CTRL_RX_EXTRA, is not negotiated.
            NetRefused: The device says no.
            DeviceTimeout: It did not answer in time.
            ProtocolError: Its answer is none.
        """
        mode = RxMode(mode)
        self._need(_Net.CTRL_RX_EXTRA if mode in _EXTRA else _Net.CTRL_RX, f"set {mode.name}")
        self._command(Control.RX, mode, bytes([bool(on)]), what=f"set {mode.name}", timeout=timeout)

    def set_mac_table(
        self, unicast: Sequence[bytes] = (), multicast: Sequence[bytes] = (), *, timeout: float | None = None
    ) -> None:
        """Set the addresses that are received beside the card's own (5.1.6.5.2); they replace those before.

        Args:
            unicast: Addresses of stations, 6 bytes each.
            multicast: Addresses of groups.
            timeout: Seconds to wait for the answer; the device's own where None.

        Raises:
            UsageError: An address is not of its kind, or there are too many.
            NotSupported: CTRL_RX is not negotiated.
            NetRefused, DeviceTimeout, ProtocolError: As for ``set_rx_mode``.
        """
        check_macs(unicast, multicast=False)
        check_macs(multicast, multicast=True)
        self._need(_Net.CTRL_RX, "filter by address")
        tables = mac_table(unicast, multicast)
        self._command(Control.MAC, spec.MAC_TABLE_SET, *tables, what="set its addresses", timeout=timeout)

    def set_mac(self, mac: bytes, *, timeout: float | None = None) -> None:
        """Give the card another address. It lasts until the device is reset.

        Args:
            mac: 6 bytes, of one station.
            timeout: Seconds to wait for the answer; the device's own where None.

        Raises:
            UsageError: It is no such address.
            NotSupported: The device has an address that cannot be changed.
            NetRefused, DeviceTimeout, ProtocolError: As for ``set_rx_mode``.
        """
        check_macs([mac], multicast=False)
        device = self.device
        with self.session():
            if device.has(_Net.CTRL_MAC_ADDR):
                self._command(Control.MAC, spec.MAC_ADDR_SET, mac, what="change its address", timeout=timeout)
            elif device.transport.legacy and device.has(_Net.MAC):
                for at, byte in enumerate(mac):  # 5.1.6.5.2.3: from the first byte to the last
                    device.transport.write_config(configuration.FIELDS["mac"].offset + at, 1, byte)
            elif device.has(_Net.MAC):
                self._need(_Net.CTRL_MAC_ADDR, "change its address")
            self._local = bytes(mac)

    def add_vlan(self, vlan: int, *, timeout: float | None = None) -> None:
        """Let frames of a VLAN through (5.1.6.5.3).

        Args:
            vlan: Its number, 0 to 4095.
            timeout: Seconds to wait for the answer; the device's own where None.

        Raises:
            UsageError: There is no such VLAN.
            NotSupported: CTRL_VLAN is not negotiated: give ``vlans=True``.
            NetRefused, DeviceTimeout, ProtocolError: As for ``set_rx_mode``.
        """
        self._vlan(spec.VLAN_ADD, vlan, timeout)

    def remove_vlan(self, vlan: int, *, timeout: float | None = None) -> None:
        """Drop frames of a VLAN again; the counterpart of ``add_vlan``, with the same arguments and errors."""
        self._vlan(spec.VLAN_DEL, vlan, timeout)

    def _vlan(self, command: int, vlan: int, timeout: float | None) -> None:
        vlan = index(vlan)
        if not 0 <= vlan < spec.VLANS:
            raise UsageError("there is no such VLAN", seen=vlan, expected=f"0..{spec.VLANS - 1}")
        self._need(_Net.CTRL_VLAN, "filter VLANs")
        self._command(Control.VLAN, command, le16(vlan), what=f"change VLAN {vlan}", timeout=timeout)

    def set_offloads(self, features: int, *, timeout: float | None = None) -> None:
        """Choose which of the negotiated receive offloads are in use (5.1.6.5.9); after the start all are.

        Args:
            features: A mask of feature bits: GUEST_CSUM, GUEST_TSO4 and so on.
            timeout: Seconds to wait for the answer; the device's own where None.

        Raises:
            UsageError: A bit is no receive offload, or was not negotiated.
            NotSupported: CTRL_GUEST_OFFLOADS is not negotiated.
            NetRefused, DeviceTimeout, ProtocolError: As for ``set_rx_mode``.
        """
        features, allowed = index(features), RECEIVE_OFFLOADS & self.device.features
        if features & ~allowed:
            names = ", ".join(bit.name for bit in f.names("net", features & ~allowed))
            raise UsageError(
                "this is no receive offload that was negotiated",
                seen=names,
                expected=", ".join(bit.name for bit in f.names("net", allowed)) or "none at all",
            )
        self._need(_Net.CTRL_GUEST_OFFLOADS, "change its offloads")
        data = features.to_bytes(8, "little")
        self._command(
            Control.GUEST_OFFLOADS, spec.GUEST_OFFLOADS_SET, data, what="change its offloads", timeout=timeout
        )

    @property
    def announcement_wanted(self) -> bool:
        """Whether the device asks for an announcement, as after a migration (5.1.6.5.4)."""
        return self.device.has(_Net.GUEST_ANNOUNCE) and bool(self._status() & spec.STATUS_ANNOUNCE)

    def _need(self, bit: int, what: str) -> None:
        if not self.device.has(bit):
            name = _Net(bit).name
            option = {_Net.CTRL_VLAN: "vlans=True", _Net.CTRL_GUEST_OFFLOADS: "offloads=True"}.get(_Net(bit))
            offered = f.has(self.device.offered, bit)
            raise NotSupported(
                f"{self.device.address} cannot {what}",
                seen=f"{name} is offered, and was not accepted" if offered else f"{name} is not offered",
                expected=f"{name} (5.1.3)",
                remedy=f"start the driver with {option}" if option and offered else "the device has to offer it",
            )

    def _command(self, kind: Control, command: int, *data: bytes, what: str, timeout: float | None = None) -> None:
        assert self._control is not None  # every bit that is checked before needs CTRL_VQ (5.1.3.1)
        with self.session(timeout):
            seconds = self.device.seconds(timeout)
            self._control.send(kind, command, *data, what=what, timeout=seconds)


def le16(value: int) -> bytes:
    """A number of 16 bits as the data of a command."""
    return value.to_bytes(2, "little")
