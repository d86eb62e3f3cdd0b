"""What vhost-user does not tell of a device type: how long its configuration is, and how many queues it has."""

from __future__ import annotations

from typing import Final

CONFIG_LENGTHS: Final[dict[int, tuple[int, ...]]] = {
    1: (8, 10, 12, 17, 24),  # net, 5.1.4
    2: (36, 60, 72, 96),  # blk, 5.2.4: up to num_queues, write zeroes, secure erase, zoned
    3: (8, 12),  # console, 5.3.4
    8: (36,),  # scsi, 5.6.4
    16: (16,),  # gpu, 5.7.4
    18: (136,),  # input, 5.8.4
    19: (8,),  # vsock, 5.10.4
    20: (48, 56),  # crypto, 5.9.4
    25: (12, 16),  # sound, 5.14.4
    26: (40, 44),  # fs, 5.11.4
}
"""Lengths that the configuration of a device type has had, ascending, in bytes; by device ID."""

QUEUES: Final[dict[int, int]] = {
    1: 2,  # receiveq1, transmitq1
    3: 2,
    8: 3,  # controlq, eventq, one request queue
    16: 2,
    18: 2,
    19: 3,
    20: 2,
    25: 4,
    26: 2,  # hiprio, one request queue
}
"""Queues of a back end without VHOST_USER_PROTOCOL_F_MQ, by device ID; 1 for all others."""
