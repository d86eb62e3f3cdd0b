"""The qtest client against a played QEMU at the other end of a socket pair."""

from __future__ import annotations

import itertools
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.support.descriptors import descriptors, settled
from tests.support.polling import readable
from uvirtio.backends.qemu.config_space import config_space
from uvirtio.backends.qemu.events import LineEvent
from uvirtio.backends.qemu.qtest import MemoryRegisters, PortRegisters, Qtest
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, Misuse, QemuFailed

Reply = Callable[[str], bytes | list[bytes] | None]


@contextmanager
def played(reply: Reply, *, timeout: float = 5.0) -> Iterator[tuple[Qtest, socket.socket, list[str]]]:
    """A Qtest whose other end answers each command line with ``reply(line)``; None ends the connection."""
    near, far = socket.socketpair()
    commands: list[str] = []

    def serve() -> None:
        with far.makefile("r", encoding="ascii", newline="\n") as lines:
            try:
                for line in lines:
                    commands.append(line.rstrip("\n"))
                    answer = reply(commands[-1])
                    if answer is None:
                        far.shutdown(socket.SHUT_RDWR)
                        return
                    for piece in [answer] if isinstance(answer, bytes) else answer:
                        far.sendall(piece)
            except OSError:
                return

    server = threading.Thread(target=serve)
    server.start()
    qtest = Qtest(near, timeout=timeout, why=lambda: "it was played")
    try:
        yield qtest, far, commands
    finally:
        qtest.close()
        server.join()
        far.close()


def test_commands_as_qemu_reads_them() -> None:
    with played(lambda line: b"OK 0x0000000000000012\n" if "in" in line or "read" in line else b"OK\n") as (
        qtest,
        _,
        commands,
    ):
        assert qtest.read(4, 0xE0000000) == 0x12
        assert qtest.port_in(1, 0xC000) == 0x12
        qtest.write(2, 0x10, 0xFFFF)
        qtest.port_out(4, 0xCF8, 0x80000000)
        assert qtest.exchange([(0xCF8, 4, 0x80000010), (0xCFE, 2, None)], ports=True) == [0x12]
        assert qtest.exchange([(0xCF8, 4, 0x80000010), (0xCFC, 1, 7)], ports=True) == []
        qtest.exchange([(8, 4, 1), (4, 4, 2)])
        qtest.intercept("ioapic")
        qtest.intercept("/machine/unattached/device[1]")
    assert commands == [
        "readl 0xe0000000",
        "inb 0xc000",
        "writew 0x10 0xffff",
        "outl 0xcf8 0x80000000",
        "outl 0xcf8 0x80000010",
        "inw 0xcfe",
        "outl 0xcf8 0x80000010",
        "outb 0xcfc 0x7",
        "writel 0x8 0x1",
        "writel 0x4 0x2",
        "irq_intercept_in ioapic",
        "irq_intercept_in /machine/unattached/device[1]",
    ]


class Held:
    """Answers that are kept back until ``released``, as by a QEMU that is busy."""

    def __init__(self, *refused: str) -> None:
        self.released = threading.Event()
        self._refused = refused

    def reply(self, line: str) -> bytes | list[bytes]:
        assert self.released.wait(10)
        return b"FAIL no\n" if line in self._refused else [b"IRQ raise 7\n", b"OK 0x12\n"]


def test_posted_writes_are_not_waited_for_and_come_before_what_follows() -> None:
    held = Held()
    with played(held.reply) as (qtest, _, commands):
        qtest.post([(0x10, 4, 1), (0x14, 2, 2)])  # would never return: the answers are held back
        held.released.set()
        assert qtest.read(4, 0x20) == 0x12
        qtest.post([(0x18, 1, 3)])
        qtest.settle()
        assert commands == ["writel 0x10 0x1", "writew 0x14 0x2", "readl 0x20", "writeb 0x18 0x3"]
        assert qtest.irq_line(7).level
        qtest.post([(4 * i, 4, i) for i in range(40)])
        qtest.post([(4 * i, 4, i) for i in range(40)])  # more than QEMU is left to answer at a time
        assert qtest.exchange([(0, 4, 0), (4, 4, None)]) == [0x12]
        assert len(commands) == 4 + 80 + 2


@pytest.mark.parametrize("ask", [lambda q: q.read(4, 0), lambda q: q.exchange([(0, 4, None)]), Qtest.settle])
def test_a_posted_write_that_is_refused_is_told_with_the_next_answer(ask: Callable[[Qtest], object]) -> None:
    held = Held("writel 0x10 0x1")
    held.released.set()
    refusing = {"uvirtio-sync-1": b"FAIL Unknown command 'uvirtio-sync-1'\n"}
    with played(lambda line: refusing.get(line) or held.reply(line)) as (qtest, _, commands):
        qtest.post([(0x10, 4, 1), (0x14, 4, 2)])
        with pytest.raises(QemuFailed, match="refused"):
            ask(qtest)
        assert qtest.read(4, 0x20) == 0x12, "whose answer is whose is known again"
        assert commands[-2:] == ["uvirtio-sync-1", "readl 0x20"]


def test_what_qemu_says_of_posted_writes_is_no_interrupt() -> None:
    with played(lambda line: [b"IRQ raise 3\n", b"OK\n"]) as (qtest, far, _):
        qtest.post([(0x10, 4, 1)])
        assert readable(qtest, 5)
        while not qtest.irq_line(3).level:
            qtest.drain()
        qtest.settle()
        far.sendall(b"OK\n")  # to nothing
        assert readable(qtest, 5)
        with pytest.raises(QemuFailed, match="violated"):
            qtest.drain()


def test_a_signal_while_an_acknowledgement_is_taken_leaves_answers_where_they_belong(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held = Held()
    held.released.set()
    known = {"uvirtio-sync-1": b"FAIL Unknown command 'uvirtio-sync-1'\n"}
    with played(lambda line: known.get(line) or held.reply(line)) as (qtest, _, commands):
        qtest.post([(0x10, 4, 1)])
        assert readable(qtest, 5)
        with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):

            def interrupted(line: bytes) -> None:
                raise KeyboardInterrupt

            patched.setattr(qtest, "_acknowledged", interrupted)
            while True:
                qtest.drain()
        assert qtest.read(4, 0x20) == 0x12
        assert commands == ["writel 0x10 0x1", "uvirtio-sync-1", "readl 0x20"]


@pytest.mark.parametrize("path", ["", "ioapic\nquit", "a b", "/machine/" + "x" * 200])
def test_an_odd_name_of_an_interrupt_controller_is_not_sent(path: str) -> None:
    with played(lambda line: b"OK\n") as (qtest, _, commands), pytest.raises(Misuse, match="QOM"):
        qtest.intercept(path)
    assert not commands


@pytest.mark.parametrize(
    "mistake",
    [
        lambda qtest: qtest.read(4, -1),
        lambda qtest: qtest.read(4, 1 << 64),
        lambda qtest: qtest.port_in(1, 0x10000),
        lambda qtest: qtest.write(1, 0, 0x100),
        lambda qtest: qtest.write(2, 0, -1),
        lambda qtest: qtest.port_out(4, 0xCF8, 1 << 32),
        lambda qtest: qtest.exchange([(0, 4, 0), (4, 4, 1 << 32)]),
        lambda qtest: qtest.post([(0, 4, 0), (4, 4, 1 << 32)]),
    ],
)
def test_nothing_malformed_is_sent(mistake: Callable[[Qtest], object]) -> None:
    """QEMU checks no command, so the client does."""
    with played(lambda line: b"OK\n") as (qtest, _, commands):
        with pytest.raises(Misuse, match="does not fit"):
            mistake(qtest)
        qtest.write(1, 0, 0)
    assert commands == ["writeb 0x0 0x0"]


def test_interrupt_lines_before_the_answer_are_kept() -> None:
    with played(lambda line: b"IRQ raise 22\nIRQ lower 22\nIRQ raise 22\nIRQ raise 10\nOK 0x1\n") as (qtest, _, _):
        assert qtest.read(4, 0) == 1
        assert (qtest.irq_line(22).level, qtest.irq_line(22).raises) == (True, 2)
        assert (qtest.irq_line(10).level, qtest.irq_line(10).raises) == (True, 1)
        assert (qtest.irq_line(11).level, qtest.irq_line(11).raises) == (False, 0)


def test_a_level_that_is_told_twice_rose_once() -> None:
    with played(lambda line: b"IRQ raise 22\nIRQ raise 22\nOK\n") as (qtest, _, _):
        qtest.write(1, 0, 0)
        assert qtest.irq_line(22).raises == 1


@given(
    events=st.lists(st.tuples(st.booleans(), st.integers(0, 23)), max_size=20),
    after=st.lists(st.tuples(st.booleans(), st.integers(0, 23)), max_size=20),
    cuts=st.sets(st.integers(1, 400), max_size=8),
)
def test_no_cut_and_no_order_loses_a_line(
    events: list[tuple[bool, int]], after: list[tuple[bool, int]], cuts: set[int]
) -> None:
    """The stream is cut at any byte; lines stand before and after the answer."""

    def text(lines: list[tuple[bool, int]]) -> bytes:
        return b"".join(b"IRQ %s %d\n" % (b"raise" if up else b"lower", number) for up, number in lines)

    whole = text(events) + b"OK 0xabcd\n" + text(after)
    places = [0, *sorted(cut for cut in cuts if cut < len(whole)), len(whole)]
    pieces = [whole[start:end] for start, end in itertools.pairwise(places)]
    with played(lambda line: pieces if line == "readl 0x0" else b"OK 0x1\n") as (qtest, _, _):
        assert qtest.read(4, 0) == 0xABCD
        assert qtest.read(4, 4) == 1  # all that stood before it has been read now
        levels: dict[int, bool] = {}
        raises: dict[int, int] = {}
        for up, number in events + after:
            raises[number] = raises.get(number, 0) + (up and not levels.get(number, False))
            levels[number] = up
        for number, level in levels.items():
            assert (qtest.irq_line(number).level, qtest.irq_line(number).raises) == (level, raises[number])


def test_batches_are_small_and_complete() -> None:
    """QEMU blocks when its answers are not read."""
    with played(lambda line: b"OK\n") as (qtest, _, commands):
        qtest.exchange([(4 * i, 4, i) for i in range(1000)])
    assert commands == [f"writel {4 * i:#x} {i:#x}" for i in range(1000)]


@pytest.mark.parametrize("answer", [b"FAIL Unknown command 'readl'\n", b"ERR no\n"])
def test_a_refusal_is_an_error_and_the_next_command_works(answer: bytes) -> None:
    with played(lambda line: answer if "0x10" in line else b"OK 0x2\n") as (qtest, _, _):
        with pytest.raises(QemuFailed) as caught:
            qtest.read(4, 0x10)
        assert caught.value.seen == answer.decode().strip()
        assert qtest.read(4, 0x20) == 2


@pytest.mark.parametrize("answer", [b"OK\n", b"OK zero\n", b"OK 0x\n"])
def test_a_read_without_a_number_is_an_error(answer: bytes) -> None:
    with played(lambda line: answer) as (qtest, _, _), pytest.raises(QemuFailed):
        qtest.read(4, 0)


@pytest.mark.parametrize(
    "noise",
    [
        b"IRQ\n",
        b"IRQ raise\n",
        b"IRQ raise x\n",
        b"IRQ raise " + b"9" * 4000 + b"\n",
        b"IRQ fall 3\n",
        b"x" * 10_000,
    ],
)
def test_nonsense_is_an_error(noise: bytes) -> None:
    with played(lambda line: noise) as (qtest, _, _), pytest.raises(QemuFailed):
        qtest.read(4, 0)


def test_an_answer_that_nobody_asked_for_is_an_error() -> None:
    with played(lambda line: b"OK\n") as (qtest, far, _):
        far.sendall(b"OK\n")
        with pytest.raises(QemuFailed):
            qtest.drain()


def test_the_end_is_device_gone_and_says_why() -> None:
    with played(lambda line: None) as (qtest, _, _):
        with pytest.raises(DeviceGone) as caught:
            qtest.read(4, 0)
        assert caught.value.seen == "it was played"
        with pytest.raises(DeviceGone):
            qtest.write(4, 0, 0)
        with pytest.raises(DeviceGone):
            qtest.drain()


def test_half_an_answer_and_the_end() -> None:
    with played(lambda line: None if line == "writeb 0x1 0x0" else b"OK 0x") as (qtest, far, _):
        far.sendall(b"OK 0x12")
        far.shutdown(socket.SHUT_WR)
        with pytest.raises(DeviceGone):
            qtest.read(4, 0)


def test_silence_is_a_timeout_and_a_late_answer_is_not_taken_for_another() -> None:
    late = threading.Event()

    def reply(line: str) -> bytes:
        if line == "readl 0x0":
            late.wait(10)
            return b"OK 0xdead\n"
        if line.startswith("uvirtio-sync"):
            return f"FAIL Unknown command '{line}'\n".encode()
        return b"OK 0x1\n"

    with played(reply, timeout=0.1) as (qtest, _, _):
        with pytest.raises(DeviceTimeout):
            qtest.read(4, 0)
        late.set()
        deadline = time.monotonic() + 5
        while True:
            try:
                assert qtest.read(4, 4) == 1
                break
            except DeviceTimeout:
                assert time.monotonic() < deadline


def test_an_interrupted_access_does_not_shift_the_answers() -> None:
    """A signal handler raises in the middle of an access: the answer that comes later is skipped."""

    class Interrupted(BaseException):
        pass

    def reply(line: str) -> bytes:
        if line.startswith("uvirtio-sync"):
            return b"IRQ raise 5\nFAIL Unknown command '" + line.encode() + b"'\n"
        return b"OK " + line.split()[1].encode() + b"\n"

    with played(reply) as (qtest, _, _):
        receive = qtest._receive

        def interrupted() -> None:
            qtest._receive = receive  # type: ignore[method-assign]
            raise Interrupted

        qtest._receive = interrupted  # type: ignore[method-assign]
        with pytest.raises(Interrupted):
            qtest.read(4, 0x10)
        assert qtest.read(4, 0x20) == 0x20
        assert qtest.read(4, 0x30) == 0x30
        assert qtest.irq_line(5).level


def test_close_ends_a_waiting_access_in_another_thread() -> None:
    asked = threading.Event()

    def reply(line: str) -> bytes:
        asked.set()
        return b""

    seen: list[BaseException] = []
    with played(reply, timeout=30.0) as (qtest, _, _):

        def access() -> None:
            try:
                qtest.read(4, 0)
            except Closed as error:
                seen.append(error)

        thread = threading.Thread(target=access)
        thread.start()
        assert asked.wait(10)
        qtest.close()
        qtest.close()
        thread.join(10)
        assert len(seen) == 1
        with pytest.raises(Closed):
            qtest.read(4, 0)


def test_registers_are_windows() -> None:
    with played(lambda line: b"OK 0x5\n") as (qtest, _, commands):
        memory = MemoryRegisters(qtest, 0x1000, 8)
        ports = PortRegisters(qtest, 0xC000, 4)
        assert memory.read32(4) == 5
        ports.write16(2, 0x1234)
        for mistake in (
            lambda: memory.read32(6),
            lambda: memory.read32(8),
            lambda: memory.read8(-1),
            lambda: memory.read16(1),
            lambda: ports.write32(4, 0),
        ):
            with pytest.raises(Misuse, match="access"):
                mistake()
        memory.close()
        memory.close()
        with pytest.raises(Closed):
            memory.read8(0)
    assert commands == ["readl 0x1004", "outw 0xc002 0x1234"]


def test_configuration_space_makes_no_exchange_outside_of_it_or_after_its_end() -> None:
    with played(lambda line: b"OK 0x" + b"00" * 256 + b"\n") as (qtest, _, commands):
        config = config_space(qtest, 0xB0000000, 8)
        assert config.length == 256  # no capability, so not PCI Express
        with pytest.raises(Misuse, match="access"):
            config.exchange([(0x04, 2, None), (0x100, 4, None)])
        config.close()
        with pytest.raises(Closed):
            config.exchange([(0x04, 2, None)])
    assert commands == ["read 0xb0008000 0x100"]


# --- the interrupt pin as an event ---


def pending(event: LineEvent) -> bool:
    return readable(event, 0)


def waits(event: LineEvent) -> bool:
    return readable(event, 10)


def test_a_line_is_masked_from_take_to_rearm() -> None:
    with played(lambda line: b"IRQ lower 22\nOK 0x1\n") as (qtest, far, _):
        event = LineEvent(qtest, qtest.irq_line(22))
        assert not event.take()
        assert not pending(event)
        far.sendall(b"IRQ raise 22\n")
        assert waits(event)
        assert event.take()
        assert not event.take(), "masked"
        assert not pending(event)
        event.rearm()
        assert pending(event), "still raised"
        assert event.take()
        qtest.read(1, 0)  # reads the cause, which lowers the line
        event.rearm()
        assert not pending(event)
        assert not event.take()
        event.close()
        event.close()
        with pytest.raises(Closed):
            event.take()


def test_a_line_that_another_access_read_still_wakes() -> None:
    """The socket holds nothing any more, yet whoever waits on the event must wake."""
    with played(lambda line: b"IRQ raise 22\nOK\n") as (qtest, _, _):
        event = LineEvent(qtest, qtest.irq_line(22))
        other = LineEvent(qtest, qtest.irq_line(23))
        qtest.write(1, 0, 0)
        assert pending(event)
        assert not pending(other)
        assert event.take()
        assert not other.take()
        event.close()
        other.close()


def test_a_line_that_rose_and_fell_before_take_is_not_lost() -> None:
    with played(lambda line: b"IRQ raise 22\nIRQ lower 22\nOK\n") as (qtest, _, _):
        event = LineEvent(qtest, qtest.irq_line(22))
        qtest.write(1, 0, 0)
        assert event.take()
        event.rearm()
        assert not event.take()
        event.close()


def test_a_shared_line_reaches_both() -> None:
    with played(lambda line: b"OK\n") as (qtest, far, _):
        first, second = (LineEvent(qtest, qtest.irq_line(20)) for _ in range(2))
        far.sendall(b"IRQ raise 20\n")
        assert waits(first)
        assert first.take()
        assert pending(second), "though the first emptied the socket"
        assert second.take()
        first.close()
        second.close()


def test_a_line_that_is_raised_already_is_pending() -> None:
    with played(lambda line: b"IRQ raise 20\nOK\n") as (qtest, _, _):
        qtest.write(1, 0, 0)
        event = LineEvent(qtest, qtest.irq_line(20))
        assert pending(event)
        assert event.take()
        event.close()


def test_take_on_a_dead_qemu_is_device_gone() -> None:
    with played(lambda line: b"OK\n") as (qtest, far, _):
        event = LineEvent(qtest, qtest.irq_line(20))
        far.shutdown(socket.SHUT_RDWR)
        assert waits(event)
        with pytest.raises(DeviceGone):
            event.take()
        event.close()


def test_no_descriptor_is_left() -> None:
    before = len(settled())
    with played(lambda line: b"OK\n") as (qtest, _, _):
        LineEvent(qtest, qtest.irq_line(20)).close()
    assert len(descriptors()) == before
