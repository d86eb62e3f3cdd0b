"""AES-128-CBC (FIPS 197, NIST SP 800-38A) for the scripted crypto device: short and slow, for a few blocks."""

from __future__ import annotations

from functools import cache

BLOCK = 16


def _times(first: int, second: int) -> int:
    """The product in GF(2^8) modulo x^8 + x^4 + x^3 + x + 1 (FIPS 197, 4.2)."""
    product = 0
    while second:
        product ^= first * (second & 1)
        first = first << 1 ^ (0x11B if first & 0x80 else 0)
        second >>= 1
    return product


@cache
def _substitutes() -> bytes:
    """The S-box (5.1.1): the inverse, and an affine transformation."""
    box = bytearray()
    for value in range(256):
        inverse = next((other for other in range(256) if _times(value, other) == 1), 0)
        turned = inverse
        for shift in range(1, 5):
            turned ^= (inverse << shift | inverse >> (8 - shift)) & 0xFF
        box.append(turned ^ 0x63)
    return bytes(box)


class Aes128:
    """One key."""

    def __init__(self, key: bytes) -> None:
        """Expand the key (5.2).

        Args:
            key: 16 bytes.
        """
        self._box = _substitutes()
        self._unbox = bytes(self._box.index(value) for value in range(256))
        words, constant = [key[place : place + 4] for place in range(0, BLOCK, 4)], 1
        while len(words) < 44:
            word = words[-1]
            if not len(words) % 4:
                word = bytes(self._box[value] for value in word[1:] + word[:1])
                word = bytes([word[0] ^ constant]) + word[1:]
                constant = _times(constant, 2)
            words.append(_mixed(word, words[-4]))
        self._keys = [b"".join(words[place : place + 4]) for place in range(0, 44, 4)]

    def _encrypt(self, block: bytes) -> bytes:
        state = _mixed(block, self._keys[0])
        for number, key in enumerate(self._keys[1:], 1):
            state = bytes(self._box[state[(5 * place) % BLOCK]] for place in range(BLOCK))
            state = _mixed(state if number == 10 else _columns(state, (2, 3, 1, 1)), key)
        return state

    def _decrypt(self, block: bytes) -> bytes:
        state = block
        for number, key in reversed([*enumerate(self._keys[1:], 1)]):
            state = _mixed(state, key)
            state = state if number == 10 else _columns(state, (14, 11, 13, 9))
            state = bytes(self._unbox[state[(13 * place) % BLOCK]] for place in range(BLOCK))
        return _mixed(state, self._keys[0])

    def cbc(self, data: bytes, iv: bytes, *, encrypt: bool) -> bytes:
        """Encrypt or decrypt whole blocks in CBC mode (SP 800-38A, 6.2).

        Args:
            data: The blocks.
            iv: The initialisation vector, 16 bytes.
            encrypt: Which of both.
        """
        made = b""
        for place in range(0, len(data), BLOCK):
            block = data[place : place + BLOCK]
            made += self._encrypt(_mixed(block, iv)) if encrypt else _mixed(self._decrypt(block), iv)
            iv = made[-BLOCK:] if encrypt else block
        return made


def _mixed(first: bytes, second: bytes) -> bytes:
    return bytes(one ^ other for one, other in zip(first, second, strict=True))


def _columns(state: bytes, factors: tuple[int, ...]) -> bytes:
    """MixColumns, or its inverse (5.1.3, 5.3.3)."""
    made = bytearray()
    for column in range(0, BLOCK, 4):
        for row in range(4):
            value = 0
            for place in range(4):
                value ^= _times(state[column + (row + place) % 4], factors[place])
            made.append(value)
    return bytes(made)
