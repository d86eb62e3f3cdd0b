"""docs/api.md is the public surface, no more and no less: a public name without a line there fails."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

import uvirtio
from uvirtio import device, errors, qemu
from uvirtio.drivers import base

CHECKOUT = next(path for path in Path(__file__).resolve().parents if (path / "pyproject.toml").exists())
PAGE = (CHECKOUT / "docs/api.md").read_text()
CODE = re.compile(r"`([^`]+)`")

CLASSES: dict[str, type] = {
    "Device": uvirtio.Device,
    "Queue": device.Queue,
    "QueueSpec": device.QueueSpec,
    "Driver": base.Driver,
    "Balloon": uvirtio.Balloon,
    "Mem": uvirtio.Mem,
    "Input": uvirtio.Input,
    "Rng": uvirtio.Rng,
    "Blk": uvirtio.Blk,
    "Scsi": uvirtio.Scsi,
    "Machine": qemu.Machine,
}


def section(heading: str) -> str:
    """The text below a heading, up to the next one of any level."""
    found = re.search(rf"^#+ {re.escape(heading)}\n(.*?)(?=^#+ |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    assert found is not None, f"docs/api.md has no section {heading}"
    return found[1]


def rows(text: str) -> list[tuple[str, str]]:
    """The first two cells of each row of the table in ``text``."""
    cells = [line.strip("|").split(" | ") for line in text.splitlines() if line.startswith("| `")]
    return [(line[0].strip(), line[1].strip()) for line in cells]


def names(text: str) -> set[str]:
    return {name.removesuffix("()") for name in CODE.findall(text)}


def members(cls: type) -> set[str]:
    """The public names of a class: what it defines, and what its methods assign to ``self``."""
    found: set[str] = set()
    for one in cls.__mro__:
        if not one.__module__.startswith("uvirtio"):
            continue
        found |= {*vars(one), *getattr(one, "__annotations__", {})}
        for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(one)))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
                owner = node.value
                if isinstance(owner, ast.Name) and owner.id == "self":
                    found.add(node.attr)
    return {name for name in found if not name.startswith("_")}


# --- the package ------------------------------------------------------------------------------------------------


def documented() -> set[str]:
    """What the page says that ``import uvirtio`` gives."""
    found = {name for cell, _ in rows(section("`import uvirtio`")) for name in names(cell)}
    assert all(name.startswith("uvirtio.") for name in found)
    return {name.removeprefix("uvirtio.") for name in found}


def test_every_public_name_of_the_package_has_a_line() -> None:
    assert documented() == set(uvirtio.__all__) - set(errors.__all__)
    for name in uvirtio.__all__:
        getattr(uvirtio, name)


def test_every_error_is_in_the_page_of_errors() -> None:
    table = (CHECKOUT / "docs/errors.md").read_text().partition("## Every class")[2]
    assert names("".join(cell for cell, _ in rows(table))) == set(errors.__all__)


def test_the_keywords_of_open_are_named() -> None:
    (meaning,) = (text for cell, text in rows(section("`import uvirtio`")) if cell == "`uvirtio.OpenOptions`")
    assert names(meaning) == set(uvirtio.OpenOptions._fields)
    assert set(inspect.signature(uvirtio.open).parameters) == {"address", "options", "keywords"}


def test_the_page_of_machines_names_the_parameters_as_they_are() -> None:
    """Those of ``Machine`` and of its methods in docs/testing.md can be given by name."""
    page = (CHECKOUT / "docs/testing.md").read_text().partition("## Machine\n")[2].partition("\n## ")[0]
    calls = dict(re.findall(r"`(\w+)\(([^()`]*)\)`", page.replace("=()", "")))
    assert {"Machine", "open", "plug", "unplug", "function", "qmp", "qmp_events"} <= set(calls)
    for name in ("Machine", "open", "plug", "unplug", "function", "qmp", "qmp_events"):
        call = qemu.Machine if name == "Machine" else getattr(qemu.Machine, name)
        told = {word.strip(" *\n").partition("=")[0] for word in calls[name].split(",")} - {""}
        assert told and told <= set(inspect.signature(call).parameters), name


# --- modules ----------------------------------------------------------------------------------------------------

MODULES = [row for row in rows(section("Modules beside it")) if row[0] != "`uvirtio.spec`"]


@pytest.mark.parametrize(("cell", "told"), MODULES, ids=lambda text: str(text).strip("`")[:40])
def test_a_module_has_the_names_that_the_page_gives_it(cell: str, told: str) -> None:
    module: Any = import_module(cell.strip("`"))
    listed = names(re.sub(r"\(\[.*", "", told)) - {"Device"} | ({"Device"} if hasattr(module, "Device") else set())
    for name in listed:
        assert hasattr(module, name), f"{cell} has no {name}"
    if hasattr(module, "__all__"):
        assert listed == set(module.__all__)
    elif module.__name__.startswith("uvirtio.interfaces."):
        own = {name for name, thing in vars(module).items() if getattr(thing, "__module__", "") == module.__name__}
        assert {name for name in own if not name.startswith("_")} <= listed


def test_every_package_of_a_driver_is_there() -> None:
    drivers = {f"`uvirtio.drivers.{path.parent.name}`" for path in CHECKOUT.glob("uvirtio/drivers/*/__init__.py")}
    assert drivers <= {cell for cell, _ in MODULES}


# --- members ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CLASSES)
def test_every_public_member_of_a_class_is_stable_or_said_not_to_be(name: str) -> None:
    text = section(f"`{name}`")
    stable = {one for cell, _ in rows(text) for one in names(cell)}
    unstable = names(text.partition("*Not stable:*")[2])
    inherited = members(base.Driver) if name != "Driver" and issubclass(CLASSES[name], base.Driver) else set()
    assert not stable & unstable
    assert stable | unstable == members(CLASSES[name]) - (inherited - stable)


def test_the_hooks_of_a_driver_are_those_of_the_class() -> None:
    hooks = {name for name in vars(base.Driver) if name.startswith("_") and not name.startswith("__")}
    assert {name for name in names(section("`Driver`")) if name.startswith("_")} == hooks
