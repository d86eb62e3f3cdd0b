"""``uvirtio features``: the meaning of the bits of a feature word. It needs no device."""

from __future__ import annotations

from typing import Annotated

from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, FromOption, verb
from uvirtio.cli.verbs.list import device_type
from uvirtio.errors import UsageError


def register(app: typer.Typer) -> None:
    """Add ``features`` to the application."""
    verb(app, "features")(features)


def features(
    cmd: Command,
    kind: Annotated[
        str, typer.Argument(metavar="[TYPE]", help="balloon, net, blk, ...; with -F a device in FILE.")
    ] = "",
    word: Annotated[
        str, typer.Argument(metavar="[WORD]", help="0x..., 0b..., decimal, or the 64 zeros and ones of sysfs.")
    ] = "",
    file: FromOption = "",
) -> None:
    """Decode the bits of a raw feature word, or those in a dump."""
    if file:
        from uvirtio.cli.verbs.from_file import features_file

        if word:
            raise UsageError("-F takes the words from the file", seen=word, expected="features -F FILE [DEV]")
        features_file(cmd, file, kind)
        return
    if not kind or not word:
        raise UsageError("a type and a word are needed", expected="features TYPE WORD, or features -F FILE [DEV]")
    from uvirtio.spec import features as f
    from uvirtio.spec import field_bits

    device_id, name = device_type(kind)
    value = parse_word(word)
    found = f.names(name, value)
    met = {one.bit: field for one in found if (field := field_bits.lookup(name, one.bit)) is not None}
    broken = f.unmet(value, f.dependencies(name))
    if cmd.json:
        cmd.document(
            type=name,
            device_id=device_id,
            word=value,
            bits=[
                {
                    "bit": one.bit,
                    "name": one.name if one.known else None,
                    "spec": one.section,
                    "kind": one.kind.value,
                    "field": met[one.bit].as_dict() if one.bit in met else None,
                }
                for one in found
            ],
            unknown=[one.bit for one in found if not one.known],
            unmet=[{"bit": one.bit, "any_of": list(one.any_of)} for one in broken],
        )
        return
    cmd.line(f"{name} {value:#x}")
    cmd.table(
        ("BIT", "NAME", "KIND", "SECTION"),
        [(str(one.bit), one.name if one.known else "?", one.kind.value, one.section) for one in found],
    )
    for number, field in met.items():
        cmd.line(
            f"bit {number} is not in the standard; met in the field: {field.name}: {field.about} ({field.source})"
        )
    for rule in broken:
        cmd.line(f"{f.feature(name, rule.bit).name} needs {f.needed(name, rule)}, which is not set (2.2.1)")


_ROW_OF_BITS = 64  # what the kernel prints in virtioN/features, lowest bit first


def parse_word(text: str) -> int:
    """A feature word of up to 128 bits.

    Args:
        text: A number; or a row of 64 or 128 zeros and ones as sysfs prints it: bit 0 first.

    Raises:
        UsageError: It is neither, or has more than 128 bits.
    """
    from uvirtio.spec.features import MAX_BITS

    plain = text.strip()
    if len(plain) in (_ROW_OF_BITS, 2 * _ROW_OF_BITS) and set(plain) <= {"0", "1"}:
        return int(plain[::-1], 2)
    try:
        value = int(plain, 0) if len(plain) <= 200 else -1  # a longer one cannot fit, and is slow to parse
    except ValueError:
        value = -1
    if not 0 <= value < 1 << MAX_BITS:
        raise UsageError(
            f"{text[:60]!r} is not a feature word",
            seen=text[:200],
            expected=f"0 to 2^{MAX_BITS} - 1: 0x130000022, 0b1010, decimal, or a row of 64 zeros and ones",
        )
    return value
