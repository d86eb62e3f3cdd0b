"""The file system device (5.11), and of the FUSE protocol that it carries what opens and ends a session.

Its messages are those of Linux's ``<linux/fuse.h>``, little-endian (5.11.6.1).
"""

from __future__ import annotations

from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 26
HIPRIO: Final = 0  # 5.11.2; a notification queue is between these two with NOTIFICATION
REQUESTQ: Final = 1

TAG_SIZE: Final = 36

CONFIG: Final[Layout] = (
    F("tag", 0, TAG_SIZE),
    F("num_request_queues", TAG_SIZE, 4),
)

FUSE_IN_HEADER: Final = Struct("<IIQQIIII")
"""struct fuse_in_header: len, opcode, unique, nodeid, uid, gid, pid, padding."""

FUSE_OUT_HEADER: Final = Struct("<IiQ")
"""struct fuse_out_header: len, error (0, or a negative errno), unique."""

FUSE_GETATTR: Final = 3
FUSE_INIT: Final = 26
FUSE_DESTROY: Final = 38

FUSE_ROOT_ID: Final = 1
"""The node of the root directory."""

FUSE_VERSION: Final = (7, 31)
"""The version that is asked for; a server answers with its own, at most of the same major number."""

FUSE_INIT_IN: Final = Struct("<IIII")
"""struct fuse_init_in up to 7.35: major, minor, max_readahead, flags."""

FUSE_INIT_OUT_SIZE: Final = 64

FUSE_GETATTR_IN: Final = Struct("<IIQ")
"""struct fuse_getattr_in: flags, padding, fh."""

FUSE_ATTR_OUT_SIZE: Final = 104
FUSE_ATTR_MODE: Final = 76
"""Byte of st_mode in struct fuse_attr_out: 16 bytes of validity, then ino, size, blocks and three times (8 each),
three parts of nanoseconds (4 each)."""
