"""Changes to inputs: bits, bytes, words, pieces, tokens, numbers in text, and pieces many times over."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from random import Random

_BYTES = (0, 1, 2, 3, 4, 7, 8, 0x0A, 0x20, 0x22, 0x2F, 0x3A, 0x7F, 0x80, 0xFE, 0xFF)
_WORDS = (
    0,
    1,
    2,
    0x7F,
    0x80,
    0xFF,
    0x100,
    0x7FFF,
    0x8000,
    0xFFFF,
    0x10000,
    0x10003,
    0x7FFF_FFFF,
    0x8000_0000,
    0xFFFF_FFFE,
    0xFFFF_FFFF,
    1 << 32,
    (1 << 63) - 1,
    1 << 63,
    (1 << 64) - 1,
)
_TEXTS = (
    b"0",
    b"-1",
    b"1",
    b"255",
    b"256",
    b"65536",
    b"4294967296",
    b"18446744073709551616",
    b"1e400",
    b"1e-400",
    b"-0",
    b"0x",
    b"0x1",
    b"1_0",
    b"NaN",
    b"Infinity",
    b"null",
    b"true",
    b"\xd9\xa3",
    b"9" * 25,
)
_DIGITS = re.compile(rb"[0-9]+")

Change = Callable[[Random, bytes, Sequence[bytes], Sequence[bytes]], bytes]


def _place(rng: Random, data: bytes) -> int:
    return int(rng.random() * (len(data) + 1))


def _bit(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    if not data:
        return b"\0"
    at = int(rng.random() * len(data))
    return data[:at] + bytes([data[at] ^ 1 << int(rng.random() * 8)]) + data[at + 1 :]


def _byte(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    value = rng.choice(_BYTES) if rng.random() < 0.5 else int(rng.random() * 256)
    return data[:at] + bytes([value]) + data[at + 1 :]


def _near(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    if not data:
        return data
    at = int(rng.random() * len(data))
    return data[:at] + bytes([(data[at] + rng.choice((-2, -1, 1, 2, 16))) & 0xFF]) + data[at + 1 :]


def _word(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at, width = _place(rng, data), rng.choice((2, 4, 8))
    value = rng.choice(_WORDS) & (1 << 8 * width) - 1
    return data[:at] + value.to_bytes(width, rng.choice(("little", "little", "big"))) + data[at + width :]


def _cut(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + data[at + 1 + int(rng.random() ** 3 * 64) :]


def _end(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    return data[: _place(rng, data)]


def _insert(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at = _place(rng, data)
    return data[:at] + rng.randbytes(1 + int(rng.random() ** 3 * 16)) + data[at:]


def _again(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    at, to = _place(rng, data), _place(rng, data)
    return data[:to] + data[at : at + 1 + int(rng.random() ** 3 * 64)] + data[to:]


def _token(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    if not tokens:
        return _insert(rng, data, pool, tokens)
    at, token = _place(rng, data), rng.choice(tokens)
    return data[:at] + token + data[at + (len(token) if rng.random() < 0.5 else 0) :]


def _digits(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    found = list(_DIGITS.finditer(data))
    if not found:
        return _word(rng, data, pool, tokens)
    one = rng.choice(found)
    return data[: one.start()] + rng.choice(_TEXTS) + data[one.end() :]


def _splice(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other = rng.choice(pool) if pool else data
    return data[: _place(rng, data)] + other[_place(rng, other) :]


def _graft(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    other = rng.choice(pool) if pool else data
    at, start = _place(rng, data), _place(rng, other)
    return data[:at] + other[start : start + 1 + int(rng.random() ** 2 * 64)] + data[at:]


def _many(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes]) -> bytes:
    """A short piece very often: what nests, and what is counted."""
    at = _place(rng, data)
    piece = rng.choice(tokens) if tokens and rng.random() < 0.5 else data[at : at + rng.choice((1, 1, 2, 4))]
    return data[:at] + piece * (1 << int(rng.random() * 13)) + data[at:]


CHANGES: tuple[Change, ...] = (
    _bit,
    _bit,
    _byte,
    _byte,
    _near,
    _word,
    _word,
    _cut,
    _cut,
    _end,
    _insert,
    _again,
    _token,
    _token,
    _digits,
    _splice,
    _graft,
)
_SELDOM = 1 / 256


def mutated(rng: Random, data: bytes, pool: Sequence[bytes], tokens: Sequence[bytes], most: int) -> bytes:
    """A changed input of at most ``most`` bytes.

    Args:
        rng: Decides everything.
        data: The input to change.
        pool: Others, to take pieces from.
        tokens: Pieces that inputs of this target are made of.
        most: Bytes of the result.
    """
    if rng.random() < _SELDOM:
        return _many(rng, data, pool, tokens)[:most]
    for _ in range(1 + int(rng.random() ** 2 * 5)):
        data = CHANGES[int(rng.random() * len(CHANGES))](rng, data, pool, tokens)
    return data[:most]
