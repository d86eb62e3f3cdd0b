"""What a back end says of itself, without a ring of it being started."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any, Final

from uvirtio.backends.vhost_user.address import Target, open_target
from uvirtio.backends.vhost_user.spec import ProtocolFeature
from uvirtio.host.roots import Roots
from uvirtio.spec import features as f

_END: Final = 0.2
"""Seconds in which a back end that ends with its front end has ended."""

_PAUSE: Final = 5e-3


@dataclass(frozen=True, slots=True)
class BackEndFacts:
    """What the first exchange with a back end tells."""

    address: str
    device_id: int
    peer: dict[str, Any]
    """The process behind the socket: ``pid uid gid command exe``."""
    offered: int
    """Its feature word, as it sends it."""
    features: int
    """The feature bits that a driver sees."""
    protocol_offered: int
    protocol_features: int
    """Mask of the ``ProtocolFeature`` bits that are used."""
    queues: int
    memory_slots: int | None
    """How many memory regions it takes; None: it does not say."""
    config: bytes
    from_back_end: bool
    """Whether ``config`` is its own, and not made of fields of the address."""
    ended: bool = False
    """Whether its process ended with the connection, as some do with each."""

    def as_dict(self) -> dict[str, Any]:
        """The facts for JSON, without those of the device type."""
        return {
            "interface": "vhost-user",
            "back_end": self.peer,
            "protocol_features": {
                "offered": self.protocol_offered,
                "names": protocol_names(self.protocol_offered),
                "used": protocol_names(self.protocol_features),
            },
            "queues": self.queues,
            "memory_slots": self.memory_slots,
            "configuration": {
                "length": len(self.config),
                "hex": self.config.hex(),
                "from": "back end" if self.from_back_end else "address" if self.config else None,
            },
            "ended": self.ended,
        }


def protocol_names(word: int) -> list[str]:
    """The names of protocol feature bits; a number for one that this front end does not know."""
    known = {bit.value: bit.name for bit in ProtocolFeature}
    return [known.get(number, str(number)) for number in f.bits(word)]


def look(target: Target, *, timeout: float, roots: Roots | None = None) -> BackEndFacts:
    """Connect to a back end, ask it what it is, and leave. The caller has checked the deny list.

    Args:
        target: The back end.
        timeout: Seconds for its start, and for each of its replies.
        roots: Where /proc is.

    Raises:
        UvirtioError: What ``open_target`` raises.
    """
    with open_target(target, timeout=timeout, roots=roots, slots=True) as node:
        peer = node.peer
        assert peer is not None
        length = node.get_config_size()
        facts = BackEndFacts(
            address=target.address,
            device_id=target.device_id,
            peer=peer.as_dict(),
            offered=node.offered,
            features=node.get_features(),
            protocol_offered=node.protocol_offered,
            protocol_features=node.protocol_features,
            queues=node.get_vqs_count(),
            memory_slots=node.memory_slots,
            config=node.get_config(0, length) if length else b"",
            from_back_end=node.config_from_back_end,
        )
    if target.command:  # one that was started here was ended here, too
        return facts
    deadline = time.monotonic() + _END
    while not peer.ended and time.monotonic() < deadline:
        time.sleep(_PAUSE)
    return replace(facts, ended=peer.ended)
