"""The QMP client against a played QEMU at the other end of a socket pair."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from uvirtio.backends.qemu.process import check_version
from uvirtio.backends.qemu.qmp import Qmp
from uvirtio.errors import Closed, DeviceGone, DeviceTimeout, QemuFailed

GREETING = b'{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7}}, "capabilities": []}}\r\n'


@contextmanager
def played(
    reply: Callable[[dict[str, Any]], bytes | None], *, greeting: bytes = GREETING, timeout: float = 5.0
) -> Iterator[tuple[Qmp, socket.socket, list[dict[str, Any]]]]:
    near, far = socket.socketpair()
    requests: list[dict[str, Any]] = []

    def serve() -> None:
        decoder = json.JSONDecoder()
        text = ""
        try:
            far.sendall(greeting)
            while data := far.recv(4096):
                text += data.decode()
                while text:
                    request, end = decoder.raw_decode(text)
                    text = text[end:]
                    requests.append(request)
                    answer = reply(request)
                    if answer is None:
                        far.shutdown(socket.SHUT_RDWR)
                        return
                    far.sendall(answer)
        except OSError:
            return

    server = threading.Thread(target=serve)
    server.start()
    qmp = Qmp(near, timeout=timeout, why=lambda: "it was played")
    try:
        yield qmp, far, requests
    finally:
        qmp.close()
        server.join()
        far.close()


def done(request: dict[str, Any], result: Any = None) -> bytes:
    return json.dumps({"return": result or {}, "id": request["id"]}).encode() + b"\r\n"


def event(name: str, **data: Any) -> bytes:
    return json.dumps({"event": name, "data": data}).encode() + b"\r\n"


def test_greeting_and_commands() -> None:
    with played(lambda request: done(request, {"actual": 5})) as (qmp, _, requests):
        qmp.greet(5.0)
        assert qmp.version == (7, 2, 22)
        assert qmp.execute("query-balloon") == {"actual": 5}
        qmp.execute("human-monitor-command", **{"command-line": "info pci"})
    assert [request["execute"] for request in requests] == [
        "qmp_capabilities",
        "query-balloon",
        "human-monitor-command",
    ]
    assert requests[2]["arguments"] == {"command-line": "info pci"}


@pytest.mark.parametrize("version", [(2, 12, 0), (7, 1, 99)])
def test_an_old_qemu_is_refused(version: tuple[int, ...]) -> None:
    with pytest.raises(QemuFailed, match="too old"):
        check_version(version)
    check_version((7, 2, 0))
    check_version((11, 0, 1))


@pytest.mark.parametrize("greeting", [b"{}\r\n", b"hello\r\n", b"[]\r\n", b'{"QMP": {"version": 7}}\r\n'])
def test_nonsense_is_an_error(greeting: bytes) -> None:
    with played(done, greeting=greeting) as (qmp, _, _), pytest.raises(QemuFailed):
        qmp.greet(5.0)


def test_a_refusal_carries_what_qemu_says() -> None:
    def reply(request: dict[str, Any]) -> bytes:
        error = {"class": "GenericError", "desc": "No balloon device"}
        return json.dumps({"error": error, "id": request["id"]}).encode() + b"\r\n"

    with played(reply, greeting=b"") as (qmp, _, _), pytest.raises(QemuFailed, match="No balloon device"):
        qmp.execute("query-balloon")


def test_events_are_kept_and_taken_by_name() -> None:
    with played(
        lambda request: event("BALLOON_CHANGE", actual=1) + event("RESET") + done(request), greeting=b""
    ) as (
        qmp,
        far,
        _,
    ):
        qmp.execute("one")
        far.sendall(event("BALLOON_CHANGE", actual=2))
        qmp.execute("two")
        assert [found["data"]["actual"] for found in qmp.events("BALLOON_CHANGE")] == [1, 2, 1]
        assert qmp.events("BALLOON_CHANGE") == []
        assert len(qmp.events("RESET")) == 2
        far.sendall(event("LATE"))
        assert len(qmp.events("LATE", 10.0)) == 1
        assert qmp.events("NEVER", 0.01) == []


def test_events_are_bounded_and_deletions_are_remembered() -> None:
    flood = event("DEVICE_DELETED", device="dev0", path="/machine") + event("NOISE") * 1500
    with played(lambda request: flood + done(request), greeting=b"") as (qmp, _, _):
        qmp.execute("flood")
        assert len(qmp.events("NOISE")) == 1000
        assert qmp.deleted == {"dev0"}


def test_a_late_answer_is_not_taken_for_another() -> None:
    late = threading.Event()

    def reply(request: dict[str, Any]) -> bytes:
        if request["execute"] == "slow":
            late.wait(10)
        return done(request, request["execute"])

    with played(reply, greeting=b"", timeout=0.1) as (qmp, _, _):
        with pytest.raises(DeviceTimeout):
            qmp.execute("slow")
        late.set()
        for _ in range(100):
            try:
                assert qmp.execute("quick") == "quick"
                break
            except DeviceTimeout:
                continue


def test_the_end_is_device_gone_and_says_why() -> None:
    with played(lambda request: None, greeting=b"") as (qmp, _, _):
        with pytest.raises(DeviceGone) as caught:
            qmp.execute("quit")
        assert caught.value.seen == "it was played"
        with pytest.raises(DeviceGone):
            qmp.execute("more")
        qmp.close()
        with pytest.raises(Closed):
            qmp.execute("more")
