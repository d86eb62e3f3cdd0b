"""The demo's stage: commands are run and shown line by line, the host is asked, and claims are counted."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
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
