"""What a feature word, a status byte, an error code, a cause or a step of diag means, and what to do about it."""

from __future__ import annotations

import difflib
import inspect
import re
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from importlib import resources
from typing import Any, Final, Literal

from uvirtio import errors
from uvirtio.errors import UsageError, UvirtioError
from uvirtio.spec import features as f
from uvirtio.spec import field_bits, ids
from uvirtio.spec.status import Status

KINDS: Final = "an error code (UV-...), a cause or a step of diag, a status byte, a feature bit, or TYPE WORD"
"""What there are pages about."""

Kind = Literal["error", "cause", "step", "status", "features", "feature"]


@dataclass(frozen=True, slots=True)
class Page:
    """The explanation of one thing."""

    kind: Kind
    name: str
    means: str
    section: str = ""
    """Of virtio 1.4, where it is about one."""
    causes: tuple[str, ...] = ()
    """What it comes from as a rule, the likeliest first."""
    next: tuple[str, ...] = ()
    """What to do."""
    parts: tuple[tuple[str, str], ...] = ()
    """What it is made of: bits with their meanings."""
    exit_code: int | None = None

    def as_dict(self) -> dict[str, Any]:
        """The page, for JSON."""
        return {
            "kind": self.kind,
            "name": self.name,
            "means": self.means,
            "section": self.section,
            "causes": [*self.causes],
            "next": [*self.next],
            "parts": [{"name": name, "means": means} for name, means in self.parts],
            "exit_code": self.exit_code,
        }


@lru_cache(maxsize=1)
def pages() -> dict[str, dict[str, dict[str, Any]]]:
    """The contents of ``pages.toml``: ``error``, ``cause``, ``step``, and ``feature`` by type; each by name."""
    text = (resources.files("uvirtio.evidence") / "pages.toml").read_text(encoding="utf-8")
    return tomllib.loads(text)


def explain(word: str, second: str = "") -> list[Page]:
    """Everything that has this name.

    Args:
        word: An error code (``UV-DEV-QUEUE``) or the name of its class, a cause or a step of diag, a status byte,
            a feature word, the name of a feature bit; a device type, where a word follows.
        second: A feature word, or a bit of it.

    Raises:
        UsageError: Nothing has it; ``expected`` has names that are like it.
    """
    if second:
        return [_features(word, second)]
    plain = word.strip()
    found = [*_errors(plain), *_named("cause", plain), *_named("step", plain)]
    if (value := _number(plain)) is not None:
        found.append(_status(value) if value <= 0xFF else _features("", plain))
    found.extend(_feature_names(plain))
    if found:
        return found
    every = [*_codes(), *pages()["cause"], *pages()["step"]]
    near = dict.fromkeys(
        name for text in (plain.upper(), plain.lower()) for name in difflib.get_close_matches(text, every, 3, 0.6)
    )
    raise UsageError(
        f"nothing here is called {plain[:60]!r}",
        seen=word[:60],
        expected=f"like it: {', '.join(near)}" if near else KINDS,
        remedy="uvirtio explain --all lists every name",
    )


def everything() -> list[Page]:
    """The page of every error code, cause and step."""
    return [
        *(page for code in _codes() for page in _errors(code)),
        *(page for kind in ("cause", "step") for name in pages()[kind] for page in _named(kind, name)),
    ]


# --- error codes, causes, steps ---------------------------------------------------------------------------------


def _family(base: type[UvirtioError] = UvirtioError) -> Iterator[type[UvirtioError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == errors.__name__:
            yield from _family(child)


@lru_cache(maxsize=1)
def _classes() -> dict[str, type[UvirtioError]]:
    return {kind.code: kind for kind in _family()}


def _codes() -> list[str]:
    return list(pages()["error"])


def _errors(name: str) -> Iterator[Page]:
    code = name.upper()
    if f"UV-{code}" in pages()["error"]:  # as diag calls the cause that is an error's own
        code = f"UV-{code}"
    if code not in pages()["error"]:
        code = next((code for code, kind in _classes().items() if kind.__name__.lower() == name.lower()), "")
    if code not in pages()["error"]:
        return
    given = pages()["error"][code]
    kind = _classes().get(code)
    means = given.get("means") or " ".join((inspect.getdoc(kind) or "").partition("\n\n")[0].split())
    yield Page(
        "error",
        code,
        means,
        given.get("section", ""),
        tuple(given["causes"]),
        tuple(given["next"]),
        exit_code=1 if kind is None else kind.exit_code,
    )


def _named(kind: str, name: str) -> Iterator[Page]:
    for wanted in dict.fromkeys((name.lower(), name.lower().replace("-", " "), name.lower().replace("_", " "))):
        given = pages()[kind].get(wanted)
        if given is not None:
            made: Kind = "cause" if kind == "cause" else "step"
            section = given.get("section", "")
            yield Page(made, wanted, given["means"], section, tuple(given["causes"]), tuple(given["next"]))
            return


# --- status and features ----------------------------------------------------------------------------------------

_STATUS: Final = {
    Status.ACKNOWLEDGE: "the driver has found the device",
    Status.DRIVER: "the driver knows how to drive it",
    Status.DRIVER_OK: "the driver is set up; the device is live",
    Status.FEATURES_OK: "the features are negotiated, and the device accepts them",
    Status.SUSPEND: "the device is suspended, or asked to be (3.4)",
    Status.DEVICE_NEEDS_RESET: "the device failed, and works again only after a reset",
    Status.FAILED: "the driver gave up",
}


def _number(text: str) -> int | None:
    if not re.fullmatch(r"(0[xX][0-9a-fA-F]{1,32}|0[bB][01]{1,128}|[0-9]{1,39})", text):
        return None
    try:
        value = int(text, 0)
    except ValueError:  # a leading zero
        return None
    return value if value <= f.ALL else None


def _status(value: int) -> Page:
    """A status byte (2.1)."""
    parts = []
    for shift in range(8):
        bit = 1 << shift
        if value & bit:
            known = Status(bit) if bit in Status.__members__.values() else None
            parts.append((known.name or "" if known else f"{bit:#x}", _STATUS[known] if known else "not defined"))
    if value == 0xFF:
        means = "All ones: as a rule the registers do not answer at all, and no device set this."
        return Page("status", "0xff", means, "2.1", _GONE, ("uvirtio diag DEV tells these apart",), tuple(parts))
    return Page("status", f"{value:#04x}", _stage(value), "2.1, 3.1.1", *_of_stage(value), tuple(parts))


_GONE: Final = (
    "memory decoding is off",
    "the function is in power state D3",
    "a BAR in the wrong place",
    "unplugged",
)


def _stage(value: int) -> str:
    if value == 0:
        return "Reset: the device is in its first state, or a reset is complete (2.4)."
    if value & Status.DEVICE_NEEDS_RESET:
        return "The device met an error that it cannot recover from (2.1.1)."
    if value & Status.FAILED:
        return "The driver gave up on the device."
    if value & Status.DRIVER_OK:
        live = (
            "The device is live" if value & Status.FEATURES_OK else "The device is live, by the legacy interface"
        )
        return f"{live}, and suspended (3.4)." if value & Status.SUSPEND else f"{live}."
    if value & Status.FEATURES_OK:
        return "Features are negotiated; queues are being set up, and DRIVER_OK comes next (3.1.1)."
    if value & Status.DRIVER:
        return "The driver negotiates features; FEATURES_OK comes next (3.1.1)."
    if value & Status.ACKNOWLEDGE:
        return "The device was found; DRIVER comes next (3.1.1)."
    return "Bits that follow none of the states of 3.1.1."


def _of_stage(value: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Likely causes and the next step for a device that stays in this state."""
    if value & Status.DEVICE_NEEDS_RESET:
        return _page_of("UV-DEV-NEEDS-RESET")
    if value & Status.FAILED:
        return ("bring-up failed after this bit's neighbours were set",), (
            "uvirtio diag DEV says which step fails",
        )
    if value & Status.DRIVER_OK or value == 0:
        return (), ()
    if value & Status.FEATURES_OK or not value & Status.DRIVER:
        return ("the driver stopped here, or is at it",), ("uvirtio diag DEV",)
    return _page_of("UV-DEV-FEATURES")


def _page_of(code: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    given = pages()["error"][code]
    return tuple(given["causes"]), tuple(given["next"])


def _features(type_name: str, word: str) -> Page:
    """A feature word of a type; without one, the bits that every type has."""
    name = ids.type_name(ids.require_type(type_name)) if type_name else ""
    value = _number(word.strip())
    if value is None:
        number = f.numbered(name, word)
        if number is None:
            raise UsageError(
                f"{word[:60]!r} is neither a feature word nor a bit of {name}",
                seen=word[:60],
                expected="0x130000022, or the name of a bit",
                remedy=f"uvirtio features {name} WORD",
            )
        return _feature(name, number)
    parts = []
    for bit in f.names(name, value):
        label = f"{bit.name} ({bit.bit})" if bit.known else f"bit {bit.bit}"
        parts.append((label, _about(name, bit)))
    broken = f.unmet(value, f.dependencies(name))
    causes = tuple(
        f"{f.feature(name, rule.bit).name} needs {f.needed(name, rule)}, which is not set (2.2.1)"
        for rule in broken
    )
    kind = f"a virtio-{name} device" if name else "a device whose type was not given"
    means = f"The feature word of {kind}: {len(parts)} bits."
    after = () if name else ("uvirtio explain TYPE WORD names the bits of the type, too",)
    return Page("features", f"{value:#x}", means, "2.2, 6", causes, after, tuple(parts))


def _about(name: str, bit: f.FeatureBit) -> str:
    if bit.known:
        where = f" ({bit.section})" if bit.section else ""
        return _meaning(name, bit) + where
    met = field_bits.lookup(name, bit.bit)
    return "not in the standard" if met is None else f"not in the standard: {met.name}, {met.about}"


def _meaning(name: str, bit: f.FeatureBit) -> str:
    family = pages()["feature"]
    return str(family.get(name, {}).get(bit.name) or family["every"].get(bit.name, ""))


@lru_cache(maxsize=1)
def _bits_by_name() -> dict[str, list[tuple[str, int]]]:
    """Each name of a bit, with the types that have it; a bit of every device under one of them."""
    made: dict[str, list[tuple[str, int]]] = {}
    for name, (family, _) in f.DEVICE_BITS.items():
        for own in family:
            made.setdefault(own.name, []).append((name, own.value))
    for reserved in f.Reserved:
        made.setdefault(reserved.name, []).append((ids.TYPES[0].name, reserved.value))
    return made


def _feature_names(text: str) -> Iterator[Page]:
    """The pages of a bit by its name, for each type that has one."""
    plain = re.sub(r"^VIRTIO_(?:[A-Z0-9]+_)?F_", "", text.upper().replace("-", "_"))
    for name, number in _bits_by_name().get(plain, ()):
        yield _feature(name, number)


def _feature(name: str, number: int) -> Page:
    bit = f.feature(name, number)
    own = bit.kind is f.Kind.DEVICE
    needs = [rule for rule in f.dependencies(name) if rule.bit == number]
    parts = tuple(("needs", f.needed(name, rule)) for rule in needs)
    where = f"virtio-{name}" if own else "every device"
    return Page(
        "feature",
        bit.name,
        f"Bit {number} of {where}: {_meaning(name, bit) or 'not in the standard'}.",
        bit.section,
        (),
        (f"withhold it: --without {bit.name}",) if bit.known else (),
        parts,
    )
