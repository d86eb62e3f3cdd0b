"""The kernel's answers about vDPA devices, as bytes: good ones, and all the others."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest

from uvirtio.binding import vdpa_netlink
from uvirtio.binding.vdpa_netlink import VdpaDevice

FAMILY = 0x1D


def attribute(kind: int, data: bytes) -> bytes:
    text = struct.pack("=HH", 4 + len(data), kind) + data
    return text + bytes(-len(text) % 4)


def message(kind: int, body: bytes) -> bytes:
    text = struct.pack("=IHHII", 16 + len(body), kind, 0, 1, 0) + body
    return text + bytes(-len(text) % 4)


def generic(kind: int, *attributes: bytes) -> bytes:
    return message(kind, bytes(4) + b"".join(attributes))


FAMILY_ANSWER = generic(0x10, attribute(2, b"vdpa\0"), attribute(1, struct.pack("=H", FAMILY)))
DONE = message(3, bytes(4))
RNG = generic(
    FAMILY,
    attribute(1, b"pci\0"),
    attribute(2, b"0000:03:00.0\0"),
    attribute(4, b"vdpa0\0"),
    attribute(5, struct.pack("=I", 4)),
    attribute(7, struct.pack("=I", 1)),
    attribute(8, struct.pack("=H", 256)),
    attribute(99, b"from the future"),
)
BLK = generic(FAMILY, attribute(2, b"vduse\0"), attribute(4, b"vduse0\0"), attribute(5, struct.pack("=I", 2)))


def talk(*answers: list[bytes]):
    asked: list[bytes] = []

    def answer(request: bytes) -> Iterator[bytes]:
        asked.append(request)
        yield from answers[len(asked) - 1]
        raise TimeoutError("no more")

    return answer, asked


def test_two_devices_in_one_datagram_and_the_end_in_another():
    ask, asked = talk([FAMILY_ANSWER], [RNG + BLK, DONE])
    assert vdpa_netlink.devices(ask) == {
        "vdpa0": VdpaDevice("vdpa0", 4, "pci/0000:03:00.0", 1, 256),
        "vduse0": VdpaDevice("vduse0", 2, "vduse", None, None),
    }
    first, second = (struct.unpack_from("=IHHII", request) for request in asked)
    assert first[1] == 0x10 and b"vdpa\0" in asked[0]
    assert second[1] == FAMILY and second[2] == 0x301 and asked[1][16] == 5
    assert [len(request) for request in asked] == [first[0], second[0]]


@pytest.mark.parametrize(
    "answers",
    [
        ([message(2, struct.pack("=i", -2) + bytes(16))],),  # ENOENT: no such family
        ([],),
        ([b"\0" * 7],),
        ([generic(0x10, attribute(2, b"vdpa\0"))],),
        ([FAMILY_ANSWER], [message(2, struct.pack("=i", -1) + bytes(16))]),
        ([FAMILY_ANSWER], []),
        ([FAMILY_ANSWER], [struct.pack("=IHHII", 4, FAMILY, 0, 1, 0)]),
        ([FAMILY_ANSWER], [struct.pack("=IHHII", 4096, FAMILY, 0, 1, 0)]),
    ],
)
def test_anything_else_is_no_device(answers):
    ask, _ = talk(*answers)
    assert vdpa_netlink.devices(ask) == {}


@pytest.mark.parametrize(
    "cut",
    [
        struct.pack("=HH", 2, 5),
        struct.pack("=HH", 3, 5) + attribute(5, b"1234"),
        struct.pack("=HH", 400, 5),
        b"\x01",
    ],
)
def test_attributes_that_are_cut_end_the_message(cut):
    ask, _ = talk([FAMILY_ANSWER], [message(FAMILY, bytes(4) + attribute(4, b"x\0") + cut), DONE])
    assert vdpa_netlink.devices(ask) == {"x": VdpaDevice("x", None, None, None, None)}


def test_a_stream_without_an_end_is_left():
    def endless(request: bytes) -> Iterator[bytes]:
        if struct.unpack_from("=IHHII", request)[1] == 0x10:
            yield FAMILY_ANSWER
        while True:
            yield BLK

    assert list(vdpa_netlink.devices(endless)) == ["vduse0"]
