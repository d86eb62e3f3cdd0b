"""The page sizes of this machine's CPU and kernel, in which memory is mapped, pinned and looked up.

Virtio counts in pages of 4096 bytes on every machine instead (``spec/page``).
"""

from __future__ import annotations

import mmap

CPU_PAGE = mmap.PAGESIZE
"""Bytes of a page: 4096 on x86-64; 4096, 16,384 or 65,536 on arm64."""

HUGE_PAGE = 2 << 20
"""Bytes of a page of the kernel's pool of huge pages (``hugepages-2048kB``).

It may have others; this size exists on x86-64, and on arm64 with each of its page sizes.
"""
