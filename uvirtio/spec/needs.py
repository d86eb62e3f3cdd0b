"""What a dependency between feature bits is (2.2.1)."""

from __future__ import annotations

from uvirtio.typed import NamedTuple


class Needs(NamedTuple):
    """A dependency: ``bit`` may be accepted only together with at least one of ``any_of`` (2.2.1)."""

    bit: int
    any_of: tuple[int, ...]
