"""``uvirtio net`` on QEMU's card: what people type, and what other programs read of it."""

from __future__ import annotations

import json
import shutil
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.bodies.net import arp_request
from tests.qemu.test_cli import Command
from uvirtio.drivers.net import mac_of, pcap

MAC = "52:54:00:00:00:05"
CARD = f"qemu:virtio-net-pci,mac={MAC}"
ASK = arp_request(mac_of(MAC))


def run(*argv: str) -> tuple[int, Any]:
    code, out, err = Command("net", *argv, "--json").end()
    assert err == ""
    return code, [json.loads(line) for line in out.splitlines()]


def test_what_a_card_is_and_whether_its_network_answers() -> None:
    code, (told,) = run("info", f"{CARD},speed=1000,duplex=full,host_mtu=1400")
    assert code == 0 and told["mac"] == MAC and told["link"] is True and told["max_frame"] == 1418
    assert (told["mtu"], told["speed_mbit"], told["full_duplex"], told["pairs_max"]) == (1400, 1000, True, 1)
    code, told = run("ping", CARD, "--count", "2", "--interval", "0.01", "--size", "1000")
    assert code == 0 and told[0]["mac"] == "52:55:0a:00:02:02"
    assert [one["bytes"] for one in told[1:3]] == [1008, 1008] and told[-1]["received"] == 2


def test_frames_of_a_file_are_sent_and_captured(tmp_path: Path) -> None:
    source, seen = tmp_path / "source.pcap", tmp_path / "seen.pcap"
    sent = [ASK, bytes(12) + b"\x88\xb5" + bytes(range(200)), ASK.ljust(1514, b"\0")]
    with source.open("wb") as file:
        pcap.Writer(file).write(sent, 1_700_000_000_000_000_000)
    if shutil.which("tcpdump") is not None:  # another program's view of our files
        text = subprocess.run(["tcpdump", "-n", "-r", source], capture_output=True, text=True, timeout=20).stdout
        assert text.count("ARP, Request who-has 10.0.2.2") == 2 and text.count("\n22:13:20.000000") == 2
    code, (told,) = run("send", CARD, "--in", str(source))
    assert code == 0 and (told["frames"], told["bytes"]) == (3, sum(map(len, sent)))
    with source.open("ab") as file:
        file.write(b"cut")
    code, (told,) = run("send", CARD, "--in", str(source))
    assert code == 2 and told["error"]["code"] == "UV-USAGE-CAPTURE"
    assert run("send", CARD, "00" * 13 + "x")[0] == run("send", CARD)[0] == 2
    command = Command("net", "capture", CARD, "-o", str(seen), "--for", "0.2", "--json")
    code, out, _ = command.end()
    assert code == 0 and json.loads(out)["frames"] == 0 and seen.stat().st_size == 24


def test_a_bridge_from_qemus_network_to_a_socket(tmp_path: Path) -> None:
    path = tmp_path / "cable"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        bridge = Command("net", "bridge", CARD, "--to", f"unix:{path}", "--json")
        listener.settimeout(20)
        connection, _ = listener.accept()
        with connection:
            connection.settimeout(20)
            assert bridge.event("bridged")["mac"] == MAC
            connection.sendall(len(ASK).to_bytes(4, "big") + ASK)
            length = int.from_bytes(connection.recv(4, socket.MSG_WAITALL), "big")
            answer = connection.recv(length, socket.MSG_WAITALL)
            assert answer[:6].hex(":") == MAC and answer[20:22] == b"\0\2"
            bridge.process.send_signal(signal.SIGINT)
            left = bridge.event("left")
            assert (left["out"], left["back"], left["out_dropped"]) == (1, 1, 0)
            assert bridge.end()[0] == 130


@pytest.mark.parametrize("words", [["--count", "0"], ["--for", "nan"]])
def test_words_that_make_no_sense(words: list[str]) -> None:
    assert run("receive", CARD, *words)[0] == 2
