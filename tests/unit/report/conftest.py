"""Documents to draw: of scripted devices, brought up and examined as ``diag --html`` does it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from uvirtio import scripted
from uvirtio.device import Device
from uvirtio.diag import diagnose
from uvirtio.evidence import collect
from uvirtio.host.roots import Roots

Documents = tuple[dict[str, Any], dict[str, Any]]


@pytest.fixture
def documents(tmp_path: Path) -> Callable[..., Documents]:
    """Makes the dump and the diagnosis of a scripted device with faults."""

    def make(model: scripted.Model | None = None, **faults: Any) -> Documents:
        timeout = 0.1 if faults.get("silent") else 10.0  # a device that answers may take long on a busy machine
        found = []
        environment = collect.environment(Roots.under(tmp_path))

        def examine(device: Device) -> None:
            found.append(collect.of_open(device, live=True))

        device = scripted.ScriptedDevice(model or scripted.Rng(), **faults)
        report = diagnose(device, timeout=timeout, examine=examine)
        told = {"schema": "uvirtio/1", "command": "diag", **report.as_document()}
        return collect.document(found, environment), told

    return make
