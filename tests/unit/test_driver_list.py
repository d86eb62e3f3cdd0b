"""The list "Add a driver" of CONTRIBUTING.md holds: each driver is in every place that the list names."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import uvirtio
from uvirtio.diag import datapath
from uvirtio.drivers.base import Driver
from uvirtio.spec import features, ids

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
DRIVERS = sorted(path.parent.name for path in (CHECKOUT / "uvirtio/drivers").glob("*/__init__.py"))

QEMU_DEVICES = {"input": r"(?:keyboard|mouse|tablet|multitouch)"}
"""What QEMU calls the devices of a driver, where that is not the driver's own name."""


def read(path: str) -> str:
    return (CHECKOUT / path).read_text()


def files(pattern: str) -> Iterator[str]:
    """The contents of the files of the checkout that match."""
    return (path.read_text() for path in sorted(CHECKOUT.glob(pattern)))


def spec_type(name: str) -> int:
    return int(import_module(f"uvirtio.spec.{name}").TYPE)


def driver_class(name: str) -> type[Driver]:
    """The class of this driver that ``import uvirtio`` offers."""
    found = [
        thing
        for word in uvirtio.__all__
        if isinstance(thing := getattr(uvirtio, word), type)
        and issubclass(thing, Driver)
        and thing.__module__.startswith(f"uvirtio.drivers.{name}.")
    ]
    assert len(found) == 1, f"uvirtio.__all__ has {found}"
    return found[0]


# --- the places, in the order of the list ---------------------------------------------------------------------


def spec_module(name: str) -> bool:
    return spec_type(name) > 0


def spec_ids(name: str) -> bool:
    return ids.type_id(name) == spec_type(name)


def spec_features(name: str) -> bool:
    without = re.search(r"Other types define none \((.*?)\)", read("uvirtio/spec/type_features.py"), re.DOTALL)
    assert without is not None
    return name in features.DEVICE_BITS or re.search(rf"\b{name}\b", without[1]) is not None


def the_driver(name: str) -> bool:
    return driver_class(name).device_id == spec_type(name)


def public_name(name: str) -> bool:
    word = driver_class(name).__name__
    text = read("uvirtio/__init__.py")
    for_checkers = re.search(rf"from uvirtio\.drivers\.{name} import .*\b{word}\b", text) is not None
    return word in uvirtio.__all__ and for_checkers and f'"{word}": "uvirtio.drivers.{name}"' in text


def diagnosis(name: str) -> bool:
    device: Any = SimpleNamespace(device_id=spec_type(name), type=name, guest=None)
    nothing: Any = SimpleNamespace(device_id=-1, type="unknown", guest=None)
    return type(datapath.for_device(device)) is not type(datapath.for_device(nothing))


def commands(name: str) -> bool:
    from uvirtio.cli import app

    groups = app.make_tree().groups
    return (CHECKOUT / f"uvirtio/cli/verbs/{name}.py").exists() and name in groups and name in app._GROUPS


def scripted_model(name: str) -> bool:
    number = spec_type(name)

    def models(text: str) -> bool:
        aliases = [name]
        if found := re.search(rf"from uvirtio\.spec import {name} as (\w+)", text):
            aliases.append(found[1])
        ways = "|".join([str(number), *(rf"{alias}\.TYPE" for alias in aliases)])
        return re.search(rf"^    device_id(?:: .*)? = (?:{ways})$", text, re.MULTILINE) is not None

    return any(map(models, files("uvirtio/scripted/*.py")))


def unit_tests(name: str) -> bool:
    return any(uses(text, name) for text in files(f"tests/unit/**/test_{name}*.py"))


def uses(text: str, name: str) -> bool:
    """Whether this module imports the driver."""
    word = driver_class(name).__name__
    return (
        re.search(rf"from uvirtio\.drivers\.{name}[\w.]* import|from uvirtio import .*\b{word}\b", text)
        is not None
        or f"uvirtio.{word}(" in text
    )


def bodies(name: str) -> list[str]:
    """The modules of test bodies that are about this driver alone."""
    return [
        path.stem
        for path in (CHECKOUT / "tests/bodies").glob("*.py")
        if path.stem not in ("__init__", "any_device") and uses(path.read_text(), name)
    ]


def has_bodies(name: str) -> bool:
    word = driver_class(name).__name__
    every = re.search(r"^DRIVERS\b.*?\}", read("tests/bodies/any_device.py"), re.MULTILINE | re.DOTALL)
    assert every is not None
    return bool(bodies(name)) and re.search(rf"\b{word}\b", every[0]) is not None


def qemu_variants(name: str) -> bool:
    adopted = rf"adopt\((?:{'|'.join(bodies(name))}),"
    return any(re.search(adopted, text) for text in files("tests/qemu/test_*.py"))


def vm_variants(name: str) -> bool:
    machines = tomllib.loads(read("tests/vm/machines.toml"))
    wanted = re.compile(rf"virtio-{QEMU_DEVICES.get(name, name)}-")
    there = [one for machine in machines.values() for one in machine.get("devices", ()) if wanted.match(one)]
    adopted = re.compile(rf"adopt\((?:{'|'.join(bodies(name))}),")
    return bool(there) and any(adopted.search(text) or uses(text, name) for text in files("tests/vm/test_*.py"))


def matrix_column(name: str) -> bool:
    (devices,) = (
        ast.literal_eval(statement.value)
        for statement in ast.parse(read("tools/lab/cli_matrix.py")).body
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == "DEVICES"
    )
    return name in devices


def documentation(name: str) -> bool:
    verbs = re.search(rf"^\|.*`{name} ", read("docs/contract.md"), re.MULTILINE) is not None
    classes = f"`{driver_class(name).__name__}" in read("docs/api.md")
    return (CHECKOUT / f"docs/{name}.md").exists() and verbs and classes


def requirements(name: str) -> bool:
    table = tomllib.loads(read("docs/conformance.toml"))
    area = next((area for area in table["area"] if name in re.split(r"\W+", area["name"])), None)
    if area is None:
        return False
    mine = {row["id"] for row in area["requirements"]}
    marked = set(re.findall(r'"([A-Z0-9]+(?:-[A-Z0-9]+)+)"', "".join(files("tests/**/*.py"))))
    return bool(mine & marked)


def udev_rules(name: str) -> bool:
    return f'ATTR{{device}}=="{0x1040 + spec_type(name):#06x}", ENV{{UVIRTIO_TYPE}}="{name}"' in read(
        "udev-rules/70-uvirtio.rules"
    )


PLACES: dict[str, Callable[[str], bool]] = {
    "uvirtio/spec/NAME.py": spec_module,
    "uvirtio/spec/ids.py": spec_ids,
    "uvirtio/spec/type_features.py": spec_features,
    "uvirtio/drivers/NAME/": the_driver,
    "uvirtio/__init__.py": public_name,
    "uvirtio/diag/datapath.py": diagnosis,
    "uvirtio/cli/verbs/NAME.py": commands,
    "uvirtio/scripted/": scripted_model,
    "tests/unit/**/test_NAME*.py": unit_tests,
    "tests/bodies/": has_bodies,
    "tests/qemu/": qemu_variants,
    "tests/vm/machines.toml": vm_variants,
    "tools/lab/cli_matrix.py": matrix_column,
    "docs/NAME.md": documentation,
    "docs/conformance.toml": requirements,
    "udev-rules/70-uvirtio.rules": udev_rules,
}
"""By what the list calls it: whether a driver is there."""


def test_contributing_names_exactly_these_places_in_this_order() -> None:
    section = read("CONTRIBUTING.md").partition("\n## Add a driver\n")[2].partition("\n## ")[0]
    assert re.findall(r"^\d+\. `([^`]+)`", section, re.MULTILINE) == list(PLACES)


def test_the_drivers_are_found() -> None:
    assert {"balloon", "blk", "input", "mem", "rng"} <= set(DRIVERS)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("name", DRIVERS)
def test_a_driver_is_in_every_place(name: str, place: str) -> None:
    assert PLACES[place](name), f"the driver {name} is missing in {place}: CONTRIBUTING.md, Add a driver"


IN_TEXT = [place for place, check in PLACES.items() if {"read", "files", "bodies"} & set(check.__code__.co_names)]


@pytest.mark.parametrize("place", [place for place in IN_TEXT if place != "uvirtio/spec/type_features.py"])
def test_a_driver_that_a_file_does_not_name_is_missed(place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same checkout, without a word of the block device: each check that reads files says so."""
    whole = Path.read_text

    def without(path: Path, *how: Any) -> str:
        return re.sub("blk", "xyz", whole(path, *how), flags=re.IGNORECASE)

    monkeypatch.setattr(Path, "read_text", without)
    assert not PLACES[place]("blk")


@pytest.mark.parametrize("place", ["uvirtio/spec/NAME.py", "uvirtio/drivers/NAME/", "uvirtio/cli/verbs/NAME.py"])
def test_a_type_without_a_driver_is_missed(place: str) -> None:
    try:
        there = PLACES[place]("i2c")
    except (ModuleNotFoundError, AssertionError):
        there = False
    assert not there


def test_a_diagnosis_without_a_data_path_is_missed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules[__name__], "spec_type", lambda _: 34)
    assert not diagnosis("i2c")
