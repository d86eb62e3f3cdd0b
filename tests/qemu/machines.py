"""The machines of the package whose QEMU is installed; a test of another one is skipped, and says so."""

from __future__ import annotations

import shutil

import pytest

from uvirtio.backends.qemu.models import MODELS


def needs(name: str) -> list[pytest.MarkDecorator]:
    """The mark of a test that starts this machine."""
    model = MODELS[name]
    return [pytest.mark.skipif(shutil.which(model.binary) is None, reason=f"{model.binary} is not installed")]


ALL = [pytest.param(name, marks=needs(name)) for name in MODELS]
WITH_PCI = [pytest.param(name, marks=needs(name)) for name, model in MODELS.items() if model.pci is not None]
WITH_MMIO = [pytest.param(name, marks=needs(name)) for name, model in MODELS.items() if model.mmio is not None]
