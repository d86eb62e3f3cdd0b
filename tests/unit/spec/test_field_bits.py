"""Bits that are met in the field and are in no standard: told as that, never taken for the standard's."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from uvirtio.diag import diagnose_function
from uvirtio.scripted import Balloon, ScriptedDevice
from uvirtio.scripted.core import RING_FEATURES
from uvirtio.spec import features as f
from uvirtio.spec import field_bits
from uvirtio.spec.field_bits import FIELD_BITS, described, lookup


@pytest.mark.parametrize(("type_name", "number"), FIELD_BITS)
def test_each_is_unknown_to_the_standard_and_has_a_source(type_name: str, number: int):
    """When a version of the standard takes the number, the entry has to go."""
    found = FIELD_BITS[type_name, number]
    assert type_name in f.DEVICE_BITS and not f.feature(type_name, number).known
    assert lookup(type_name, number) is found
    assert re.fullmatch(r"[A-Z][A-Z_0-9]+", found.name) and found.about and "/" in found.source
    assert found.as_dict()["standard"] is False
    assert described(type_name, number) == f"bit {number} ({found.name}, not in the standard)"


def test_what_the_standard_defines_is_not_looked_up_and_nothing_is_made_up():
    assert lookup("balloon", 5) is None and lookup("balloon", 32) is None
    assert lookup("balloon", 7) is None and lookup("rng", 6) is None
    assert described("balloon", 7) == "bit 7"


def test_vhost_s_own_bit_is_the_header_s():
    header = Path("/usr/include/linux/vhost_types.h")
    if not header.exists():
        pytest.skip("no kernel headers here (linux-libc-dev)")
    found = re.search(r"#define VHOST_F_LOG_ALL (\d+)", header.read_text())
    assert found
    for type_name in ("net", "rng"):
        bit = lookup(type_name, int(found[1]))
        assert bit is field_bits._LOG_ALL


def test_diag_names_them_and_takes_none():
    scripted = ScriptedDevice(Balloon(), features=RING_FEATURES | f.mask(6, 7))
    report = diagnose_function("0000:00:04.0", lambda: ("0000:00:04.0", scripted), timeout=0.5)
    (step,) = [one for one in report.steps if one.name == "features"]
    assert step.verdict == "warn"
    assert "bit 6 (HINT_WAIT_ON_ACK, not in the standard), bit 7; they are not negotiated" in step.hint
    assert not scripted.driver_features & f.mask(6, 7)
    scripted.assert_left()
