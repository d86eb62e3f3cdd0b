"""``uvirtio input``: what a keyboard, mouse or tablet can do, and what it sends."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated, Any

import typer

from uvirtio.cli.common import DevArgument, Run, seconds, verb
from uvirtio.errors import UsageError

if TYPE_CHECKING:
    from uvirtio.drivers.input import Input, InputEvent


def register(app: typer.Typer) -> None:
    group = typer.Typer(help="Keyboards, mice and tablets.")
    app.add_typer(group, name="input")
    verb(group, "info", group="input", opens=True)(info)
    verb(group, "events", group="input", opens=True, streams=True)(events)


def info(run: Run, dev: DevArgument) -> None:
    """What the device is and which events it can send."""
    from uvirtio.drivers.input import Input

    with run.device(dev) as device, Input(device) as driver:
        found = _info(driver)
        if run.json:
            run.document(address=device.address, **found)
        else:
            _print_info(run, found)


def _info(driver: Input) -> dict[str, Any]:
    from uvirtio.spec import input as spec

    ids = driver.ids
    kinds = driver.event_types()
    axes = {axis: driver.absinfo(axis) for axis in sorted(kinds.get(spec.EV_ABS, ()))}
    return {
        "name": driver.name,
        "serial": driver.serial,
        "ids": None
        if ids is None
        else {
            "bustype": ids.bustype,
            "bus": spec.bus_name(ids.bustype),
            "vendor": ids.vendor,
            "product": ids.product,
            "version": ids.version,
        },
        "properties": [{"property": one, "name": spec.prop_name(one)} for one in sorted(driver.properties())],
        "events": [
            {
                "type": kind,
                "name": spec.type_name(kind),
                "codes": [{"code": code, "name": spec.code_name(kind, code)} for code in sorted(codes)],
            }
            for kind, codes in sorted(kinds.items())
        ],
        "axes": [
            {
                "code": axis,
                "name": spec.code_name(spec.EV_ABS, axis),
                "min": one.minimum,
                "max": one.maximum,
                "fuzz": one.fuzz,
                "flat": one.flat,
                "resolution": one.resolution,
            }
            for axis, one in axes.items()
            if one is not None
        ],
    }


def _print_info(run: Run, found: dict[str, Any]) -> None:
    ids = found["ids"]
    run.fields(
        [
            ("name", found["name"]),
            ("serial", found["serial"] or "none"),
            (
                "ids",
                "none"
                if ids is None
                else f"{ids['bus']}, vendor {ids['vendor']:#06x}, product {ids['product']:#06x}, "
                f"version {ids['version']:#06x}",
            ),
            ("properties", ", ".join(one["name"] for one in found["properties"]) or "none"),
        ]
    )
    for kind in found["events"]:
        run.line(f"event type {kind['type']} ({kind['name']})")
        for code in kind["codes"]:
            run.line(f"  code {code['code']} ({code['name']})")
    for axis in found["axes"]:
        run.line(
            f"axis {axis['name']}: {axis['min']} to {axis['max']}, fuzz {axis['fuzz']}, "
            f"flat {axis['flat']}, resolution {axis['resolution']}"
        )


def events(
    run: Run,
    dev: DevArgument,
    for_seconds: Annotated[
        float | None, typer.Option("--for", metavar="SECONDS", help="Stop after this long.")
    ] = None,
    count: Annotated[
        int | None, typer.Option("--count", metavar="N", help="Stop after N events, SYN_REPORT included.")
    ] = None,
) -> None:
    """Print the events as they come, until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    if count is not None and count < 1:
        raise UsageError("--count takes a number above 0", seen=count, expected="1 or more")
    from uvirtio.drivers.input import Input

    with run.device(dev) as device, Input(device) as driver:
        deadline = None if for_seconds is None else time.monotonic() + for_seconds
        if not run.json:
            run.line(f"{driver.name or device.address}: waiting for events (Ctrl-C to leave)")
        else:
            run.document(event="waiting", address=device.address, name=driver.name)
        told = 0
        while count is None or told < count:
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = driver.read(timeout=left)
            now = time.time()
            for one in found[: None if count is None else count - told]:
                _print_event(run, one, now)
                told += 1
            if deadline is not None and time.monotonic() >= deadline:
                return


def _print_event(run: Run, one: InputEvent, now: float) -> None:
    from uvirtio.spec import input as spec

    kind, code = spec.type_name(one.type), spec.code_name(one.type, one.code)
    if run.json:
        run.document(
            event="input",
            time=now,
            type=one.type,
            type_name=kind,
            code=one.code,
            code_name=code,
            value=one.value,
        )
    elif one.type == spec.EV_SYN:
        run.line(f"Event: time {now:.6f}, -------------- {code} ------------")
    else:
        run.line(f"Event: time {now:.6f}, type {one.type} ({kind}), code {one.code} ({code}), value {one.value}")
