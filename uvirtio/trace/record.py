"""Recording: a tape that does what it is asked to, and writes each action into a file.

The name of the file decides its form: ``.json`` is a trace for Perfetto and chrome://tracing, any other is JSON
Lines, which can be replayed. Each line is written at once, so that the file of a process that was killed has all
lines but the last.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from uvirtio.errors import OperationFailed, UvirtioError
from uvirtio.interfaces.backend import Backend
from uvirtio.memory.unclosed import warn_unclosed
from uvirtio.trace.chrome import ChromeLines
from uvirtio.trace.lines import FORMAT, VERSION, pack
from uvirtio.trace.seam import facts_of, on_tape
from uvirtio.trace.tape import Books, Fits, Memory, nothing

_GRAIN = 64
"""Bytes. Memory is compared in pieces of this size, so that what a device wrote far apart is noted apart."""

MODE = 0o600


class _Form(Protocol):
    """How lines are written."""

    def line(self, members: dict[str, Any]) -> str:
        """Return the text for a line of the record; empty: none."""
        ...

    def last(self) -> str:
        """Return what ends the file."""
        ...


class _JsonLines:
    def line(self, members: dict[str, Any]) -> str:
        """Return the line."""
        return json.dumps(members, separators=(",", ":")) + "\n"

    def last(self) -> str:
        """Return nothing: any line may be the last."""
        return ""


class Recorder(Books):
    """Records every device that is opened with ``uvirtio.open(..., record=recorder)`` into one file.

    A context manager; ``close()`` ends the file. Satisfies ``Records`` and ``Tape``.
    """

    replays = False

    def __init__(self, path: str | os.PathLike[str], *, command: Sequence[str] = (), **about: Any) -> None:
        """Create the file, which only its owner can read (mode 0600); one of that name is replaced.

        Args:
            path: The file. ``.json``: a trace for Perfetto; any other name: JSON Lines.
            command: The words of the command line, for ``uvirtio replay``.
            **about: More members of the header.

        Raises:
            OperationFailed: The file cannot be written.
        """
        super().__init__()
        self.path = Path(path)
        self._form: _Form = ChromeLines() if self.path.suffix == ".json" else _JsonLines()
        self._begin = 0.0
        self._owner = os.getpid()
        self._once = False
        self._aside = False
        try:
            number = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, MODE)
            self._file = os.fdopen(number, "w", encoding="utf-8", buffering=1)
            os.fchmod(number, MODE)
        except UvirtioError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error
        maker = getattr(sys.modules.get("uvirtio"), "__version__", "unknown")
        self._write({"op": FORMAT, "version": VERSION, "uvirtio": maker, "command": list(command), **about})

    def _unwritable(self, error: OSError) -> OperationFailed:
        return OperationFailed(
            f"the record {self.path} cannot be written",
            seen=error.strerror,
            expected="a file that can be written",
            remedy="name another file, or make room on its disk",
        )

    def _write(self, members: dict[str, Any]) -> None:
        if self._file.closed:
            return
        text = self._form.line(members)
        try:
            self._file.write(text)
        except UvirtioError:
            raise
        except OSError as error:
            raise self._unwritable(error) from error

    def _now(self) -> float:
        return round(time.monotonic() - self._begin, 7) if self._begin else 0.0

    # --- Records ----------------------------------------------------------------------------------------------

    def recorded(self, address: str, found: Backend) -> Backend:
        """Return what stands for a back end's object and records it; see ``Records``."""
        facts = facts_of(found)
        if not self._begin:
            self._begin = time.monotonic()
        self._write({"n": self._n, "t": self._now(), "op": "open", "device": address, **facts})
        made: Backend = on_tape(self, facts, found)
        return made

    def once(self) -> Recorder:
        """End the file when the first device is closed; returns the recorder itself."""
        self._once = True
        return self

    def left(self) -> None:
        """Note that a device was closed."""
        if self._once:
            self.close()

    def end(self, code: int, error: UvirtioError | None = None) -> None:
        """Note how the command ended, and close the file.

        Args:
            code: Its exit code.
            error: Its error; None: none.
        """
        members: dict[str, Any] = {"n": self._n, "t": self._now(), "op": "end", "exit": code}
        if error is not None:
            members["error"] = {
                key: None if value is None else str(value) for key, value in error.as_dict().items()
            }
        self._write(members)
        self.close()

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Record nothing meanwhile: for a look at the device that a replay does not repeat."""
        before, self._aside = self._aside, True
        try:
            yield
        finally:
            self._aside = before

    def close(self) -> None:
        """End the file; idempotent."""
        if not self._file.closed:
            try:
                self._file.write(self._form.last())
                self._file.close()
            except UvirtioError:
                raise
            except OSError as error:
                raise self._unwritable(error) from error

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if "_file" in self.__dict__ and not self._file.closed and os.getpid() == self._owner:
            warn_unclosed(self, str(self.path), then=self.close)

    # --- Tape -------------------------------------------------------------------------------------------------

    def ask(self, op: str, at: str, args: list[Any], do: Callable[[], Any], fits: Fits = nothing) -> Any:
        """Do something, and note it; see ``Tape``."""
        del fits
        if self._aside:
            return do()
        self._n += 1
        members: dict[str, Any] = {"n": self._n, "t": self._now(), "op": op, "at": at, "args": args}
        try:
            value = do()
        except (UvirtioError, OSError) as error:
            self._write({**members, "took": round(self._now() - members["t"], 7), "raises": pack(error)})
            raise
        self._write({**members, "took": round(self._now() - members["t"], 7), "is": value})
        return value

    def look(self, block: Memory, offset: int, length: int, read: Callable[[], bytes]) -> bytes:
        """Read memory by one access; note what is new there, and then what is new in all other memory."""
        if self._aside:
            return read()
        self._n += 1
        data = read()
        if block.image[offset : offset + length] != data:
            self._note(block, offset, data)
            self._compare()
        return data

    def _note(self, block: Memory, offset: int, data: bytes) -> None:
        block.image[offset : offset + len(data)] = data
        line = {"n": self._n, "t": self._now(), "op": "memory", "block": block.number, "offset": offset}
        self._write({**line, "hex": data.hex()})

    def mark(self) -> None:
        """Remember what changed since the last time in the blocks that no ring is in; see ``Tape``.

        The driver's own writes count too: the device may write there again what was there before, and a replay
        has to undo what the driver wrote in between.
        """
        for block in self._blocks.values():
            if block.ring:
                continue
            now = bytes(block.view)  # one copy: a view is compared element by element, and that takes far longer
            if now != block.image:
                block.fresh.update(
                    at
                    for at in range(0, len(now), _GRAIN)
                    if now[at : at + _GRAIN] != block.image[at : at + _GRAIN]
                )
                block.image[:] = now

    def _compare(self) -> None:
        """Note what changed in the blocks that no ring is in, since it was noted last."""
        self.mark()
        for block in self._blocks.values():
            places, block.fresh = sorted(block.fresh), set()
            while places:
                count = 1
                while count < len(places) and places[count] == places[0] + count * _GRAIN:
                    count += 1
                self._note(block, places[0], bytes(block.image[places[0] : places[0] + count * _GRAIN]))
                del places[:count]

    def remark(self, op: str, **members: Any) -> None:
        """Note something for people."""
        self._write({"n": self._n, "t": self._now(), "op": op, **members})
