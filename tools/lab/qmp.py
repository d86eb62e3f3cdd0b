"""QMP over QEMU's UNIX socket: the little of it that the demo, the fleet and ``tools/vm serve`` need."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from types import TracebackType
from typing import Any

from lab import LabError


class Qmp:
    """One session; a context manager. ``timeout`` (seconds) holds for each answer."""

    def __init__(self, path: Path, timeout: float = 10.0) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(path))
            self._lines = self._socket.makefile("rb")
            self._lines.readline()  # the greeting
            self.execute("qmp_capabilities")
        except BaseException:
            self._socket.close()
            raise

    def __enter__(self) -> Qmp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lines.close()
        self._socket.close()

    def execute(self, command: str, arguments: dict[str, Any] | None = None) -> Any:
        """What QEMU returns for ``command``; LabError if it refuses or goes."""
        message = {"execute": command} | ({"arguments": arguments} if arguments else {})
        self._socket.sendall(json.dumps(message).encode() + b"\n")
        while True:
            line = self._lines.readline()
            if not line:
                raise LabError(f"QEMU went away during {command}", 1)
            reply = json.loads(line)
            if "error" in reply:
                raise LabError(f"QMP {command}: {reply['error'].get('desc')}", 1)
            if "return" in reply:
                return reply["return"]
