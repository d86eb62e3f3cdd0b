"""What the verbs tell typer, kept until typer is there: its import takes as long as the rest of ``uvirtio list``.

Modules of verbs import this one as ``typer``: ``Option`` and ``Argument`` take what typer's own take, and
cli/parser.py makes typer's application of it. A command line that any parser would read alike (cli/plain.py) is
run without.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, get_args, get_type_hints

Body = Callable[..., int | None]


class Told(NamedTuple):
    """One call of ``typer.Option`` or ``typer.Argument``."""

    kind: str
    """Which of the two."""
    names: tuple[str, ...]
    more: dict[str, Any]


def Option(*names: str, **more: Any) -> Told:
    """Keep the arguments of a ``typer.Option``."""
    return Told("Option", names, more)


def Argument(**more: Any) -> Told:
    """Keep the arguments of a ``typer.Argument``."""
    return Told("Argument", (), more)


class Parameter(NamedTuple):
    """One parameter of a verb's function."""

    kind: Any
    """Its type, without what typer is told."""
    told: Told
    default: Any
    """``REQUIRED`` where it has none."""


REQUIRED = object()


def declared(annotation: Any, default: Any) -> Parameter:
    """Take an ``Annotated[kind, typer.Option(...)]`` apart."""
    kind, told = get_args(annotation)
    return Parameter(kind, told, default)


class Verb(NamedTuple):
    """A command: a function of a ``Command`` and of its own arguments."""

    name: str
    """With the name of its group: ``rng read``."""
    body: Body
    opens: bool
    """It opens a device."""
    streams: bool
    """Its JSON output is lines."""
    common: dict[str, Parameter]
    """The options that it shares with other verbs."""

    def own(self) -> dict[str, Parameter]:
        """The parameters of its function, behind the first."""
        code = self.body.__code__
        names = code.co_varnames[1 : code.co_argcount + code.co_kwonlyargcount]
        given = self.body.__defaults__ or ()
        defaults = dict(zip(names[code.co_argcount - 1 - len(given) :], given, strict=False))
        defaults.update(self.body.__kwdefaults__ or {})
        hints = get_type_hints(self.body, include_extras=True)
        return {name: declared(hints[name], defaults.get(name, REQUIRED)) for name in names}


class Typer:
    """The verbs of the command, or of a group such as ``uvirtio balloon``."""

    def __init__(self, help: str = "") -> None:
        """Make it without verbs.

        Args:
            help: The group's help.
        """
        self.help = help
        self.verbs: dict[str, Verb] = {}
        self.groups: dict[str, Typer] = {}

    def add_typer(self, group: Typer, *, name: str) -> None:
        """Add a group of verbs."""
        self.groups[name] = group
