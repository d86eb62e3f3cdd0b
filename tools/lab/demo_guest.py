"""The demo's half inside the VM: runs the steps, shows them, and holds each to what it claims."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

MIB = 1 << 20
WAIT_SECONDS = 30.0
_COLOUR = "FORCE_COLOR" in os.environ


def _style(text: str, code: str) -> str:
    return f"\033[{code}m{text}\033[0m" if _COLOUR else text


class Host:
    """What is outside: QEMU, asked through the tool that started it."""

    def __init__(self) -> None:
        self._share = Path(os.environ["UVIRTIO_LAB_OUT"])
        self._count = 0

    def ask(self, *question: Any) -> Any:
        """The answer to ``question`` (demo_host.py); RuntimeError for an error, TimeoutError for none."""
        new = self._share / "ask.new"
        new.write_text(json.dumps(question))
        new.rename(self._share / f"ask-{self._count}.json")
        path = self._share / f"answer-{self._count}.json"
        self._count += 1
        poll(path.exists, f"the host's answer to {question[0]}")
        answer = json.loads(path.read_text())
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["return"]


def poll(true: Callable[[], bool], what: str, timeout: float = WAIT_SECONDS) -> None:
    """Wait until ``true()``; TimeoutError after ``timeout`` seconds."""
    deadline = time.monotonic() + timeout
    while not true():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout:g} s for {what}")
        time.sleep(0.05)


@dataclass
class Running:
    """A command of a step while it runs: its output so far, and a way to end it."""

    child: subprocess.Popen[str]
    lines: list[str] = field(default_factory=list)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> None:
        """Wait until the output has a match of ``pattern``, or the command ended."""
        poll(
            lambda: re.search(pattern, self.output) is not None or self.child.poll() is not None,
            f"{pattern!r} in the output",
        )

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.child.send_signal(signal.SIGINT)


class Show:
    """Runs commands, shows them, and keeps count of what was claimed."""

    def __init__(self) -> None:
        self.held = 0
        self.broken: list[str] = []

    def title(self, text: str) -> None:
        """Begin a chapter."""
        print(f"\n{_style('## ' + text, '1')}", flush=True)

    def claim(self, text: str, true: bool) -> None:
        """Say ``text`` and whether it holds."""
        if true:
            self.held += 1
            print(f"   {_style('ok', '32')}  {text}", flush=True)
        else:
            self.broken.append(text)
            print(f" {_style('FAIL', '31')}  {text}", flush=True)

    def run(self, command: str, *, code: int = 0, during: Callable[[Running], None] | None = None) -> str:
        """Run ``command`` (words as for a shell, but no shell), and claim its exit code; its output.

        ``during`` is called while it runs; what it raises is a broken claim, and ends the command.
        """
        print(_style(f"$ {command}", "36"), flush=True)
        child = subprocess.Popen(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        )
        running = Running(child)
        reader = threading.Thread(target=self._read, args=(running,), daemon=True)
        reader.start()
        try:
            if during is not None:
                during(running)
        except (TimeoutError, RuntimeError) as error:
            self.claim(str(error), False)
            running.interrupt()
        try:
            child.wait(WAIT_SECONDS)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        reader.join(5)
        if child.returncode != code:
            self.claim(f"{command}: exit code {code} (it was {child.returncode})", False)
        return running.output

    @staticmethod
    def _read(running: Running) -> None:
        assert running.child.stdout is not None
        for line in running.child.stdout:
            running.lines.append(line)
            print(line, end="", flush=True)


def kernel_driver(address: str) -> str:
    """The PCI driver that has the function, or "none"."""
    link = Path("/sys/bus/pci/devices", address, "driver")
    return link.resolve().name if link.exists() else "none"


def demo(show: Show, host: Host) -> None:
    """The whole story, from a kernel's devices and back to them."""
    address = host.ask("addresses")
    balloon, rng, keyboard, mem = (address.get(name) for name in ("balloon", "rng", "keyboard", "mem"))
    ours = [balloon, rng, keyboard, *([mem] if mem else [])]
    total = host.ask("query_balloon")

    show.title("The kernel's own drivers have the devices")
    before = show.run("uvirtio list")
    for name in ours:
        show.claim(
            f"{name} is listed, and virtio-pci has it", name in before and kernel_driver(name) == "virtio-pci"
        )

    show.title("May we take one, and what would be written?")
    show.run(f"uvirtio plan {balloon}")

    show.title("Take them, through vfio-pci")
    show.run(f"uvirtio bind {' '.join(ours)}")
    show.claim("vfio-pci has them all", all(kernel_driver(name) == "vfio-pci" for name in ours))

    show.title("Bring each up, step by step")
    for name in (balloon, rng, keyboard):
        show.run(f"uvirtio diag {name}")

    show.title("Inflate the balloon by 64 MiB: the host sees the memory come")

    def watch_balloon(running: Running) -> None:
        running.wait_for("holding")
        seen = host.ask("query_balloon")
        show.claim(
            f"QMP query-balloon, outside: {seen // MIB} MiB of {total // MIB} MiB", seen == total - 64 * MIB
        )
        running.interrupt()

    show.run(f"uvirtio balloon inflate {balloon} 64M", code=130, during=watch_balloon)
    seen = host.ask("query_balloon")
    show.claim(f"after Ctrl-C QMP says {seen // MIB} MiB again", seen == total)

    show.title("Random bytes")
    dump = show.run(f"uvirtio rng read {rng} 64")
    show.claim("64 bytes came", len(re.findall(r"(?:^|\s)[0-9a-f]{2}(?=\s)", dump)) >= 64)

    show.title("Press keys on the host: they arrive here")

    def press(running: Running) -> None:
        running.wait_for("waiting")
        host.ask("press", ["u", "v", "ret"])

    events = show.run(f"uvirtio input events {keyboard} --count 12", during=press)
    for key in ("KEY_U", "KEY_V", "KEY_ENTER"):
        show.claim(f"{key} went down and up", len(re.findall(rf"\({key}\)", events)) == 2)

    if mem:
        plug(show, host, keyboard, mem)

    show.title("Give everything back")
    show.run("uvirtio restore --all")
    after = show.run("uvirtio list")
    show.claim("virtio-pci has them all", all(kernel_driver(name) == "virtio-pci" for name in ours))
    show.claim("the list reads as it did at first", after == before)

    show.title("The kernel's drivers work again")
    with Path("/dev/hwrng").open("rb") as source:
        show.claim("virtio_rng gives bytes", len(source.read(16)) == 16)
    host.ask("balloon", total - 32 * MIB)
    try:
        poll(lambda: host.ask("query_balloon") == total - 32 * MIB, "virtio_balloon")
        show.claim("virtio_balloon follows the host by 32 MiB", True)
    except TimeoutError:
        show.claim("virtio_balloon follows the host by 32 MiB", False)


def plug(show: Show, host: Host, keyboard: str, mem: str) -> None:
    """What takes longer than a short demo has: virtio-mem, and an LED."""
    show.run(f"uvirtio input led {keyboard} capslock on")

    show.title("The host offers 128 MiB: plug it, see it, unplug it")
    host.ask("request_memory", 128 * MIB)
    show.run(f"uvirtio mem plug {mem} 128M")
    seen = host.ask("query_memory")
    show.claim(f"QMP query-memory-devices, outside: {seen // MIB} MiB", seen == 128 * MIB)
    show.run(f"uvirtio mem map {mem}")
    host.ask("request_memory", 0)
    show.run(f"uvirtio mem unplug-all {mem}")
    seen = host.ask("query_memory")
    show.claim(f"and now {seen // MIB} MiB", seen == 0)


def main() -> int:
    """Run the demo; 0 if every claim held."""
    show, begin = Show(), time.monotonic()
    try:
        demo(show, Host())
    except (TimeoutError, RuntimeError, OSError) as error:
        show.claim(f"the demo goes on: {error}", False)
    took = time.monotonic() - begin
    verdict = "PASS" if not show.broken else "FAIL"
    show.title(f"{verdict}: {show.held} claims held, {len(show.broken)} broken, {took:.0f} s in the VM")
    for text in show.broken:
        print(f"   broken: {text}")
    return 0 if not show.broken else 1


if __name__ == "__main__":
    sys.exit(main())
