"""``uvirtio net``: a network card: its properties, frames sent and received, ping, captures, a bridge."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ipaddress import AddressValueError, IPv4Address
from typing import TYPE_CHECKING, Annotated, BinaryIO

from uvirtio.cli import content
from uvirtio.cli import deferred as typer
from uvirtio.cli.command import Command, DevArgument, make_group, seconds, verb
from uvirtio.errors import BadFrame, UsageError

if TYPE_CHECKING:
    from uvirtio.device import Device
    from uvirtio.drivers.net import Net
    from uvirtio.drivers.net.ping import Ping, Reply

ForOption = Annotated[float | None, typer.Option("--for", metavar="SECONDS", help="Stop after SECONDS.")]
CountOption = Annotated[int | None, typer.Option("--count", metavar="N", help="Stop after N frames.")]
MacOption = Annotated[str, typer.Option("--mac", metavar="MAC", help="Address to have instead of the card's own.")]

_BATCH = 256
"""Frames that are sent at once."""


def register(app: typer.Typer) -> None:
    """Add the group ``net`` to the application."""
    group = make_group("Network cards: frames, ping, captures, bridges.")
    app.add_typer(group, name="net")
    verb(group, "info", group="net", opens=True)(info)
    verb(group, "send", group="net", opens=True)(send)
    verb(group, "receive", group="net", opens=True, streams=True)(receive)
    verb(group, "ping", group="net", opens=True, streams=True)(ping)
    verb(group, "capture", group="net", opens=True)(capture)
    verb(group, "bridge", group="net", opens=True, streams=True)(bridge)


@contextmanager
def _driver(cmd: Command, dev: str, mac: bytes | None = None) -> Iterator[tuple[Device, Net]]:
    from uvirtio.drivers.net import Net

    with cmd.device(dev) as device, Net(device, mac=mac) as net:
        yield device, net


def _counted(count: int | None) -> None:
    if count is not None and count < 1:
        raise UsageError("--count takes a number above 0", seen=count, expected="1 or more")


# --- info ---------------------------------------------------------------------------------------------------


def info(cmd: Command, dev: DevArgument) -> None:
    """Show the address, link and limits of a card. Also its features and how it is driven."""
    from uvirtio.drivers.net import mac_text
    from uvirtio.spec import features as f

    with _driver(cmd, dev) as (device, net):
        config, link = net.config, net.link
        taken = [bit.name for bit in f.names(device.type, device.features)]
        mode = device.transport.interrupt_mode.value
        if cmd.json:
            cmd.document(
                address=device.address,
                mac=mac_text(net.mac),
                mac_is_own=config.mac is None,
                link=link,
                mtu=config.mtu,
                max_frame=net.max_frame,
                speed_mbit=config.speed,
                full_duplex=config.full_duplex,
                pairs_max=config.max_pairs,
                features=device.features,
                features_names=taken,
                offered=device.offered,
                queues={queue.name: queue.ring.size for queue in device.queues.values()},
                findings=net.findings,
                interrupts=mode,
                backend=device.transport.description,
            )
            return
        own = " (made up: the card has none)" if config.mac is None else ""
        duplex = {True: ", full duplex", False: ", half duplex", None: ""}[config.full_duplex]
        queues = ", ".join(f"{queue.name} {queue.ring.size}" for queue in device.queues.values())
        cmd.fields(
            [
                ("address", device.address),
                ("MAC", mac_text(net.mac) + own),
                ("link", "up" if link else "down"),
                ("MTU", config.mtu if config.mtu is not None else "not reported"),
                ("longest frame", f"{net.max_frame} bytes"),
                ("speed", f"{config.speed} Mbit/s{duplex}" if config.speed is not None else "not reported"),
                ("pairs", config.max_pairs),
                ("queues", queues),
                ("negotiated", f"{device.features:#x}: " + ", ".join(taken)),
                ("findings", "; ".join(f"{what} ({count})" for what, count in net.findings.items()) or "none"),
                ("interrupts", mode),
                ("back end", device.transport.description),
            ]
        )


# --- send ---------------------------------------------------------------------------------------------------


def send(
    cmd: Command,
    dev: DevArgument,
    frames: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[HEX]...", help="Frames, from the destination address on; shorter than 60: padded."
        ),
    ] = None,
    source: Annotated[str, typer.Option("-i", "--in", metavar="FILE", help="Frames of a pcap file.")] = "",
) -> None:
    """Send frames, given in hexadecimal or in a pcap file, as fast as the card takes them."""
    if bool(frames) == bool(source):
        raise UsageError("give frames in hexadecimal, or a file with --in", expected="one of both")
    given = [_frame(text) for text in frames or ()]
    with _driver(cmd, dev) as (device, net):
        pieces = _of_file(source, net) if source else iter([given])
        for piece in pieces:
            net.send_all(piece, timeout=cmd.timeout)
        net.flush(timeout=cmd.timeout)
        counts = net.counts
        if cmd.json:
            cmd.document(address=device.address, frames=counts.sent, bytes=counts.sent_bytes)
        else:
            cmd.line(f"sent {_frames(counts.sent)}, {counts.sent_bytes} bytes")


def _frame(text: str) -> bytes:
    from uvirtio.spec import net as spec

    try:
        frame = bytes.fromhex(text.replace(":", ""))
    except ValueError as error:
        raise UsageError(
            f"{text[:40]!r} is no frame", seen=str(error), expected="pairs of hexadecimal digits"
        ) from error
    if len(frame) < spec.ETHERNET_HEADER:
        raise BadFrame(
            f"{text!r} is no frame",
            seen=f"{len(frame)} bytes",
            expected=f"{spec.ETHERNET_HEADER} or more: two addresses, a type, and data",
        )
    return frame.ljust(spec.FRAME_MIN, b"\0")


def _of_file(name: str, net: Net) -> Iterator[list[bytes]]:
    from uvirtio.drivers.net import pcap

    with content.readable(name) as file:
        batch: list[bytes] = []
        for number, (_, frame) in enumerate(pcap.read(file, name), 1):
            if not net.can_send(frame):
                raise BadFrame(
                    f"{name} has a frame that this card cannot send",
                    seen=f"frame {number}, {len(frame)} bytes; {net.counts.sent} frames before it were sent",
                    expected=f"14..{net.max_frame} bytes",
                    remedy=f"leave it out: editcap -F pcap {shlex.quote(name)} OTHER {number}",
                )
            batch.append(frame)
            if len(batch) == _BATCH:
                yield batch
                batch = []
        yield batch


def _frames(count: int) -> str:
    return f"{count} frame{'s' * (count != 1)}"


# --- receive ------------------------------------------------------------------------------------------------


def receive(cmd: Command, dev: DevArgument, count: CountOption = None, for_seconds: ForOption = None) -> None:
    """Print frames as they arrive, until Ctrl-C."""
    _counted(count)
    if for_seconds is not None:
        seconds("--for", for_seconds)
    with _driver(cmd, dev) as (_, net):
        cmd.drop_rights(net.device)
        _say_waiting(cmd, net)
        _listen(net, count, for_seconds, lambda frames, now: _print_frames(cmd, frames, now))
        if not cmd.json:
            _say_dropped(cmd, net)


def _say_waiting(cmd: Command, net: Net) -> None:
    from uvirtio.drivers.net import mac_text

    address = net.device.address
    if cmd.json:
        cmd.document(event="waiting", address=address, mac=mac_text(net.mac), link=net.link)
    else:
        link = "" if net.link else ", whose link is down"
        cmd.line(f"{mac_text(net.mac)} at {address}{link}: waiting for frames (Ctrl-C to leave)")


def _listen(net: Net, count: int | None, limit: float | None, give: Callable[[list[bytes], float], None]) -> None:
    """Hand over what is received, until there were ``count`` frames or ``limit`` seconds are over."""
    clock = net.device.clock
    deadline = None if limit is None else clock.monotonic() + limit
    told = 0
    while count is None or told < count:
        left = None if deadline is None else max(0.0, deadline - clock.monotonic())
        net.wait(timeout=left)
        found = net.take()[: None if count is None else count - told]
        if found:
            give(found, time.time())
            told += len(found)
        if deadline is not None and clock.monotonic() >= deadline:
            return


def _print_frames(cmd: Command, frames: list[bytes], now: float) -> None:
    from uvirtio.drivers.net import mac_text

    for frame in frames:
        kind = int.from_bytes(frame[12:14], "big")
        to, by = mac_text(frame[:6]), mac_text(frame[6:12])
        if cmd.json:
            cmd.document(
                event="frame", time=now, length=len(frame), to=to, source=by, ethertype=kind, hex=frame.hex()
            )
        else:
            cmd.line(f"{now:.6f} {by} > {to}, ethertype 0x{kind:04x}, {len(frame)} bytes")
            for text in content.dump([frame]):
                cmd.line(f"  {text}")


def _say_dropped(cmd: Command, net: Net) -> None:
    for why, count in net.dropped.items():
        cmd.line(f"dropped {_frames(count)}: {why}")


# --- ping ---------------------------------------------------------------------------------------------------


def _ipv4(text: str, name: str) -> IPv4Address:
    try:
        return IPv4Address(text)
    except AddressValueError as error:
        raise UsageError(
            f"{name} is no IPv4 address",
            seen=text,
            expected="four numbers: 10.0.2.2",
            remedy="names are not resolved",
        ) from error


def ping(
    cmd: Command,
    dev: DevArgument,
    target: Annotated[
        str, typer.Argument(metavar="[ADDRESS]", help="A station on the card's own network (default: QEMU's).")
    ] = "10.0.2.2",
    source: Annotated[
        str, typer.Option("--source", metavar="ADDRESS", help="Our address on that network.")
    ] = "10.0.2.15",
    count: Annotated[int, typer.Option("--count", metavar="N", help="Number of requests.")] = 4,
    interval: Annotated[float, typer.Option("--interval", metavar="SECONDS", help="Time between two.")] = 0.2,
    size: Annotated[int, typer.Option("--size", metavar="BYTES", help="Data of each request.")] = 56,
) -> int:
    """Ask a station by ARP and ping whether it is there. Exit code 1: it did not answer every time."""
    _counted(count)
    seconds("--interval", interval)
    there, here = _ipv4(target, "ADDRESS"), _ipv4(source, "--source")
    from uvirtio.drivers.net.ping import Ping

    with _driver(cmd, dev) as (device, net):
        asked = Ping(net, there, source=here, data_size=size)
        known = asked.resolve(cmd.timeout)
        _say_resolved(cmd, asked)
        replies = []
        for number in range(1, count + 1) if known else ():
            reply = asked.ask(number, cmd.timeout)
            _say_reply(cmd, number, reply)
            if reply is not None:
                replies.append(reply.seconds)
            if number < count:
                device.wait(lambda: False, timeout=interval, what="the next request", owed=False)
        _say_pinged(cmd, count if known else 0, replies)
    return int(len(replies) != count)


def _say_resolved(cmd: Command, asked: Ping) -> None:
    from uvirtio.drivers.net import mac_text

    mac = mac_text(asked.mac) if asked.mac is not None else None
    if cmd.json:
        cmd.document(event="resolved", target=str(asked.target), mac=mac)
    elif mac is None:
        cmd.line(f"{asked.target} does not answer ARP requests of {asked.source}")
    else:
        cmd.line(f"{asked.target} is at {mac}")


def _say_reply(cmd: Command, number: int, reply: Reply | None) -> None:
    if cmd.json:
        told = {} if reply is None else {"bytes": reply.size, "ttl": reply.ttl, "intact": reply.intact}
        cmd.document(event="reply" if reply else "lost", number=number, seconds=reply and reply.seconds, **told)
    elif reply is None:
        cmd.line(f"no answer to request {number}")
    else:
        changed = "" if reply.intact else ", with other data than was sent"
        cmd.line(f"{reply.size} bytes: seq={number} ttl={reply.ttl} time={reply.seconds * 1e3:.3f} ms{changed}")


def _say_pinged(cmd: Command, sent: int, times: list[float]) -> None:
    if cmd.json:
        spread = {"min": min(times), "avg": sum(times) / len(times), "max": max(times)} if times else {}
        cmd.document(event="left", sent=sent, received=len(times), **spread)
        return
    text = f"{sent} sent, {len(times)} answered"
    if times:
        shown = (min(times), sum(times) / len(times), max(times))
        text += f"; min/avg/max {'/'.join(f'{value * 1e3:.3f}' for value in shown)} ms"
    cmd.line(text)


# --- capture ------------------------------------------------------------------------------------------------


def capture(
    cmd: Command,
    dev: DevArgument,
    out: Annotated[str, typer.Option("-o", "--output", metavar="FILE", help="pcap file to write; -: stdout.")],
    count: CountOption = None,
    for_seconds: ForOption = None,
) -> None:
    """Write all frames that the card receives to a pcap file, until Ctrl-C. The card listens promiscuously."""
    _counted(count)
    if for_seconds is not None:
        seconds("--for", for_seconds)
    if cmd.json and out == "-":
        raise UsageError("standard output cannot take both the capture and JSON", remedy="give -o FILE")
    from uvirtio.drivers.net import RxMode, pcap
    from uvirtio.spec import features as f

    with _driver(cmd, dev) as (device, net), _sink(cmd, out) as file:
        if device.has(f.Net.CTRL_RX):
            net.set_rx_mode(RxMode.PROMISC, True)
        writer = pcap.Writer(file)
        cmd.drop_rights(device)
        if out != "-" and not cmd.json:
            cmd.line(f"capturing on {device.address} (Ctrl-C to leave)")
        try:
            _listen(net, count, for_seconds, lambda frames, now: writer.write(frames, int(now * 1e9)))
        finally:
            _say_captured(cmd, net, writer.frames, out)


def _say_captured(cmd: Command, net: Net, frames: int, out: str) -> None:
    if cmd.json:
        cmd.document(address=net.device.address, frames=frames, dropped=dict(net.dropped), file=out)
    elif out != "-":
        cmd.line(f"captured {_frames(frames)} in {out}")
        _say_dropped(cmd, net)


class _Stdout:
    """Standard output as a file, by way of the command, which knows of readers that are gone."""

    def __init__(self, cmd: Command) -> None:
        self._cmd = cmd

    def write(self, data: bytes) -> None:
        """Write raw bytes."""
        self._cmd.raw(data)

    def flush(self) -> None:
        """Hand on what was written."""
        sys.stdout.flush()


@contextmanager
def _sink(cmd: Command, name: str) -> Iterator[BinaryIO]:
    if name == "-":
        yield _Stdout(cmd)  # type: ignore[misc]  # of a file it needs these two
        return
    with content.writable(name, private=True) as file:
        yield file


# --- bridge -------------------------------------------------------------------------------------------------


def bridge(
    cmd: Command,
    dev: DevArgument,
    to: Annotated[str, typer.Option("--to", metavar="END", help="The other end: tap:NAME, unix:PATH or fd:N.")],
    for_seconds: ForOption = None,
    mac: MacOption = "",
) -> None:
    """Hand frames on between the card and a TAP of the kernel or a socket, both ways, until Ctrl-C."""
    if for_seconds is not None:
        seconds("--for", for_seconds)
    from uvirtio.drivers.net import mac_of
    from uvirtio.drivers.net.bridge import Bridge, open_end

    ours = mac_of(mac) if mac else None
    with open_end(to) as end, _driver(cmd, dev, ours) as (_, net):
        cmd.drop_rights(net.device)
        _say_bridging(cmd, net, to)
        bridged = Bridge(net, end)
        try:
            gone = bridged.run(timeout=for_seconds)
            if gone and not cmd.json:
                cmd.line("the other end is gone")
        finally:
            counts = bridged.counts
            told = {name: getattr(counts, name) for name in type(counts).__slots__}
            if cmd.json:
                cmd.document(event="left", **told, dropped=dict(net.dropped))
            else:
                cmd.line(
                    f"bridge removed: {_frames(counts.out)} out ({counts.out_dropped} dropped),"
                    f" {counts.back} back ({counts.back_dropped} dropped)"
                )
                _say_dropped(cmd, net)


def _say_bridging(cmd: Command, net: Net, to: str) -> None:
    from uvirtio.drivers.net import mac_text

    address = net.device.address
    if cmd.json:
        cmd.document(event="bridged", address=address, mac=mac_text(net.mac), to=to)
    else:
        cmd.line(f"{mac_text(net.mac)} at {address}: bridged to {to} (Ctrl-C to leave)")
