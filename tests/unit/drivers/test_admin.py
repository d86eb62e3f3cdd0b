"""The administration queue (2.12, 2.13), on a scripted device: there is no other that has one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from uvirtio import opening
from uvirtio.device import ADMIN_QUEUE, Device, QueueSpec
from uvirtio.drivers.admin import KNOWN, Admin
from uvirtio.errors import AdminFailed, NotSupported, UsageError
from uvirtio.scripted.admin import REPORTED, AdminModel
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.admin import Opcode, Qualifier, qualifier_of, status_of

WORDS = {
    "split": f.mask(f.VERSION_1, f.INDIRECT_DESC, f.EVENT_IDX, f.ADMIN_VQ),
    "packed": f.mask(f.VERSION_1, f.RING_PACKED, f.ADMIN_VQ),
}
every_word = pytest.mark.parametrize("word", WORDS.values(), ids=WORDS.keys())


@contextmanager
def administered(
    model: AdminModel, word: int = WORDS["split"], *, extra: tuple[int, ...] = (7, 8), **how: Any
) -> Iterator[tuple[ScriptedDevice, Admin]]:
    scripted = ScriptedDevice(Rng(), features=word, admin=model, common_length=pci.COMMON_CFG_SIZE, **how)
    model.device = scripted
    device: Device = opening.identify(scripted.address, scripted, timeout=1)
    with device:
        device.start(wanted=0, queues=[QueueSpec(0, "requestq", size=8)], admin=True)
        yield scripted, Admin(device, extra=extra)
    scripted.assert_left()


@pytest.mark.spec("ADM-01", "ADM-02", "ADM-03", "ADM-04", "ADM-05", "ADM-10", "ADM-11", "ADM-12")
@every_word
def test_lists_come_first_and_only_what_is_known_is_switched_on(word: int):
    model = AdminModel()
    with administered(model, word) as (_, admin):
        with pytest.raises(UsageError):
            admin.command(7)
        assert not model.commands, "no command before LIST_USE"
        assert admin.query() == REPORTED
        assert admin.use() == {0, 1, 7, 8}
        assert model.used[0] == {0, 1, 7, 8}
        assert admin.command(7, b"abc", member=5, room=16) == bytes(range(1, 17))
        for opcode in (9, 63, 2):
            with pytest.raises(UsageError):
                admin.command(opcode)
        assert [command[0] for command in model.commands] == [Opcode.LIST_QUERY, Opcode.LIST_USE, 7]
        assert model.commands[-1] == (7, 0, 5, b"abc" + bytes(5))


@pytest.mark.spec("ADM-03", "ADM-05")
def test_each_group_has_a_list_of_its_own():
    model = AdminModel({0: frozenset({0, 1, 7}), 1: frozenset({0, 1, 2})})
    with administered(model, extra=(2, 7)) as (_, admin):
        assert admin.use(1) == {0, 1, 2}
        with pytest.raises(UsageError):
            admin.command(7)
        assert admin.use(0) == {0, 1, 7}
        assert admin.command(2, group=1, member=1, room=8) == bytes(range(1, 9))


def test_without_more_to_know_two_commands_are_known():
    with administered(AdminModel(), extra=()) as (_, admin):
        assert admin.use() == KNOWN == {0, 1}


@pytest.mark.spec("ADM-06", "ADM-07")
@pytest.mark.parametrize(
    ("status", "qualifier", "names"),
    [
        (22, 4, ("EINVAL", "INVALID_GROUP")),
        (99, 0x40, ("EINVAL", "INVALID_COMMAND")),
        (0xFFFF, 0xFFFF, ("EINVAL", "INVALID_COMMAND")),
        (16, 6, ("EBUSY", "NORESOURCE")),
    ],
)
def test_an_error_is_named_and_a_strange_one_counts_as_what_it_must(
    status: int, qualifier: int, names: tuple[str, str]
):
    model = AdminModel()
    with administered(model) as (scripted, admin):
        model.answers.append((status, qualifier))
        with pytest.raises(AdminFailed) as caught:
            admin.query()
        assert caught.value.seen == ", ".join(names)
        assert (status_of(status).name, qualifier_of(qualifier).name) == names
        assert admin.query() == REPORTED, "the device is not broken by it"
        assert not scripted.violations


def test_every_qualifier_keeps_its_name():
    assert [qualifier_of(one) for one in range(8)] == list(Qualifier)


@pytest.mark.spec("ADM-16")
def test_eagain_is_tried_again_and_not_for_ever():
    model = AdminModel()
    with administered(model) as (_, admin):
        model.answers.extend([(11, 7)] * 3)
        assert admin.query() == REPORTED
        assert [command[0] for command in model.commands] == [0] * 4
        admin.use()
        model.answers.extend([(11, 7)] * 1000)
        with pytest.raises(AdminFailed, match="EAGAIN"):
            admin.command(7, timeout=0.1)
        assert len(model.answers) > 900


@pytest.mark.spec("ADM-13", "ADM-14")
@every_word
def test_what_the_device_leaves_unwritten_is_zero(word: int):
    model = AdminModel()
    model.junk = b"\xee" * 64
    with administered(model, word) as (_, admin):
        admin.use()
        for length, expected in ((8, bytes(16)), (11, bytes([1, 2, 3]) + bytes(13)), (24, bytes(range(1, 17)))):
            model.short = length
            assert admin.command(7, room=16) == expected


def test_an_answer_without_even_a_status_is_read_as_zeros():
    model = AdminModel()
    with administered(model) as (_, admin):
        admin.use()
        model.short = 0
        assert admin.command(7, room=4) == bytes(4)


@pytest.mark.spec("ADM-15", "PCI-COM-08")
def test_of_several_queues_one_is_used_and_its_commands_keep_their_order():
    model = AdminModel(queue_sizes=(16, 16, 16))
    with administered(model) as (scripted, admin):
        admin.use()
        for _ in range(20):
            admin.command(7)
        assert model.queues == {1}, "the first behind the device's own"
        assert [queue.enable for queue in scripted.queues] == [1, 1, 0, 0]
        selected = scripted.writes("common", pci.COMMON_QUEUE_SELECT)
        assert set(selected) <= {0, 1}
        assert admin.device.queues[1].name == ADMIN_QUEUE
        assert admin.device.transport.num_queues == 1


def test_where_it_is_not_offered_or_not_asked_for_there_is_none():
    for word, asked in ((f.mask(f.VERSION_1), True), (WORDS["split"], False)):
        model = AdminModel()
        scripted = ScriptedDevice(Rng(), features=word, admin=model, common_length=pci.COMMON_CFG_SIZE)
        model.device = scripted
        with opening.identify(scripted.address, scripted, timeout=1) as device:
            device.start(wanted=0, queues=[QueueSpec(0, "requestq", size=8)], admin=asked)
            assert not device.has(f.ADMIN_VQ) and list(device.queues) == [0]
            with pytest.raises(NotSupported):
                Admin(device)
        scripted.assert_left()


def test_a_command_that_is_too_long_is_refused():
    model = AdminModel()
    with administered(model) as (_, admin):
        admin.use()
        sent = len(model.commands)
        for data, room in ((bytes(5000), 0), (b"", 5000)):
            with pytest.raises(UsageError):
                admin.command(7, data, room=room)
        assert len(model.commands) == sent
