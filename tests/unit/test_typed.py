"""What stands for typing's named tuples and Protocols in a short command does what theirs do."""

from __future__ import annotations

import copy
import inspect
import pickle
import typing
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from uvirtio import typed


class Light(typed.NamedTuple):
    """A place."""

    x: int
    y: int = 2
    """The second."""

    name: str = "here"

    @property
    def sum(self) -> int:
        return self.x + self.y

    def __str__(self) -> str:
        return self.name


class Real(typing.NamedTuple):
    """A place."""

    x: int
    y: int = 2
    """The second."""

    name: str = "here"

    @property
    def sum(self) -> int:
        return self.x + self.y

    def __str__(self) -> str:
        return self.name


QUESTIONS: list[Callable[[Any], object]] = [
    lambda made: made(1),
    lambda made: made(1, 5, name="there")._replace(y=7),
    lambda made: made(x=1)._asdict(),
    lambda made: (made(1) == (1, 2, "here"), hash(made(1)) == hash((1, 2, "here"))),
    lambda made: (made(1).sum, str(made(1)), made(1).name, made(4)[0]),
    lambda made: repr(made(1)).partition("(")[2],
    lambda made: (made._fields, made._field_defaults, made.__match_args__, made.__doc__),
    lambda made: (made.__module__, made.__bases__, made.__slots__),
    lambda made: list(made._make([1, 2, "a"])),
    lambda made: [(one.name, one.default) for one in inspect.signature(made).parameters.values()],
    lambda made: list(made.__new__.__annotations__) == list(made.__annotations__) == list(made._fields),
    lambda made: list(copy.deepcopy(made(1, 2, "c"))),
    lambda made: type(pickle.loads(pickle.dumps(made(1)))) is made,
]


@pytest.mark.parametrize("question", QUESTIONS)
def test_a_named_tuple_is_one_of_typings(question: Callable[[Any], object]) -> None:
    assert question(Light) == question(Real)


@pytest.mark.parametrize("made", [Light, Real])
def test_a_named_tuple_refuses_what_it_lacks(made: Any) -> None:
    with pytest.raises(TypeError):
        made()
    with pytest.raises(TypeError):
        made(1, 2, "a", 4)
    with pytest.raises(AttributeError):
        made(1).x = 2
    with pytest.raises(TypeError):
        made._make([1, 2])
    with pytest.raises((TypeError, ValueError)):  # the first since 3.13
        made(1)._replace(z=2)


def contracts(protocol: Any, checkable: Any) -> tuple[Any, Any, Any]:
    """A contract, one that demands more, and a class that has it all by deriving from it."""

    @checkable
    class Reads(protocol):  # type: ignore[misc]
        length: int

        def read(self) -> int: ...

    @checkable
    class Writes(Reads, protocol):  # type: ignore[misc,valid-type]
        def write(self, value: int) -> None: ...

    class Both(Writes):
        def __init__(self) -> None:
            self.length = 4

    return Reads, Writes, Both


class Reader:
    length = 4

    def read(self) -> int:
        return 0


class Writer(Reader):
    def write(self, value: int) -> None:
        """Do nothing."""


class Without(Writer):
    read = None  # type: ignore[assignment]  # a method that is not there


class Passing:
    def __getattr__(self, name: str) -> int:
        if name in ("read", "length"):
            return 1
        raise AttributeError(name)


def bare() -> object:
    """One whose class has no more than the contract asks for: not the lines of a class statement."""
    return SimpleNamespace(length=4, read=print)


@pytest.mark.parametrize("made", [Reader, Writer, Without, bare, object, lambda: 3])
def test_a_contract_is_what_typings_protocol_is(made: Callable[[], object]) -> None:
    answers = []
    for protocol, checkable in (
        (typed.Protocol, typed.runtime_checkable),
        (typing.Protocol, typing.runtime_checkable),
    ):
        reads, writes, both = contracts(protocol, checkable)
        thing = made()
        every = [isinstance(thing, reads), isinstance(thing, writes), isinstance(thing, both)]
        answers.append([*every, isinstance(both(), writes), isinstance(both(), both)])
    assert answers[0] == answers[1]
    assert answers[0][3:] == [True, True]


def test_a_contract_is_asked_of_the_instance() -> None:
    """Of one that passes on what it is asked, a recorder's, too; from 3.12 on typing looks at the class alone."""
    reads, writes, _ = contracts(typed.Protocol, typed.runtime_checkable)
    assert isinstance(Passing(), reads)
    assert not isinstance(Passing(), writes)
