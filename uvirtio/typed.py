"""What a class takes from ``typing`` when it is made, for the modules on the way of a short command.

``typing`` takes 10 ms to import, with ``re`` and what else it imports, and 0.1 to 0.3 ms for each named tuple: as
long as QEMU takes to start half of its way. A type checker sees typing's own. Annotations are never evaluated
(``from __future__ import annotations``), so the modules import the names in them for the type checker alone.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own name for it: checkers take it for true
if TYPE_CHECKING:
    from typing import Any
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
    from typing import cast as cast
    from typing import runtime_checkable as runtime_checkable
else:
    from collections import namedtuple

    class _NamedTupleMaker(type):
        """Makes a class with annotated fields into what ``collections.namedtuple`` makes."""

        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return type.__new__(mcs, name, bases, body)
            fields = body["__annotations__"]
            defaults = [body.pop(field) for field in fields if field in body]
            made = namedtuple(name, fields, defaults=defaults, module=body["__module__"])
            made.__new__.__annotations__ = fields
            for key, value in body.items():
                if key not in ("__slots__", "__module__"):
                    setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_NamedTupleMaker):
        """What a class with annotated fields derives from to become a named tuple; no base of it then."""

    class _Checked(type):
        """Has ``isinstance`` ask for the members that a Protocol names, as typing's does."""

        def __instancecheck__(cls, instance: object) -> bool:
            if not cls._is_protocol:
                return type.__instancecheck__(cls, instance)
            members = cls.__dict__.get("_members")
            if members is None:
                members = cls._members = _members(cls)
            return all(
                hasattr(instance, member) and (not called or getattr(instance, member) is not None)
                for member, called in members
            )

    class Protocol(metaclass=_Checked):
        """A class that says what others have; ``isinstance`` is true of whatever has all of it."""

        _is_protocol = True

        def __init_subclass__(cls) -> None:
            super().__init_subclass__()
            cls._is_protocol = Protocol in cls.__bases__

    def _members(contract: type) -> tuple[tuple[str, bool], ...]:
        """Each member of a Protocol, and whether it is called."""
        found: dict[str, bool] = {}
        for base in contract.__mro__:
            if base.__dict__.get("_is_protocol", False) and base is not Protocol:
                names = {**base.__dict__.get("__annotations__", {}), **base.__dict__}  # noqa: RUF063
                for name in names:
                    if name not in _NO_MEMBERS:
                        found[name] = callable(getattr(contract, name, None))
        return tuple(found.items())

    # What a class statement adds (since 3.13 its lines, too), and what is kept in a class when it is asked for.
    _NO_MEMBERS = frozenset(
        {*Protocol.__dict__, "_members", "__annotations__", "__annotate_func__", "__annotations_cache__"}
    )

    def runtime_checkable(contract: type) -> type:
        """Typing's own mark; every Protocol here can be checked."""
        return contract

    def cast(kind: object, value: object) -> object:
        """Return ``value``, which a type checker takes for a ``kind``."""
        return value
