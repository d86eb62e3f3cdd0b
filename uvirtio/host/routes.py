"""The kernel's main routing table, from ``/proc/net``."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator
from typing import NamedTuple

from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

Network = ipaddress.IPv4Network | ipaddress.IPv6Network


class Route(NamedTuple):
    """One route: packets for a network leave by an interface."""

    interface: str
    """The name of the interface, such as ``eth0``."""
    network: Network
    """The destination."""

    @property
    def default(self) -> bool:
        """Whether it is a default route."""
        return self.network.prefixlen == 0


def routes(roots: Roots) -> list[Route] | None:
    """Every IPv4 and IPv6 route through an interface; None where neither table can be read."""
    v4, v6 = sysfs.lines(roots.proc / "net/route"), sysfs.lines(roots.proc / "net/ipv6_route")
    if v4 is None and v6 is None:
        return None
    return [*_routes4(v4 or []), *_routes6(v6 or [])]


def _routes4(lines: list[str]) -> Iterator[Route]:
    # Words of a line: interface, destination, gateway, flags, ..., mask at 7; addresses as little-endian words.
    for line in lines[1:]:
        words = line.split()
        try:
            where = ipaddress.IPv4Address(bytes.fromhex(words[1])[::-1])
            mask = ipaddress.IPv4Address(bytes.fromhex(words[7])[::-1])
            yield Route(words[0], ipaddress.IPv4Network(f"{where}/{mask}", strict=False))
        except (ValueError, IndexError):
            continue


def _routes6(lines: list[str]) -> Iterator[Route]:
    # Destination, its prefix length in hexadecimal, ..., interface at 9. Rejecting routes are on lo.
    for line in lines:
        words = line.split()
        try:
            where = ipaddress.IPv6Address(bytes.fromhex(words[0]))
            if words[9] != "lo":
                yield Route(words[9], ipaddress.IPv6Network((where, int(words[1], 16)), strict=False))
        except (ValueError, IndexError):
            continue
