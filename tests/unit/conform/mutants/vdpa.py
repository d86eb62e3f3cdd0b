"""vhost-vdpa: nodes whose parent device is wrong. The kernel is played."""

from __future__ import annotations

import shutil
import tempfile
import weakref
from pathlib import Path

from tests.fakes.played_vdpa import MODERN, Played
from uvirtio.backends.vhost_vdpa import VhostVdpaNode
from uvirtio.spec import features as f
from uvirtio.spec import ids

from . import Mutants

I2C = ids.require_type("i2c")
"""A type that is brought up without a request: a played device is asked only by calls."""


def node(**how):
    """A device that obeys, opened through a kernel that is played."""
    top = tempfile.mkdtemp(prefix="vdpa-")
    played = Played(Path(top), **how)
    found = VhostVdpaNode.open("vdpa:vdpa0", played.roots, kernel=played.kernel)
    weakref.finalize(found, shutil.rmtree, top)
    found.played, found.violations = played, []
    return found


def refuses() -> VhostVdpaNode:
    """It refuses by the call what it has not offered, as the kernel's own devices do."""
    found = node(device_id=I2C, config=bytes(64))
    found.played.refuse["VHOST_SET_FEATURES"] = lambda word: 22 if word.value & ~found.played.features else 0
    return found


MUTANTS = Mutants(refuses)


@MUTANTS.of("D-VDPA-01")
def takes_anything(device):
    device.played.refuse.clear()


@MUTANTS.of("D-VDPA-05", on=lambda: node(device_id=2, config=bytes(60), features=MODERN | f.mask(f.Blk.BLK_SIZE)))
def has_the_capacity_alone(device):
    del device.played.config[8:]


@MUTANTS.of("D-RES-02")
def hides_access_platform(device):
    device.played.features &= ~f.mask(f.ACCESS_PLATFORM)
