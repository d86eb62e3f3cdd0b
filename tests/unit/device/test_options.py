"""OpenOptions: what they refuse, how keywords change them, and that they stand in one place."""

from __future__ import annotations

import ast
import math
import typing
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from tests.fakes.fakesys import FakeSys
from uvirtio import opening
from uvirtio.backends.vfio_pci import VfioPciFunction
from uvirtio.device import DEFAULT_TIMEOUT, Device, OpenKeywords, OpenOptions, RingChoice
from uvirtio.device import keywords as keywords_of_open
from uvirtio.device.options import _RINGS
from uvirtio.errors import BadAddress, Closed, UsageError
from uvirtio.host.roots import Roots
from uvirtio.interfaces.values import InterruptMode
from uvirtio.scripted.pci import ScriptedDevice
from uvirtio.scripted.rng import Rng


def test_the_keywords_of_open_are_the_fields_of_the_options():
    fields = typing.get_type_hints(OpenOptions, localns=vars(keywords_of_open))
    keywords = typing.get_type_hints(OpenKeywords)
    assert {**keywords, "roots": Roots} == fields
    assert not OpenKeywords.__required_keys__


def test_the_rings_that_are_taken_are_those_of_the_keyword():
    assert typing.get_args(RingChoice) == _RINGS


def test_the_options_are_frozen_and_compare_by_value():
    options = OpenOptions(timeout=1, interrupts=[InterruptMode.POLLING])
    assert options == OpenOptions(timeout=1, interrupts=(InterruptMode.POLLING,))
    with pytest.raises(AttributeError):
        options.timeout = 2  # type: ignore[misc]


BAD: list[dict[str, Any]] = [
    {"backend": None},
    {"timeout": 0},
    {"timeout": -1.0},
    {"timeout": math.nan},
    {"timeout": math.inf},
    {"timeout": 2e8},
    {"timeout": "5"},
    {"interrupts": []},
    {"interrupts": InterruptMode.INTX},
    {"interrupts": "intx"},
    {"interrupts": [InterruptMode.INTX, "intx"]},
    {"ring": "round"},
    {"ring": None},
    {"poll_us": -1},
    {"poll_us": math.nan},
    {"vf_token": ""},
    {"vf_token": "bd8d9d2b5a5f4f5aa211f591514ba1f3"},
    {"vf_token": "{bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3}"},
    {"vf_token": "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3 "},
    {"vf_token": "bd8d9d2b-5a5f-4f5a-a211-f591514ba1fg"},
    {"vf_token": 5},
    {"roots": "/sys"},
    {"trace": "stderr"},
]


@pytest.mark.parametrize("keywords", BAD, ids=lambda one: "=".join(map(repr, *one.items())))
def test_a_value_that_an_option_cannot_have_is_refused_before_anything_is_opened(keywords: dict[str, Any]):
    with pytest.raises(UsageError) as caught:
        OpenOptions(**keywords)
    assert next(iter(keywords)) in caught.value.message
    assert caught.value.seen == repr(next(iter(keywords.values())))
    assert caught.value.expected
    with pytest.raises(UsageError):
        OpenOptions()._replace(**keywords)
    with pytest.raises(UsageError):
        uvirtio.open("0000:00:1f.0", **keywords)
    scripted = ScriptedDevice(Rng())
    with pytest.raises(UsageError):
        opening.identify("x", scripted, **keywords)
    scripted.config.read8(0)  # still the caller's


def test_keywords_override_the_options():
    options = OpenOptions(timeout=1, ring="split", roots=Roots.under("/nowhere"))
    with opening.identify("x", ScriptedDevice(Rng()), options=options, ring="packed") as device:
        assert (device.timeout, device.ring) == (1, "packed")
    assert options.merged({}) is options
    assert options.merged({"roots": None}) == options
    assert options.ring == "split"


TOKEN = "bd8d9d2b-5a5f-4f5a-a211-f591514ba1f3"


@pytest.mark.parametrize("address", ["qemu:virtio-rng-pci", "mmio:0xfeb02e00", "/dev/vhost-vdpa-0"])
def test_only_vfio_takes_a_vf_token(address: str):
    with pytest.raises(UsageError, match="takes no VF token"):
        uvirtio.open(address, vf_token=TOKEN)


def test_a_function_by_uio_takes_no_vf_token(tmp_path: Path):
    fake = FakeSys(tmp_path)
    fake.pci("0000:00:02.0", driver="uio_pci_generic")
    with pytest.raises(UsageError, match="takes no VF token") as caught:
        uvirtio.open("0000:00:02.0", vf_token=TOKEN, roots=fake.roots)
    assert caught.value.seen == "the back end uio"


def test_a_vf_token_goes_to_vfio(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = FakeSys(tmp_path)
    fake.pci("0000:00:02.0", driver="vfio-pci")
    seen = []

    def opened(address: str, roots: Roots, **keywords: Any) -> ScriptedDevice:
        seen.append((address, keywords["vf_token"]))
        return ScriptedDevice(Rng())

    monkeypatch.setattr(VfioPciFunction, "open", opened)
    uvirtio.open("0000:00:02.0", vf_token=TOKEN.upper(), roots=fake.roots).close()
    uvirtio.open("0000:00:02.0", roots=fake.roots).close()
    assert seen == [("0000:00:02.0", TOKEN.upper()), ("0000:00:02.0", None)]


def test_an_unknown_keyword_is_a_type_error_as_everywhere():
    with pytest.raises(TypeError, match="time_out"):
        uvirtio.open("qemu:virtio-rng-pci", time_out=1)  # type: ignore[call-arg]


@pytest.mark.parametrize("options", [{"timeout": 1}, 5, "vfio", OpenOptions])
def test_options_are_options(options: object):
    with pytest.raises(UsageError, match="options cannot be"):
        uvirtio.open("0000:00:1f.0", options=options)  # type: ignore[arg-type]


@pytest.mark.parametrize("thing", [None, 5, b"0000:00:04.0", Path("/dev/vfio/3"), object(), ["0000:00:04.0"]])
def test_only_an_address_or_what_a_back_end_hands_over_can_be_opened(thing: object):
    with pytest.raises(UsageError, match="cannot be opened") as caught:
        uvirtio.open(thing)  # type: ignore[arg-type]
    assert caught.value.seen == type(thing).__name__


@pytest.mark.parametrize("address", ["", " ", "0000:03:00.8", "nothing", "\0", "0000:03:00"])
def test_an_address_of_no_known_form_is_a_bad_address(address: str):
    with pytest.raises(BadAddress):
        uvirtio.open(address)


def test_what_a_back_end_hands_over_can_be_opened_and_is_closed_with_its_device():
    scripted = ScriptedDevice(Rng())
    with uvirtio.open(scripted, timeout=1) as device:
        assert device.address == scripted.address
        with uvirtio.Rng(device, health=False) as rng:
            assert len(rng.read(4)) == 4
    with pytest.raises(Closed), uvirtio.open(scripted) as device, uvirtio.Rng(device):
        pass


def test_a_call_without_a_timeout_has_the_devices(monkeypatch: pytest.MonkeyPatch):
    with opening.identify("x", ScriptedDevice(Rng()), timeout=7) as device:
        assert device.seconds(None) == 7
        assert device.seconds(0) == 0
        assert device.seconds(0.25) == 0.25


def test_a_timeout_that_no_clock_passes_is_refused_and_not_waited_for():
    with opening.identify("x", ScriptedDevice(Rng()), timeout=7) as device, uvirtio.Rng(device) as rng:
        with pytest.raises(UsageError):
            rng.read(16, timeout=math.nan)
        with pytest.raises(UsageError):
            device.wait(lambda: False, timeout=math.nan, what="nothing", owed=False)
        assert device.broken is None
        assert len(rng.read(16)) == 16


def test_the_default_timeout_is_written_once():
    assert OpenOptions().timeout == DEFAULT_TIMEOUT
    package = Path(uvirtio.__file__).parent
    elsewhere = [
        f"{path.relative_to(package)}:{argument.lineno}"
        for path in package.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef))
        for argument, default in _defaults(node)
        if isinstance(default, ast.Constant) and default.value == DEFAULT_TIMEOUT
    ]
    assert elsewhere == []


def _defaults(node: ast.FunctionDef | ast.ClassDef) -> list[tuple[ast.AST, ast.expr | None]]:
    """The time-outs with a default among the parameters of a function, or among the fields of a class."""
    if isinstance(node, ast.ClassDef):
        fields = [
            one for one in node.body if isinstance(one, ast.AnnAssign) and ast.unparse(one.target) == "timeout"
        ]
        return [(one, one.value) for one in fields]
    every = [*node.args.posonlyargs, *node.args.args]
    pairs = list(zip(every[::-1], node.args.defaults[::-1], strict=False))
    pairs += list(zip(node.args.kwonlyargs, node.args.kw_defaults, strict=True))
    return [(argument, default) for argument, default in pairs if argument.arg == "timeout"]


def test_a_device_of_ones_own_transport_has_the_defaults():
    transport = opening.identify("x", ScriptedDevice(Rng())).transport
    with Device("y", transport) as device:
        assert (device.timeout, device.ring, device.interrupts) == (DEFAULT_TIMEOUT, "auto", tuple(InterruptMode))
