"""2.12.1.2, 2.12.1.3: devices whose capabilities or resource objects are wrong."""

from __future__ import annotations

from uvirtio.scripted import Rng, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.scripted.resources import Resources
from uvirtio.spec import features as f
from uvirtio.spec import pci
from uvirtio.spec.admin import AdminStatus, Opcode, Qualifier

from . import Mutants, around

CREATE, QUERY = Opcode.RESOURCE_OBJ_CREATE, Opcode.RESOURCE_OBJ_QUERY
MODIFY, DESTROY = Opcode.RESOURCE_OBJ_MODIFY, Opcode.RESOURCE_OBJ_DESTROY


def stores() -> ScriptedDevice:
    """An rng with objects for device parts, and an SR-IOV group without any."""
    admin = Resources()
    admin.reported[1] = frozenset({0, 1, 3})
    return ScriptedDevice(
        Rng(),
        address="scripted:rng",
        features=RING_FEATURES | f.mask(f.ADMIN_VQ),
        common_length=pci.COMMON_CFG_SIZE,
        admin=admin,
    )


MUTANTS = Mutants(stores)


def serves(device, instead):
    """Let it serve commands otherwise: ``instead`` is given the method, the opcode and the data."""
    around(
        device.admin,
        "serve",
        lambda before, opcode, *rest: instead(lambda: before(opcode, *rest), opcode, rest[2]),
    )


def answers(device, wanted, wrong, instead):
    """Let it answer some commands otherwise, where they would get the status ``wrong``."""
    serves(device, lambda go, opcode, body: instead if opcode in wanted and go()[0] == wrong else go())


NOTHING = (0, 0, b"")


# --- capabilities -----------------------------------------------------------------------------------------------


@MUTANTS.of("D-ACP-01")
def cannot_set(device):
    device.admin.reported[0] -= {Opcode.DRIVER_CAP_SET}


@MUTANTS.of("D-ACP-02")
def wants_all_or_nothing(device):
    def serve(go, opcode, body):
        if opcode == Opcode.DRIVER_CAP_SET and tuple(body[8:10]) not in ((0, 0), device.admin.limits):
            return AdminStatus.EINVAL, Qualifier.INVALID_FIELD, b""
        return go()

    serves(device, serve)


@MUTANTS.of("D-ACP-04")
def has_capabilities_for_members(device):
    device.admin.reported[1] |= {Opcode.CAP_ID_LIST_QUERY}


@MUTANTS.of("D-ACP-05")
def disables_what_is_in_use(device):
    answers(device, {Opcode.DRIVER_CAP_SET}, AdminStatus.EBUSY, NOTHING)


@MUTANTS.of("D-ACP-06")
def has_every_capability(device):
    answers(device, {Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET}, AdminStatus.ENXIO, (0, 0, bytes(8)))


@MUTANTS.of("D-ACP-07")
def keeps_limits_over_a_reset(device):
    def reset(before):
        allowed = device.admin.allowed
        before()
        device.admin.allowed = allowed

    around(device.admin, "reset", reset)


@MUTANTS.of("D-ACP-08")
def has_limits_of_its_own(device):
    around(device.admin, "reset", lambda before: (before(), setattr(device.admin, "allowed", (1, 0))))


# --- objects ----------------------------------------------------------------------------------------------------


@MUTANTS.of("D-AVQ-09")
def takes_the_newest_first(device):
    def fetch(before, queue):
        ring = device._may_run(queue)
        if queue < device.admin.first or ring is None:
            return before(queue)
        chains = ring.pop_all()
        for chain in reversed(chains):
            ring.push(chain, device.admin.handle(queue, chain) or 0)
        ring.ask_for_kicks()
        return len(chains)

    around(device, "fetch", fetch)


@MUTANTS.of("D-AOB-01")
def makes_it_twice(device):
    answers(device, {CREATE}, 17, NOTHING)


@MUTANTS.of("D-AOB-02")
def destroys_what_is_not_there(device):
    answers(device, {DESTROY}, AdminStatus.ENXIO, NOTHING)


@MUTANTS.of("D-AOB-03")
def has_room_for_more(device):
    answers(device, {CREATE}, AdminStatus.ENOSPC, NOTHING)


@MUTANTS.of("D-AOB-05")
def never_uses_an_id_again(device):
    made = []

    def serve(go, opcode, body):
        if opcode == CREATE:
            made.append(body[4:8])
            if made.count(body[4:8]) > 1:
                return AdminStatus.ENOSPC, Qualifier.NORESOURCE, b""
        return go()

    serves(device, serve)


@MUTANTS.of("D-AOB-06")
def wants_ids_in_order(device):
    def serve(go, opcode, body):
        if opcode == CREATE and int.from_bytes(body[4:8], "little") != len(device.admin.objects):
            return AdminStatus.EINVAL, Qualifier.INVALID_FIELD, b""
        return go()

    serves(device, serve)


@MUTANTS.of("D-AOB-07")
def has_room_for_two(device):
    def serve(go, opcode, body):
        if opcode == CREATE and len(device.admin.objects) == 2:
            return AdminStatus.ENOSPC, Qualifier.NORESOURCE, b""
        return go()

    serves(device, serve)


@MUTANTS.of("D-AOB-08")
def modifies_and_then_fails(device):
    def serve(go, opcode, body):
        done = go()
        if opcode == MODIFY and done[0] and device.admin.objects:
            device.admin.objects[0] = body[16:24]
        return done

    serves(device, serve)


@MUTANTS.of("D-AOB-09")
def forgets_modifications(device):
    made = {}

    def serve(go, opcode, body):
        done = go()
        if opcode == CREATE:
            made[body[4:8]] = body[16:24]
        return (0, 0, made[body[4:8]]) if opcode == QUERY and not done[0] else done

    serves(device, serve)


@MUTANTS.of("D-AOB-10")
def keeps_objects_over_a_reset(device):
    def reset(before):
        objects = dict(device.admin.objects)
        before()
        device.admin.objects = objects

    around(device.admin, "reset", reset)
