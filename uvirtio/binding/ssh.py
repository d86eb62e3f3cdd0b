"""The peer of the SSH session that this process runs in, and the network interface towards it."""

from __future__ import annotations

import ipaddress

from uvirtio.host import process
from uvirtio.host.roots import Roots
from uvirtio.host.routes import routes

_GENERATIONS = 64
"""The most ancestor processes to search: sudo drops SSH_CONNECTION, the shell before it has it."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def peers(roots: Roots) -> list[Address]:
    """The peer addresses in SSH_CONNECTION (sshd(8)) of this process and of its ancestors."""
    found: dict[Address, None] = {}
    pid: process.Pid | None = "self"
    for _ in range(_GENERATIONS):
        if pid is None:
            break
        for setting in process.environment(pid, roots):
            if setting.startswith("SSH_CONNECTION="):
                address = _address(setting.partition("=")[2].partition(" ")[0])
                if address is not None:
                    found[address] = None
        pid = process.parent(pid, roots)
    return list(found)


def interface_to(address: Address, roots: Roots) -> str | None:
    """The interface of the longest route to ``address`` in the main table; None where there is none."""
    fitting = [route for route in routes(roots) or [] if address in route.network]
    best = max(fitting, key=lambda route: route.network.prefixlen, default=None)
    return None if best is None else best.interface


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
