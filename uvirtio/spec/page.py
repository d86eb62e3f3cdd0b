"""The page of virtio: 4096 bytes, whatever the CPU's page size is.

Frame numbers (PFNs) count pages of this size: balloon pages (5.5.6) and queues of a legacy interface (4.1.5.1.3.1,
4.2.4).
"""

from __future__ import annotations

from uvirtio.typed import TYPE_CHECKING

if TYPE_CHECKING:
    from typing import Final


PFN_SHIFT: Final = 12
"""A PFN is a guest-physical address shifted right by this."""

VIRTIO_PAGE: Final = 1 << PFN_SHIFT
"""Bytes of a page."""
