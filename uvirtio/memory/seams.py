"""Deprecated location of the contracts: they are in ``uvirtio.interfaces`` since 0.2. To be removed in 0.3."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

if not TYPE_CHECKING:
    _MOVED = {"Unheld": "WithoutIommu"}

    def __getattr__(name: str) -> Any:
        from uvirtio.interfaces import backend, memory, transport, values

        for module in (values, memory, backend, transport):
            found = getattr(module, _MOVED.get(name, name), None)
            if found is not None and not name.startswith("_"):
                warnings.warn(
                    f"uvirtio.memory.seams.{name} is {module.__name__}.{_MOVED.get(name, name)} now",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return found
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
