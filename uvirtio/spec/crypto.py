"""The crypto device (5.9), as far as sessions of symmetric ciphers go. Offsets, widths and sizes in bytes."""

from __future__ import annotations

from enum import IntEnum
from struct import Struct
from typing import Final

from uvirtio.spec.layout import Field as F
from uvirtio.spec.layout import Layout

TYPE: Final = 20

DATAQ: Final = 0  # the first of max_dataqueues; the control queue is behind all of them (5.9.2)

# Configuration (5.9.4).
CONFIG: Final[Layout] = (
    F("status", 0, 4),
    F("max_dataqueues", 4, 4),
    F("crypto_services", 8, 4),
    F("cipher_algo_l", 12, 4),
    F("cipher_algo_h", 16, 4),
    F("hash_algo", 20, 4),
    F("mac_algo_l", 24, 4),
    F("mac_algo_h", 28, 4),
    F("aead_algo", 32, 4),
    F("max_cipher_key_len", 36, 4),
    F("max_auth_key_len", 40, 4),
    F("akcipher_algo", 44, 4),
    F("max_size", 48, 8),
)
HW_READY: Final = 1
"""The bit of ``status``."""
SERVICE_CIPHER: Final = 1 << 0
CIPHER_AES_CBC: Final = 3


class Opcode(IntEnum):
    """Of both queues, for ciphers (5.9.7.2.1, 5.9.7.4)."""

    ENCRYPT = 0x0000
    DECRYPT = 0x0001
    CREATE_SESSION = 0x0002
    DESTROY_SESSION = 0x0003


class Status(IntEnum):
    """How a request ended (5.9.6)."""

    OK = 0
    ERR = 1
    BADMSG = 2
    NOTSUPP = 3
    INVSESS = 4
    NOSPC = 5
    KEY_REJECTED = 6


OP_ENCRYPT: Final = 1
"""``op`` of a session that encrypts (5.9.7.2.1)."""
OP_DECRYPT: Final = 2
SYM_CIPHER: Final = 1
"""``op_type``: a cipher alone."""

CREATE: Final = Struct("<IIII IIII32x II")
"""The head of a control request (opcode, algo, flag, queue_id), 48 bytes of parameters (algo, key length, op,
padding), op_type, padding."""
SESSION: Final = Struct("<QII")
"""The answer: session_id, status, padding."""
DESTROY: Final = Struct("<IIIIQ48x")
"""The head of a control request, session_id, padding."""
DATA: Final = Struct("<IIQII IIII24x II")
"""The head of a data request (opcode, algo, session_id, flag, padding), 40 bytes of parameters (iv_len, src_len,
dst_len, padding), op_type, padding."""
