"""Capabilities and resource objects behind a scripted administration queue (2.12.1.2, 2.12.1.3).

The one capability is that of device parts (2.12.1.4): how many objects there may be to get parts, and to set them.
What objects are good for, getting and setting, is not here.
"""

from __future__ import annotations

import struct

from uvirtio.scripted.admin import AdminModel, Answered, refused
from uvirtio.spec.admin import AdminStatus, Opcode, Qualifier

PARTS_CAP = 0
PARTS_OBJECT = 0
EEXIST = 17
"""A status that the text names and the table of 2.12.1 has no number for; this is Linux's."""

OPCODES = frozenset(range(Opcode.CAP_ID_LIST_QUERY, Opcode.RESOURCE_OBJ_DESTROY + 1)) | {0, 1}


class Resources(AdminModel):
    """``limits``: objects of type get and of type set that there may be."""

    def __init__(self, limits: tuple[int, int] = (4, 2)) -> None:
        super().__init__({0: OPCODES})
        self.limits = limits
        self.allowed = (0, 0)
        """The limits that the driver set."""
        self.objects: dict[int, bytes] = {}
        """What each object was given last, by id."""

    def reset(self) -> None:
        """Forget the driver's limits and all objects, too."""
        super().reset()
        self.allowed = (0, 0)
        self.objects.clear()

    def serve(self, opcode: int, group: int, member: int, body: bytes) -> Answered:
        """Answer a command about capabilities or objects."""
        if opcode == Opcode.CAP_ID_LIST_QUERY:
            return 0, 0, (1 << PARTS_CAP).to_bytes(8, "little")
        if opcode in (Opcode.DEVICE_CAP_GET, Opcode.DRIVER_CAP_SET):
            return self._capability(opcode, body)
        return self._object(opcode, body)

    def _capability(self, opcode: int, body: bytes) -> Answered:
        [ident] = struct.unpack_from("<H", body)
        if ident != PARTS_CAP:
            return AdminStatus.ENXIO, Qualifier.INVALID_FIELD, b""
        if opcode == Opcode.DEVICE_CAP_GET:
            return 0, 0, bytes(self.limits).ljust(8, b"\0")
        allowed = body[8], body[9]
        below = all(mine <= limit for mine, limit in zip(allowed, self.limits, strict=True))
        self.device.check("ADM-C02", below, f"limits {allowed} of {self.limits}")
        self.device.check("ADM-R06", not self.objects, "a capability was set though it has objects")
        if not below:
            return refused(Qualifier.INVALID_FIELD)
        if self.objects and not all(allowed):
            return AdminStatus.EBUSY, Qualifier.INVALID_COMMAND, b""
        self.allowed = allowed
        return 0, 0, b""

    def _object(self, opcode: int, body: bytes) -> Answered:
        kind, ident = struct.unpack_from("<H2xI", body)
        data = body[16:24].ljust(8, b"\0")
        if kind != PARTS_OBJECT:
            return AdminStatus.ENXIO, Qualifier.INVALID_FIELD, b""
        if opcode == Opcode.RESOURCE_OBJ_CREATE:
            return self._create(ident, data)
        self.device.check("ADM-R03", ident in self.objects, f"object {ident} is not there")
        if ident not in self.objects:
            return AdminStatus.ENXIO, Qualifier.INVALID_FIELD, b""
        if opcode == Opcode.RESOURCE_OBJ_QUERY:
            return 0, 0, self.objects[ident]
        if opcode == Opcode.RESOURCE_OBJ_MODIFY:
            if data[0] >= len(self.limits):
                return refused(Qualifier.INVALID_FIELD)
            self.objects[ident] = data
        else:
            del self.objects[ident]
        return 0, 0, b""

    def _create(self, ident: int, data: bytes) -> Answered:
        self.device.check("ADM-R01", ident not in self.objects, f"object {ident} is there already")
        if ident in self.objects:
            return EEXIST, Qualifier.INVALID_FIELD, b""
        if data[0] >= len(self.limits):
            return refused(Qualifier.INVALID_FIELD)
        limit = self.allowed[data[0]]
        count = sum(one[0] == data[0] for one in self.objects.values())
        fits = ident < limit and count < limit
        self.device.check("ADM-R02", fits, f"object {ident}, and the limit is {limit}")
        if not fits:
            return AdminStatus.ENOSPC, Qualifier.NORESOURCE, b""
        self.objects[ident] = data
        return 0, 0, b""
