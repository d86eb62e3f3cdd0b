"""What is not CPython is refused in words, at the first call that would touch a device; looking still works."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from uvirtio import opening
from uvirtio.device import Device
from uvirtio.errors import NotSupported
from uvirtio.scripted import Rng, ScriptedDevice

# As an interpreter that calls itself PyPy, before anything of uvirtio is imported.
DISGUISED = """
import sys
sys.implementation.name = "pypy"
"""


def disguised(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", DISGUISED + code], capture_output=True, text=True, timeout=60, env=dict(os.environ)
    )


@pytest.mark.parametrize(
    "argv",
    [["rng", "read", "qemu:virtio-rng-pci", "8"], ["diag", "0000:00:1e.0"], ["reset", "mmio:0xfe003e00"]],
    ids=" ".join,
)
def test_the_command_says_so(argv: list[str]):
    done = disguised(f"from uvirtio.cli import main\nsys.exit(main({argv!r}))")
    assert done.returncode == NotSupported.exit_code and "Traceback" not in done.stderr
    assert "CPython alone" in done.stderr and "pypy, Python 3." in done.stderr
    assert "run it with CPython 3.11 or later" in done.stderr


def test_the_command_says_so_in_json():
    done = disguised("from uvirtio.cli import main\nsys.exit(main(['diag', 'qemu:virtio-rng-pci', '--json']))")
    assert json.loads(done.stdout)["error"]["code"] == NotSupported.code


@pytest.mark.parametrize("argv", [["--version"], ["list"], ["features", "rng", "0x1"]], ids=" ".join)
def test_what_touches_no_device_works(argv: list[str]):
    done = disguised(f"from uvirtio.cli import main\nsys.exit(main({argv!r}))")
    assert (done.returncode, done.stderr) == (0, "")


def test_the_library_can_be_imported_and_refuses_to_open():
    done = disguised(
        "import uvirtio, uvirtio.qemu\n"
        "try:\n    uvirtio.open('qemu:virtio-rng-pci')\n"
        "except uvirtio.NotSupported as error:\n    print(error, error.seen)"
    )
    assert done.stdout.startswith("uvirtio drives devices under CPython alone pypy, Python 3.") and not done.stderr


def test_what_a_back_end_of_one_s_own_hands_over_is_refused_untouched(monkeypatch: pytest.MonkeyPatch):
    function = ScriptedDevice(Rng())
    transport = opening.identify("0000:00:04.0", ScriptedDevice(Rng())).transport
    monkeypatch.setattr(sys.implementation, "name", "graalpy")
    for call in (lambda: opening.open(function), lambda: opening.identify(function.address, function)):
        with pytest.raises(NotSupported, match="CPython"):
            call()
    assert not [entry for entry in function.log if entry.region == "common"]
    with pytest.raises(NotSupported, match="CPython"):
        Device("0000:00:04.0", transport)


SUBINTERPRETER = """
import sys
try:
    import _interpreters as interpreters
except ImportError:  # its name before 3.13
    import _xxsubinterpreters as interpreters
# In 3.12 the library itself has no ctypes for an isolated one, which is what this makes.
one = interpreters.create(isolated=False) if sys.version_info[:2] == (3, 12) else interpreters.create()
failed = interpreters.run_string(one, '''
import uvirtio
for address in ("scripted:rng", "scripted:blk"):
    with uvirtio.open(address) as device, (uvirtio.Rng if device.type == "rng" else uvirtio.Blk)(device) as driver:
        print(device.type)
left = uvirtio.Rng(uvirtio.open("scripted:rng"))
try:
    uvirtio.open("qemu:virtio-rng-pci").close()
except uvirtio.EnvironmentLack as error:
    print(error.code)
''')
interpreters.destroy(one)
assert failed is None, failed.errdisplay
"""


def test_a_subinterpreter_drives_what_needs_no_thread_and_leaves_in_order():
    done = subprocess.run([sys.executable, "-c", SUBINTERPRETER], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.split()[:2] == ["rng", "blk"]
    assert done.stdout.split()[2:] in (["UV-ENV-NOT-SUPPORTED"], ["UV-ENV-QEMU"], [])  # [] where it may
