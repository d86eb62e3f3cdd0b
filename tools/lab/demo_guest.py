"""The demo's half inside the VM: runs the steps, shows them, and holds each to what it claims.

What the guest does and what the host says stand side by side: each line begins with who it is.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lab.commands import Command, Commands

MIB = 1 << 20
WAIT_SECONDS = 60.0
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

    command: Command
    lines: list[str] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)

    @property
    def output(self) -> str:
        return "".join(self.lines)

    def wait_for(self, pattern: str) -> None:
        """Wait until the output has a match of ``pattern``, or the command ended."""
        poll(
            lambda: re.search(pattern, self.output) is not None or self.over.is_set(),
            f"{pattern!r} in the output",
        )

    def interrupt(self) -> None:
        """What Ctrl-C does."""
        self.command.send_signal(signal.SIGINT)


class Show:
    """Runs commands, shows them, and keeps count of what was claimed."""

    def __init__(self, commands: Commands) -> None:
        self._commands = commands
        self.held = 0
        self.broken: list[str] = []

    def title(self, text: str) -> None:
        """Begin a chapter."""
        print(f"\n{_style('## ' + text, '1')}", flush=True)

    @staticmethod
    def say(who: str, text: str, code: str = "") -> None:
        """One line, and whose it is."""
        print(f"{who:>5} {_style('|', '2')} {_style(text, code) if code else text}", flush=True)

    def host(self, text: str) -> None:
        """What the host does or sees."""
        self.say("host", text, "33")

    def claim(self, text: str, true: bool) -> None:
        """Say ``text`` and whether it holds."""
        if true:
            self.held += 1
            self.say("", f"{_style('ok', '32')}  {text}")
        else:
            self.broken.append(text)
            self.say("", f"{_style('FAIL', '31')}  {text}")

    def run(self, command: str, *, code: int = 0, during: Callable[[Running], None] | None = None) -> str:
        """Run ``uvirtio ...`` (words as for a shell, but no shell), and claim its exit code; its output.

        ``during`` is called while it runs; what it raises is a broken claim, and ends the command.
        """
        self.say("guest", f"$ {command}", "36")
        program, *words = shlex.split(command)
        assert program == "uvirtio"
        running = Running(self._commands.start(*words))
        reader = threading.Thread(target=self._read, args=(running,), daemon=True)
        reader.start()
        try:
            if during is not None:
                during(running)
        except (TimeoutError, RuntimeError) as error:
            self.claim(str(error), False)
            running.interrupt()
        try:
            status = running.command.wait(WAIT_SECONDS)
        except TimeoutError:
            running.command.kill()
            status = running.command.wait(WAIT_SECONDS)
        reader.join(5)
        if status != code:
            self.claim(f"{command}: exit code {code} (it was {status})", False)
        return running.output

    def _read(self, running: Running) -> None:
        with running.command.stdout as lines:
            for line in lines:
                self.say("guest", line.rstrip("\n"))
                running.lines.append(line)
        running.over.set()


def kernel_driver(address: str) -> str:
    """The PCI driver that has the function, or "none"."""
    link = Path("/sys/bus/pci/devices", address, "driver")
    return link.resolve().name if link.exists() else "none"


def demo(show: Show, host: Host) -> None:
    """The whole story, from a kernel's devices and back to them."""
    address = host.ask("addresses")
    balloon, mem, keyboard = (address[name] for name in ("balloon", "mem", "keyboard"))
    ours = [balloon, mem, keyboard]
    total = host.ask("query_balloon")

    show.title("The kernel's own drivers have the devices: may we take one?")
    before = show.run("uvirtio list")
    listed = all(name in before and kernel_driver(name) == "virtio-pci" for name in ours)
    show.claim("balloon, memory and keyboard are listed, and virtio-pci has them", listed)
    show.run(f"uvirtio plan {balloon}")

    show.title("Take them, through vfio-pci, and bring one up step by step")
    show.run(f"uvirtio bind {' '.join(ours)}")
    show.claim("vfio-pci has them all", all(kernel_driver(name) == "vfio-pci" for name in ours))
    diagnosis = show.run(f"uvirtio diag {keyboard}")
    show.claim("it works, and each step says so", "verdict: pass" in diagnosis)

    inflate(show, host, balloon, total)
    plug(show, host, mem)
    keys(show, host, keyboard)

    show.title("Give everything back")
    show.run("uvirtio restore --all")
    after = show.run("uvirtio list")
    show.claim("virtio-pci has them all", all(kernel_driver(name) == "virtio-pci" for name in ours))
    show.claim("the list reads as it did at first", listed and after == before)

    show.title("The kernel's drivers work again")
    show.host(f"QMP balloon {(total - 32 * MIB) // MIB} MiB")
    host.ask("balloon", total - 32 * MIB)
    reached(show, host, "query_balloon", total - 32 * MIB, "virtio_balloon follows, QMP query-balloon: {} MiB")


def reached(show: Show, host: Host, question: str, wanted: int, text: str) -> None:
    """Claim that the host's books come to say ``wanted`` bytes."""
    seen = host.ask(question)
    deadline = time.monotonic() + WAIT_SECONDS / 2
    while seen != wanted and time.monotonic() < deadline:
        time.sleep(0.05)
        seen = host.ask(question)
    show.claim(text.format(seen // MIB), seen == wanted)


def inflate(show: Show, host: Host, balloon: str, total: int) -> None:
    """The balloon: as large as the command says, then as large as the host says."""
    show.title("Balloon: inflate by 64 MiB, and give it back on Ctrl-C")

    def watch(running: Running) -> None:
        running.wait_for("holding")
        reached(show, host, "query_balloon", total - 64 * MIB, "host: QMP query-balloon says {} MiB")
        running.interrupt()

    show.run(f"uvirtio balloon inflate {balloon} 64M", code=130, during=watch)
    reached(show, host, "query_balloon", total, "host: after Ctrl-C it says {} MiB again")

    show.title("Balloon: follow the host, and tell it how the guest's memory is")

    def lead(running: Running) -> None:
        running.wait_for("following")
        host.ask("poll_statistics", 1)
        for less in (96, 16):
            target = total - less * MIB
            show.host(f"QMP balloon {target // MIB} MiB")
            host.ask("balloon", target)
            reached(show, host, "query_balloon", target, "host: QMP query-balloon says {} MiB")
        poll(lambda: bool(host.ask("statistics")), "statistics")
        values = host.ask("statistics")
        words = ", ".join(f"{name.removeprefix('stat-')} {value // MIB} MiB" for name, value in values.items())
        show.host(f"QMP guest-stats: {words}")
        show.claim("the guest's MEMTOT is MemTotal", values["stat-total-memory"] == mem_total())
        host.ask("balloon", total)
        running.interrupt()

    show.run(f"uvirtio balloon follow {balloon}", code=130, during=lead)
    host.ask("poll_statistics", 0)


def mem_total() -> int:
    """Bytes of memory that this Linux has."""
    [line] = [line for line in Path("/proc/meminfo").read_text().splitlines() if line.startswith("MemTotal:")]
    return int(line.split()[1]) * 1024


def plug(show: Show, host: Host, mem: str) -> None:
    """virtio-mem: blocks come and go as the host requests."""
    show.title("Memory: follow the host's requested-size up and down")

    def lead(running: Running) -> None:
        running.wait_for("following")
        for size in (128, 48):
            show.host(f"QMP qom-set requested-size {size} MiB")
            host.ask("request_memory", size * MIB)
            reached(show, host, "query_memory", size * MIB, "host: QMP query-memory-devices says {} MiB")
        running.interrupt()

    show.run(f"uvirtio mem follow {mem}", code=130, during=lead)

    show.title("Memory: it stays plugged when the process ends; see it, and unplug it")
    picture = show.run(f"uvirtio mem map {mem}")
    show.claim("24 blocks of 2 MiB are plugged", picture.count("#") == 24 + 1)  # and one in the legend
    host.ask("request_memory", 0)
    show.run(f"uvirtio mem unplug-all {mem}")
    reached(show, host, "query_memory", 0, "host: QMP query-memory-devices says {} MiB")


def keys(show: Show, host: Host, keyboard: str) -> None:
    """The keyboard: keys come in, LEDs go out."""
    show.title("Keyboard: the host presses keys, and they arrive here")

    def press(running: Running) -> None:
        running.wait_for("waiting")
        show.host("QMP input-send-event u, v, ret: down and up")
        host.ask("press", ["u", "v", "ret"])

    events = show.run(f"uvirtio input events {keyboard} --count 12", during=press)
    both = all(len(re.findall(rf"\({key}\)", events)) == 2 for key in ("KEY_U", "KEY_V", "KEY_ENTER"))
    show.claim("each key went down and up", both)

    show.title("Keyboard: LEDs go the other way, and a VNC client of the host sees them")
    for led, state in (("capslock", "on"), ("numlock", "on"), ("capslock", "off"), ("numlock", "off")):
        show.run(f"uvirtio input led {keyboard} {led} {state}")
        if state == "on":
            lit = host.ask("leds", led, True)
            show.claim(f"host: VNC says that {led} is lit", lit)
    show.claim("host: VNC says that both are dark", host.ask("leds", "", False))


def main() -> int:
    """Run the demo; 0 if every claim held."""
    begin = time.monotonic()
    commands = Commands.fork()
    show = Show(commands)
    try:
        demo(show, Host())
    except (TimeoutError, RuntimeError, OSError) as error:
        show.claim(f"the demo goes on: {error}", False)
    commands.close()
    took = time.monotonic() - begin
    verdict = "PASS" if not show.broken else "FAIL"
    show.title(f"{verdict}: {show.held} claims held, {len(show.broken)} broken, {took:.0f} s in the VM")
    for text in show.broken:
        print(f"   broken: {text}")
    return 0 if not show.broken else 1


if __name__ == "__main__":
    sys.exit(main())
