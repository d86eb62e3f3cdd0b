"""The view of a QEMU: which versions are asked what, which device it is, and bad answers and sockets."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from uvirtio.cli import main
from uvirtio.diag import Beside, diagnose
from uvirtio.errors import QemuFailed, UsageError
from uvirtio.opening import identify
from uvirtio.scripted import ScriptedDevice
from uvirtio.scripted.rng import Rng

PATH = "/machine/peripheral/dev0/virtio-backend"
STATUS = "x-query-virtio" + "-status"


class Qemu:
    """Answers as QEMU was seen to do for a scripted device, or as a test has it."""

    def __init__(self, version: tuple[int, int, int] = (11, 1, 0), **answers: Any) -> None:
        self.version = version
        self.answers = answers
        self.asked: list[str] = []
        self.scripted = ScriptedDevice(Rng())

    def qmp(self, command: str, **arguments: Any) -> Any:
        self.asked.append(command)
        name = command.replace("-", "_")
        if name in self.answers:
            made = self.answers[name]
            if isinstance(made, Exception):
                raise made
            return made(**arguments) if callable(made) else made
        return getattr(self, "_" + name)(**arguments)

    def _query_version(self) -> Any:
        return {"qemu": dict(zip(("major", "minor", "micro"), self.version, strict=True))}

    def _query_status(self) -> Any:
        return {"running": True, "status": "running"}

    def _x_query_virtio(self) -> Any:
        return [{"name": "virtio-rng", "path": PATH}, {"name": "virtio-net", "path": "/machine/peripheral/net"}]

    def _query_pci(self) -> Any:
        function = {"bus": 0, "slot": 4, "function": 0, "qdev_id": "dev0"}
        return [{"devices": [function]}]

    def _x_query_virtio_status(self, path: str) -> Any:
        assert self.version < (10, 1), "not tried with this version"
        return {
            "status": {"statuses": [f"VIRTIO_CONFIG_S_{name}: x" for name in ("ACKNOWLEDGE", "DRIVER")]},
            "guest-features": {"transports": ["VIRTIO_F_VERSION_1: x"], "dev-features": []},
            "broken": True,
        }

    def _x_query_virtio_vhost_queue_status(self, path: str, queue: int) -> Any:
        raise QemuFailed("vhost device has not started yet", seen="GenericError")

    def _x_query_virtio_queue_status(self, path: str, queue: int) -> Any:
        state = self.scripted.queues[queue]
        desc, avail, used = state.addresses.values()
        return {
            "queue-index": queue,
            "vring-num": state.size,
            "vring-desc": desc,
            "vring-avail": avail,
            "vring-used": used,
            "last-avail-idx": 2,
            "shadow-avail-idx": 2,
            "used-idx": 2,
            "signalled-used": 2,
            "signalled-used-valid": True,
        }

    def _x_query_virtio_queue_element(self, path: str, queue: int) -> Any:
        return {"avail": {"idx": 1}}


def looked(qemu: Qemu, **how: Any) -> Any:
    report = diagnose(qemu.scripted, beside=Beside(qemu.qmp), timeout=0.1, **how)
    [step] = [step for step in report.steps if step.name == "device's view"]
    return report, step


@pytest.mark.parametrize("version", [(7, 2, 22), (10, 0, 8), (10, 1, 0), (11, 1, 3)])
def test_a_version_is_asked_for_the_status_where_that_was_tried(version: tuple[int, int, int]) -> None:
    qemu = Qemu(version)
    report, step = looked(qemu)
    assert (STATUS in qemu.asked) is (version < (10, 1))
    assert report.view is not None and (report.view.status is not None) is (version < (10, 1))
    told = [one.id for one in report.view.disagreements]
    assert told == (["device-broken", "status-differs", "features-differ"] if version < (10, 1) else []), step
    assert ("status not asked for" in step.detail) is (version >= (10, 1))
    assert report.as_dict()["view"]["qemu"] == ".".join(map(str, version))


def test_a_ring_that_vhost_serves_is_not_asked_for_its_indices() -> None:
    qemu = Qemu(x_query_virtio_vhost_queue_status={"kick": 7, "call": 8, "num": 8})
    _, step = looked(qemu)
    assert "x-query-virtio-queue-status" not in qemu.asked, "vhost has them"
    assert step.verdict == "pass" and "1 by vhost without indices" in step.detail


@pytest.mark.parametrize(
    ("change", "cause", "says"),
    [
        ({"last-avail-idx": 5}, "index-differs", "has taken more chains"),
        ({"used-idx": 1, "signalled-used": 1}, "index-differs", "used.idx in memory"),
        ({"vring-num": 4}, "queue-differs", "vring-num"),
        ({"vring-used": 0x1000}, "queue-differs", "vring-used"),
    ],
)
def test_each_disagreement_is_named(change: dict[str, int], cause: str, says: str) -> None:
    qemu = Qemu()
    qemu.answers["x_query_virtio_queue_status"] = lambda **how: {
        **qemu._x_query_virtio_queue_status(**how),
        **change,
    }
    report, step = looked(qemu)
    assert (step.verdict, report.cause.id) == ("fail", cause) and says in report.cause.text, step


def test_one_that_is_gone_at_the_second_look_was_none() -> None:
    qemu = Qemu()
    changes = [{"last-avail-idx": 5}, {}]
    qemu.answers["x_query_virtio_queue_status"] = lambda **how: {
        **qemu._x_query_virtio_queue_status(**how),
        **changes.pop(0),
    }
    assert looked(qemu)[1].verdict == "pass" and not changes


def test_a_ring_that_qemu_reads_otherwise_is_named_before_a_lost_kick() -> None:
    qemu = Qemu(x_query_virtio_queue_element={"avail": {"idx": 0x5555}})
    qemu.scripted.faults.silent = True
    qemu.answers["x_query_virtio_queue_status"] = lambda **how: {
        **qemu._x_query_virtio_queue_status(**how),
        **dict.fromkeys(("last-avail-idx", "shadow-avail-idx", "used-idx"), 0),
    }
    report, _ = looked(qemu)
    assert report.view is not None
    assert [one.id for one in report.view.disagreements] == ["ring-memory", "lost-kick"]


@pytest.mark.parametrize(
    "answers",
    [
        {"query_version": 5},
        {"query_version": {"qemu": {}}},
        {"query_status": []},
        {"x_query_virtio": {"a": 1}},
        {"x_query_virtio": [{"name": "virtio-rng"}]},
        {"query_pci": 7},
        {"query_pci": [{"devices": [5]}]},
        {"x_query_virtio_queue_status": "no"},
        {"x_query_virtio_queue_status": QemuFailed("QEMU ended", seen="x")},
    ],
)
def test_an_answer_that_is_none_is_no_failure_of_the_device(answers: dict[str, Any]) -> None:
    report, step = looked(Qemu(**answers))
    assert (report.verdict, step.verdict) == ("warn", "warn") and step.detail.startswith("UV-ENV-QEMU"), step
    assert step.cause is not None and step.cause.id == "view"


@pytest.mark.parametrize("told", [{}, {"vring-num": None}, {"last-avail-idx": "x", "used-idx": []}])
def test_members_that_are_missing_or_odd_are_said_and_not_counted_with(told: dict[str, Any]) -> None:
    report, step = looked(Qemu(x_query_virtio_queue_status=told))
    assert report.cause is not None and report.cause.id == "queue-differs", step


# --- which device it is -----------------------------------------------------------------------------------------

ANON = "/machine/peripheral-anon/device[{}]/virtio-backend"


def found(qemu: Qemu, which: str = "") -> str:
    with identify(qemu.scripted.address, qemu.scripted) as device:
        return Beside(qemu.qmp, which).find(device)


def listed(*paths: str) -> list[dict[str, str]]:
    return [{"name": "virtio-rng", "path": path} for path in paths]


def test_it_is_found_by_its_pci_address_or_by_name() -> None:
    assert found(Qemu()) == PATH
    assert found(Qemu(), "net") == "/machine/peripheral/net"
    assert found(Qemu(), "/machine/peripheral/net") == "/machine/peripheral/net"
    bridge = {"bus": 0, "slot": 4, "function": 0, "qdev_id": "port", "pci_bridge": {"devices": []}}
    behind = {"bus": 0, "slot": 4, "function": 0, "qdev_id": ""}
    bridge["slot"], bridge["pci_bridge"] = 1, {"devices": [behind]}
    two = listed(ANON.format(0), ANON.format(1), PATH)
    for place in (0x20, "04.0"):
        places = {"/machine/peripheral-anon/device[1]": place}
        qemu = Qemu(x_query_virtio=two, query_pci=[{"devices": [bridge]}],
                    qom_get=lambda path, property, at=places: at.get(path, 0))  # fmt: skip
        assert found(qemu) == ANON.format(1), "without an id: by its place"


@pytest.mark.parametrize(
    ("answers", "which", "seen"),
    [
        ({"x_query_virtio": listed(ANON.format(0), ANON.format(1)), "qom_get": 0x20,
          "query_pci": [{"devices": [{"bus": 0, "slot": 4, "function": 0, "qdev_id": ""}]}]}, "", "device[1]"),
        ({"query_pci": [{"devices": []}]}, "", PATH),
        ({}, "dev7", "/machine/peripheral/net"),
        ({"x_query_virtio": QemuFailed("No virtio devices found", seen="GenericError")}, "", "none"),
    ],
)  # fmt: skip
def test_where_it_cannot_be_told_those_that_it_may_be_are_listed(answers: Any, which: str, seen: str) -> None:
    with pytest.raises(UsageError) as caught:
        found(Qemu(**answers), which)
    assert seen in str(caught.value.seen) and "--qmp SOCK#ID" in str(caught.value.remedy)


# --- the socket -------------------------------------------------------------------------------------------------


@contextmanager
def served(path: Path, serve: Callable[[socket.socket], object]) -> Iterator[str]:
    """A socket at ``path``, whose first client is given to ``serve``."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(1)

        def take() -> None:
            client, _ = listener.accept()
            with client:
                serve(client)

        thread = threading.Thread(target=take, daemon=True)
        thread.start()
        yield str(path)
        thread.join(10)


def answering(qemu: Qemu, client: socket.socket) -> None:
    version = {"qemu": {"major": 11, "minor": 1, "micro": 0}}
    client.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n")
    while data := client.recv(4096):  # requests have no end of line, and come one at a time
        request = json.loads(data)
        try:
            if request["execute"] == "qmp_capabilities":
                answer: dict[str, Any] = {"return": {}}
            else:
                answer = {"return": qemu.qmp(request["execute"], **request.get("arguments", {}))}
        except QemuFailed as error:
            answer = {"error": {"class": error.seen, "desc": error.message}}
        client.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\r\n")


@pytest.mark.parametrize("joined", [False, True])
def test_a_socket_is_asked_and_a_replay_does_without(
    joined: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    qemu = Qemu(x_query_virtio_vhost_queue_status={"kick": 7, "call": 8, "num": 8})
    record = str(tmp_path / "it.jsonl")
    with served(tmp_path / "s", lambda client: answering(qemu, client)) as path:
        how = [f"--qmp={path}#dev0"] if joined else ["--qmp", f"{path}#dev0"]
        assert main(["diag", "scripted:rng", *how, "--trace", record]) == 0
    out = capsys.readouterr().out
    assert "15/17  ok    device's view" in out and "it agrees with the driver" in out
    assert main(["replay", record]) == 0
    assert "device's view" not in capsys.readouterr().out


def old_qemu(client: socket.socket) -> None:
    """QEMU 6.2, which has none of the queries."""
    version = {"qemu": {"major": 6, "minor": 2, "micro": 0}}
    client.sendall(json.dumps({"QMP": {"version": version, "capabilities": []}}).encode() + b"\r\n")
    while data := client.recv(4096):  # requests have no end of line, and come one at a time
        request = json.loads(data)
        command, answer = request["execute"], {"return": {}}
        if command == "query-version":
            answer = {"return": version}
        elif command.startswith("x-"):
            answer = {"error": {"class": "CommandNotFound", "desc": f"The command {command} has not been found"}}
        client.sendall(json.dumps({**answer, "id": request["id"]}).encode() + b"\r\n")


def garbage_later(client: socket.socket) -> None:
    client.sendall(b'{"QMP": {"version": {"qemu": {"major": 8, "minor": 0, "micro": 0}}}}\r\n')
    client.recv(4096)
    client.sendall(b'{"return": {}, "id": 1}\r\n\xff\xfe\r\n')
    client.recv(4096)


CASES: dict[str, tuple[Callable[[socket.socket], object], str]] = {
    "closed at once": (lambda client: None, "it closed the connection"),
    "another protocol": (lambda client: client.sendall(b"SSH-2.0-OpenSSH_9.2\r\n"), "SSH-2.0"),
    "no version": (lambda client: client.sendall(b'{"QMP": {}}\r\n'), "QMP"),
    "no greeting": (lambda client: client.recv(1), "another client"),
    "an old QEMU": (old_qemu, "QEMU 6.2.0"),
    "garbage later": (garbage_later, "xff"),
}


@pytest.mark.parametrize("case", CASES)
def test_a_socket_that_is_none_of_qemus_is_a_typed_error(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    serve, seen = CASES[case]
    with served(tmp_path / "s", serve) as path:
        patience = "0.2" if case == "no greeting" else "5"
        code = main(["diag", "scripted:rng", "--qmp", path, "--timeout", patience, "--json"])
    error = json.loads(capsys.readouterr().out)["error"]
    assert (code, error["code"]) == (QemuFailed.exit_code, QemuFailed.code), error
    assert seen in f"{error['seen']} {error['message']}", error


@pytest.mark.parametrize("path", ["{}/nothing", "{}/file", "/" + "x" * 200])
def test_what_is_no_socket_is_a_typed_error(path: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert main(["diag", "scripted:rng", "--qmp", path.format(tmp_path), "--json"]) == QemuFailed.exit_code
    assert json.loads(capsys.readouterr().out)["error"]["code"] == QemuFailed.code


def test_auto_is_for_addresses_of_qemu(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diag", "scripted:rng", "--qmp", "auto"]) == 2
    assert "--qmp SOCK" in capsys.readouterr().err


@pytest.mark.parametrize("word", ["", "#dev0"])
def test_no_socket_at_all_is_wrong_use(word: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["diag", "scripted:rng", "--qmp", word]) == 2
    assert "--qmp takes a socket" in capsys.readouterr().err
