"""What a class takes from ``typing`` when it is made, for the modules on the way of a short command.

``typing`` takes 10 ms to import, with ``re`` and what else it imports, a quarter of what QEMU takes to start,
and 0.1 to 0.3 ms more for each named tuple. A type checker sees typing's own. Annotations are never evaluated:
what uses this module has ``from __future__ import annotations`` (3.14 would not have the fields in the class
otherwise), and imports the names in them for the type checker alone.
"""

from __future__ import annotations

TYPE_CHECKING = False  # typing's own name for it: checkers take it for true
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any
    from typing import NamedTuple as NamedTuple
    from typing import Protocol as Protocol
    from typing import cast as cast
    from typing import runtime_checkable as runtime_checkable
else:
    from collections import _tuplegetter

    class _NamedTupleMaker(type):
        """Makes a class with annotated fields into what ``collections.namedtuple`` makes."""

        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases:
                return type.__new__(mcs, name, bases, body)
            fields = tuple(body["__annotations__"])
            defaults = {field: body.pop(field) for field in fields if field in body}
            names = ", ".join(fields)
            # Written out, as collections.namedtuple does it: a call has the speed and the signature of its own.
            new = eval(f"lambda _cls, {names}: _new(_cls, ({names},))", {"_new": tuple.__new__})  # noqa: S307
            new.__name__, new.__qualname__ = "__new__", f"{name}.__new__"
            new.__defaults__, new.__annotations__ = tuple(defaults.values()), body["__annotations__"]
            body = {
                **_METHODS,
                "__new__": new,
                "_fields": fields,
                "_field_defaults": defaults,
                "__match_args__": fields,
                **{field: _tuplegetter(index, "A field.") for index, field in enumerate(fields)},
                "__doc__": f"{name}({names})",
                **body,
                "__slots__": (),
            }
            return type(name, (tuple,), body)

    class _Methods:
        """The methods of all named tuples; ``collections.namedtuple`` makes them anew for each, 2 KiB of them."""

        @classmethod
        def _make(cls, values: Iterable[Any]) -> Any:
            made = tuple.__new__(cls, values)
            if len(made) != len(cls._fields):
                raise TypeError(f"Expected {len(cls._fields)} arguments, got {len(made)}")
            return made

        def _replace(self, /, **values: Any) -> Any:
            made = self._make(map(values.pop, self._fields, self))
            if values:
                raise TypeError(f"Got unexpected field names: {list(values)!r}")
            return made

        __replace__ = _replace  # copy.replace, since 3.13

        def _asdict(self) -> dict[str, Any]:
            return dict(zip(self._fields, self, strict=True))

        def __repr__(self) -> str:
            values = ", ".join(f"{field}={value!r}" for field, value in zip(self._fields, self, strict=True))
            return f"{type(self).__name__}({values})"

        def __getnewargs__(self) -> tuple[Any, ...]:
            return tuple(self)

    _METHODS = {key: value for key, value in _Methods.__dict__.items() if callable(getattr(_Methods, key))}

    class NamedTuple(metaclass=_NamedTupleMaker):
        """What a class with annotated fields derives from to become a named tuple; no base of it then."""

    class _Checked(type):
        """Has ``isinstance`` ask for the members that a Protocol names, as typing's does."""

        def __new__(mcs, name: str, bases: tuple[type, ...], body: dict[str, Any]) -> type:
            if not bases or Protocol in bases:  # no instances, so no 1 KiB for their dictionaries
                body.setdefault("__slots__", ())
            return type.__new__(mcs, name, bases, body)

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
