"""Who came over the network: the far end of the SSH session that we run in, and the interface towards it."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterator

from uvirtio.host import sysfs
from uvirtio.host.roots import Roots

_GENERATIONS = 64
"""Ancestors that are asked at most: sudo drops SSH_CONNECTION, the shell before it has it."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def peers(roots: Roots) -> list[Address]:
    """The far ends named by SSH_CONNECTION (sshd(8)) of this process and of those that started it."""
    found: dict[Address, None] = {}
    process = "self"
    for _ in range(_GENERATIONS):
        directory = roots.proc / process
        for setting in (sysfs.read(directory / "environ", 1 << 20) or "").split("\0"):
            if setting.startswith("SSH_CONNECTION="):
                address = _address(setting.partition("=")[2].partition(" ")[0])
                if address is not None:
                    found[address] = None
        parent = re.search(r"^PPid:\s*(\d+)$", sysfs.read(directory / "status", 1 << 16) or "", re.MULTILINE)
        if parent is None or parent[1] == "0":
            break
        process = parent[1]
    return list(found)


def interface_to(address: Address, roots: Roots) -> str | None:
    """The interface of the longest route to ``address`` in the main table; None where there is none."""
    routes = _routes4(roots) if address.version == 4 else _routes6(roots)
    best = max(
        (route for route in routes if address in route[0]), key=lambda route: route[0].prefixlen, default=None
    )
    return None if best is None else best[1]


Route = tuple[ipaddress.IPv4Network | ipaddress.IPv6Network, str]


def _routes4(roots: Roots) -> Iterator[Route]:
    # Words of a line: interface, destination, gateway, flags, ..., mask at 7; addresses as little-endian words.
    for line in (sysfs.lines(roots.proc / "net/route") or [])[1:]:
        words = line.split()
        try:
            where = ipaddress.IPv4Address(bytes.fromhex(words[1])[::-1])
            mask = ipaddress.IPv4Address(bytes.fromhex(words[7])[::-1])
            yield ipaddress.IPv4Network(f"{where}/{mask}", strict=False), words[0]
        except (ValueError, IndexError):
            continue


def _routes6(roots: Roots) -> Iterator[Route]:
    # Destination, its prefix length in hexadecimal, ..., interface at 9. Rejecting routes are on lo.
    for line in sysfs.lines(roots.proc / "net/ipv6_route") or []:
        words = line.split()
        try:
            where = ipaddress.IPv6Address(bytes.fromhex(words[0]))
            if words[9] != "lo":
                yield ipaddress.IPv6Network((where, int(words[1], 16)), strict=False), words[9]
        except (ValueError, IndexError):
            continue


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text.partition("%")[0])
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
