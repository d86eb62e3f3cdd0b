"""The software under test: collects random bytes from a virtio entropy device, in small portions."""

from __future__ import annotations

import uvirtio

PORTION = 64  # bytes that the device is asked for at once


def collect(device: uvirtio.Device, count: int) -> bytes:
    """``count`` bytes from the device, none of them twice in the same portion's place."""
    collected = b""
    with uvirtio.Rng(device) as rng:
        while len(collected) < count:
            collected += rng.read(min(PORTION, count - len(collected)))
    return collected
