"""Names that the docs of 0.1 showed and that have moved since: they work in this release, with a warning."""

from __future__ import annotations

import subprocess
import sys

import pytest

import uvirtio
from uvirtio.errors import Denied
from uvirtio.host import denylist


@pytest.mark.parametrize(("old", "new"), [("fuse", "uvirtio.host.denylist"), ("roots", "uvirtio.host.roots")])
def test_an_old_module_name_hands_on(old: str, new: str):
    with pytest.warns(DeprecationWarning, match=f"uvirtio.{old} is {new} now") as caught:
        module = getattr(uvirtio, old)
    assert module is sys.modules[new]
    assert caught[0].filename == __file__, "the line that is to be changed"
    assert old not in uvirtio.__all__


def test_the_old_call_of_the_deny_list(tmp_path):
    (tmp_path / "etc/uvirtio").mkdir(parents=True)
    (tmp_path / "etc/uvirtio/deny").write_text("03:00.0\n")
    roots = uvirtio.Roots.under(tmp_path)
    with pytest.warns(DeprecationWarning):
        check = uvirtio.fuse.check  # type: ignore[attr-defined]
    assert check is denylist.check
    for denied in (lambda: check(["0000:03:00.0"], roots), lambda: uvirtio.check_denied("03:00.0", roots=roots)):
        with pytest.raises(Denied):
            denied()


def test_a_name_that_never_was_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'fuses'"):
        uvirtio.fuses  # type: ignore[attr-defined]  # noqa: B018


def test_importing_the_package_loads_nothing_but_its_errors():
    """Start-up: what a command does not need is not read from the disk."""
    code = f"import sys; sys.path[:0] = {sys.path!r}; import uvirtio; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    ours = {name for name in loaded if name.startswith("uvirtio")}
    assert ours == {"uvirtio", "uvirtio.errors", "uvirtio.typed"}
    assert not loaded & {"logging", "re", "typing"}


def test_a_qemu_is_started_before_the_rest_is_loaded():
    """The rest is loaded while QEMU starts, which takes about as long."""
    code = f"""import sys; sys.path[:0] = {sys.path!r}
import uvirtio
from uvirtio.backends.child import ChildProcess
class Child(ChildProcess):
    def __init__(self, *_, **__):
        print(*sys.modules)
        sys.exit()
ChildProcess.__init__ = Child.__init__
uvirtio.open("qemu:q35,binary=/bin/true/virtio-rng-pci")
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    loaded = set(done.stdout.split())
    assert "uvirtio.backends.qemu.process" in loaded
    later = (
        "uvirtio.device.core",
        "uvirtio.virtqueue",
        "uvirtio.transports",
        "uvirtio.drivers",
        "uvirtio.binding",
    )
    assert not {name for name in loaded if name.startswith(later)}
