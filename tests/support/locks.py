"""Whether another thread can have the lock of a device."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any


def is_free(device: Any, seconds: float) -> bool:
    """Whether another thread gets the device's lock within so many seconds; it gives it back."""

    def take() -> bool:
        got: bool = device._lock.acquire(timeout=seconds)
        if got:
            device._lock.release()
        return got

    with ThreadPoolExecutor(1) as other:
        return other.submit(take).result()
