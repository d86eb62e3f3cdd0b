"""Candidates for a word of the command line, by the table of verbs and by sysfs."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

from uvirtio.cli.completion import table

if TYPE_CHECKING:
    from uvirtio.binding.discover import DiscoveredDevice
    from uvirtio.host.roots import Roots

Candidate = tuple[str, str]
"""A value and its description."""

# What no shell has to quote. Some names come from the device, so nothing else is offered.
_PLAIN = re.compile(r"[\w./:@,=+-]+", re.ASCII)


def complete(words: list[str]) -> tuple[str, list[Candidate]]:
    """The candidates for the last word.

    Args:
        words: The words after ``uvirtio``, up to the cursor.

    Returns:
        The kind of the answer (``words``, ``files``, ``dirs``), and the candidates.
    """
    place = _Place(words)
    kind, prefix, found = place.look()
    current = words[-1]
    seen: dict[str, str] = {}
    for value, what in found:
        whole = prefix + value
        if whole.startswith(current) and _PLAIN.fullmatch(whole):
            seen.setdefault(whole, " ".join(what.split()))
    return kind, list(seen.items())


class _Place:
    """The cursor position: the verb so far, the arguments before it, the option that takes a value."""

    def __init__(self, words: list[str]) -> None:
        *before, self.current = words
        self.verb = ""
        self.arguments: list[str] = []
        self.values: dict[str, str] = {}
        self.awaited = ""
        self.used: set[str] = set()
        self.only_arguments = False
        for word in before:
            self._pass(word)

    @property
    def options(self) -> dict[str, tuple[str, str]]:
        """The options that may be typed here: name -> (metavar, help); no metavar: a flag."""
        if self.verb in table.VERBS:
            return table.VERBS[self.verb][2]
        return {**table.COMMON, **table.OPENING} if self.verb else {**table.TOP, **table.COMMON, **table.OPENING}

    def _pass(self, word: str) -> None:
        """Process one word before the cursor."""
        if self.awaited:
            self.values[self.awaited], self.awaited = word, ""
        elif not self.only_arguments and word == "--":
            self.only_arguments = True
        elif not self.only_arguments and len(word) > 1 and word.startswith("-"):
            name, equals, value = word.partition("=")
            self.used.add(name)
            if equals:
                self.values[name] = value
            elif name in table.HIDDEN or self.options.get(name, ("", ""))[0]:
                self.awaited = name
        elif self.verb in table.VERBS or (self.verb and self.verb not in table.GROUPS):
            self.arguments.append(word)
        else:
            self.verb = f"{self.verb} {word}".strip()

    def look(self) -> tuple[str, str, Iterable[Candidate]]:
        """The kind of the answer, the prefix of each value within the word, and the values."""
        if self.awaited:
            return self._values(self.awaited, "")
        if self.current.startswith("-") and not self.only_arguments:
            name, equals, _ = self.current.partition("=")
            if equals:
                return self._values(name, f"{name}=")
            unused = (name for name in self.options if name not in self.used or name in table.REPEATABLE)
            return "words", "", [(name, self.options[name][1]) for name in unused]
        if self.verb in table.VERBS:
            return self._argument()
        if not self.verb:
            tops = {**{verb: entry[0] for verb, entry in table.VERBS.items() if " " not in verb}, **table.GROUPS}
            return "words", "", tops.items()
        group = f"{self.verb} "
        below = (
            (verb.removeprefix(group), entry[0]) for verb, entry in table.VERBS.items() if verb.startswith(group)
        )
        return "words", "", below

    def _argument(self) -> tuple[str, str, Iterable[Candidate]]:
        metavars = table.VERBS[self.verb][1]
        if len(self.arguments) < len(metavars):
            metavar = metavars[len(self.arguments)]
        elif metavars and metavars[-1].strip("[]").endswith("..."):
            metavar = metavars[-1]
        else:
            return "words", "", []
        return self._source(metavar.strip("[]").removesuffix("..."), "")

    def _values(self, option: str, prefix: str) -> tuple[str, str, Iterable[Candidate]]:
        metavar = self.options.get(option, ("", ""))[0]
        return self._source(f"{option} {metavar}", prefix)

    def _source(self, what: str, prefix: str) -> tuple[str, str, Iterable[Candidate]]:
        metavar = what.rpartition(" ")[2]
        if metavar in ("FILE", "DIR"):
            # The shell completes files by whole words; most do after --output=, too.
            return ("files" if metavar == "FILE" else "dirs"), "", []
        if "|" in metavar:
            return "words", prefix, [(value, "") for value in metavar.strip("[]").split("|")]
        source = _SOURCES.get(f"{self.verb} {what}") or _SOURCES.get(what)
        return "words", prefix, source(self) if source is not None else []


# --- devices ------------------------------------------------------------------------------------------------


def _devices(place: _Place) -> Iterator[Candidate]:
    """Addresses of devices, other names of them where the verb accepts those, and qemu: addresses."""
    group = place.verb.partition(" ")[0]
    kind = group if group in table.GROUPS else ""
    if place.verb == "input replay":
        yield "-", "the device that FILE describes"
    if "--forget" in place.used:  # whatever has the device now
        yield from _journaled(place)
        return
    found = [device for device in _scan(place) if not kind or device.type in (kind, "unknown")]
    if place.verb == "restore":  # None: bind only unbinds a virtio-mmio window
        found = [device for device in found if device.driver is None or device.for_user_space]
    fresh = [device for device in found if device.address not in place.arguments]
    yield from ((device.address, _about(device)) for device in fresh)
    if place.current and not any(device.address.startswith(place.current) for device in fresh):
        # Only where no address fits: 00:03.0 beside 0000:00:03.0 would stop both from being completed.
        for device in fresh:
            yield from (
                (name, f"{device.address}, {_about(device)}") for name in _other_names(place, device, found)
            )
    if "--timeout" in place.options:  # the verbs that open the device; the others read sysfs
        yield from _qemu(place.current, kind)
        yield from _scripted(place.current, kind)
    if "--timeout" in place.options or place.verb == "inspect":  # which asks a back end
        yield from _vhost_user(place.current, kind)


_ALIASED = ("inspect", "plan")
"""The verbs that accept ``virtio3``, and a type that only one device has."""


def _roots(place: _Place) -> Roots:
    from uvirtio.host.roots import Roots

    root = place.values.get("--root")
    return Roots.under(root) if root else Roots()


def _scan(place: _Place) -> list[DiscoveredDevice]:
    from uvirtio.binding.discover import scan

    return scan(_roots(place))


def _journaled(place: _Place) -> Iterator[Candidate]:
    from uvirtio.binding import journal

    for entry in journal.entries(_roots(place)):
        for device in entry.devices:
            if device.address not in place.arguments:
                yield device.address, f"{device.type}, {device.driver or 'no driver'} before bind"


def _about(device: DiscoveredDevice) -> str:
    return f"{device.type}, {device.driver or 'no driver'}"


def _other_names(place: _Place, device: DiscoveredDevice, found: list[DiscoveredDevice]) -> Iterator[str]:
    from uvirtio.host.names import names_of

    if device.bus == "pci":
        yield device.address.removeprefix("0000:")
    elif device.bus == "vdpa":
        yield device.key
    else:
        yield device.name
    yield from names_of(device.path, _roots(place))
    if place.verb in _ALIASED:
        if device.virtio_name:
            yield device.virtio_name
        if sum(one.type == device.type for one in found) == 1:
            yield device.type


_NONE = ("mem-device",)
"""The memory device has no address over virtio-mmio, and is refused there."""


def _qemu(current: str, kind: str) -> Iterator[Candidate]:
    """One part at a time: ``qemu:``, then machines and devices, then the keys of a machine."""
    if not current.startswith("qemu:"):
        yield "qemu:", "a device of QEMU's, without a guest"
        return
    machine, slash, _ = current.partition("/")
    machine, comma, keys = machine.removeprefix("qemu:").partition(",")
    if comma and not slash:
        done = "".join(f"{key}," for key in keys.split(",")[:-1])
        yield from ((f"qemu:{machine},{done}{key}", what) for key, what in table.QEMU_KEYS.items())
        return
    suffixes = table.QEMU_MACHINES.get(machine, ()) if slash else ("pci",)
    before = current[: current.index("/") + 1] if slash else "qemu:"
    for type_name, models in table.QEMU_DEVICES.items():
        if kind in ("", type_name):
            names = [
                f"{model}-{suffix}" for suffix in suffixes for model in models if f"{model}-{suffix}" not in _NONE
            ]
            yield from ((f"{before}virtio-{name}", f"{type_name} of QEMU") for name in names)
    if not slash:
        yield from ((f"qemu:{name}/", "machine") for name in table.QEMU_MACHINES)


def _scripted(current: str, kind: str) -> Iterator[Candidate]:
    """``scripted:``, then the types, then the switches of a type."""
    if not current.startswith("scripted:"):
        yield "scripted:", "a device made of Python, with faults at will"
        return
    from uvirtio.scripted import address

    before, comma, _ = current.rpartition(",")
    if not comma:
        yield from ((f"scripted:{name}", "") for name in address.TYPES if kind in ("", name))
        return
    type_name = before.removeprefix("scripted:").partition(",")[0]
    if type_name in address.TYPES:
        for switch in address.switches(type_name).values():
            yield f"{before},{switch.name}{'=' * bool(switch.value)}", switch.help


_NO_BACK_END = ("balloon", "mem")
"""The types of this package's drivers of which there is no vhost-user back end."""


def _vhost_user(current: str, kind: str) -> Iterator[Candidate]:
    """``vhost-user:``, then the types and ``qsd/``, then sockets, or files and the keys of ``qsd``."""
    prefix = "vhost-user:"
    if kind in _NO_BACK_END:
        return
    if not current.startswith(prefix):
        yield prefix, "a device of another program"
        return
    rest = current.removeprefix(prefix)
    if rest.startswith(("qsd/", "qsd,")) and kind in ("", "blk"):
        from uvirtio.backends.vhost_user.address import QSD_KEYS, end_of_keys

        at = end_of_keys(rest)
        begun, binary, value = rest.partition(",binary=")
        if at is not None or (binary and "," not in value):
            start = len(begun + binary) if at is None else at + 1
            yield from ((f"{prefix}{rest[:start]}{path}", "") for path in _paths(rest[start:], sockets=False))
            return
        done = rest.rpartition(",")[0]
        yield from ((f"{prefix}{done},{key}", what) for key, what in QSD_KEYS.items())
        return
    type_name, colon, typed = rest.partition(":")
    head, comma, _ = rest.rpartition(",")
    if comma and not colon:
        from uvirtio.backends.vhost_user.fields import KEYS
        from uvirtio.spec import ids

        for key, field in KEYS.items():
            if ids.type_name(field.device_id) == head:
                yield f"{prefix}{head},{key}=", field.help
        yield f"{prefix}{head},exec=", "a command that starts the back end"
        return
    if colon:
        yield from ((f"{prefix}{type_name}:{path}", "") for path in _paths(typed, sockets=True))
        return
    if kind in ("", "blk"):
        yield f"{prefix}qsd/", "a disk image, by qemu-storage-daemon"
    yield from (
        (f"{prefix}{name}:", "") for name in table.TYPES if kind in ("", name) and name not in _NO_BACK_END
    )


def _paths(typed: str, *, sockets: bool) -> Iterator[str]:
    """The folders that fit, with a slash, and the sockets or the other files."""
    from pathlib import Path

    before, slash, _ = typed.rpartition("/")
    try:
        found = sorted(Path(before + slash or ".").iterdir())
        for path in found:
            if path.is_dir():
                yield f"{before}{slash}{path.name}/"
            elif path.is_socket() is sockets:
                yield f"{before}{slash}{path.name}"
    except OSError:
        return


# --- other words ----------------------------------------------------------------------------------------------


def _types(place: _Place) -> Iterable[Candidate]:
    del place
    return table.TYPES.items()


def _rules(place: _Place) -> Iterable[Candidate]:
    del place
    return table.RULES.items()


def _leds(place: _Place) -> Iterator[Candidate]:
    for name in table.LEDS:
        if place.current.islower():
            yield name.removeprefix("LED_").lower(), name
        else:
            yield name, ""


def _drivers(place: _Place) -> Iterable[Candidate]:
    del place
    from uvirtio.host.drivers import UIO, VDPA, VFIO

    return [(VFIO, "needs an IOMMU"), (UIO, "without an IOMMU"), (VDPA, "for vDPA devices")]


def _users(place: _Place) -> Iterator[Candidate]:
    del place
    import pwd

    yield from ((user.pw_name, user.pw_gecos.partition(",")[0]) for user in pwd.getpwall())


def _explained(place: _Place) -> Iterator[Candidate]:
    """What ``explain`` has pages about."""
    from uvirtio.evidence.explain import pages

    for kind, about in (("error", "error code"), ("cause", "cause"), ("step", "step of diag")):
        if kind != "error" or not place.current.islower():
            yield from ((name, about) for name in pages()[kind] if " " not in name)
    yield from _types(place)


_SOURCES: dict[str, Callable[[_Place], Iterable[Candidate]]] = {
    "DEV": _devices,
    "A": _devices,
    "B": _devices,
    "TYPE": _types,
    "WHAT": _explained,
    "--force RULE": _rules,
    "balloon inflate --force RULE": lambda _: [("free-memory", "the floor of free memory")],
    "LED": _leds,
    "--backend NAME": lambda _: [(name, "") for name in table.BACKENDS],
    "--driver NAME": _drivers,
    "--owner USER[:GROUP]": _users,
    "--show-completion SHELL": lambda _: [(name, "") for name in table.SHELLS],
    "--install-completion SHELL": lambda _: [(name, "") for name in table.SHELLS],
}
