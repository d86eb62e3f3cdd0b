"""A record as a trace for Perfetto and chrome://tracing: the array form of the Trace Event Format.

(``https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU``.) Its closing bracket may be
missing, so that the file of a process that was killed can be opened too. Times are in microseconds.
"""

from __future__ import annotations

import json
from typing import Any, Final

from uvirtio.trace.lines import FORMAT

_ROWS: Final = {"registers": 1, "back end": 2, "kicks": 3, "interrupts": 4, "memory": 5, "log": 6}
_ROW_OF: Final = {
    "read": "registers",
    "write": "registers",
    "call": "back end",
    "kick": "kicks",
    "take": "interrupts",
    "rearm": "interrupts",
    "poll": "interrupts",
    "sleep": "interrupts",
    "memory": "memory",
}
_QUEUES: Final = 100


class ChromeLines:
    """Turns the lines of a record into trace events."""

    def __init__(self) -> None:
        self._device = 0
        self._first = True
        self._flying: dict[int, set[int]] = {}

    def line(self, members: dict[str, Any]) -> str:
        """Return the events for a line; empty where it has none (the clock)."""
        return "".join(self._written(event) for event in self._events(members))

    def _written(self, event: dict[str, Any]) -> str:
        before, self._first = ("[\n" if self._first else ",\n"), False
        return before + json.dumps(event, separators=(",", ":"))

    def last(self) -> str:
        """Return what ends the file."""
        return "[]\n" if self._first else "\n]\n"

    def _events(self, members: dict[str, Any]) -> list[dict[str, Any]]:
        op = members["op"]
        if op == FORMAT:
            return []
        if op == "open":
            return self._open(members)
        common = {"pid": self._device or 1, "ts": round(members["t"] * 1e6, 1)}
        if op == "chain":
            return self._chain(members, common)
        if op in ("note", "end"):
            name = members.get("text") or f"end, exit code {members.get('exit')}"
            return [{"ph": "i", "s": "p", "tid": _ROWS["log"], "name": name, "cat": op, "args": {}, **common}]
        if op not in _ROW_OF:
            return []
        if op == "take" and members.get("is") is False:
            return []
        row = _ROW_OF[op]
        shown = {key: value for key, value in members.items() if key not in ("op", "t", "took")}
        if op == "memory":
            name = f"new: {len(members['hex']) // 2} bytes"
            return [{"ph": "i", "s": "t", "tid": _ROWS[row], "name": name, "cat": op, "args": shown, **common}]
        name = f"{op} {members['at']}" if op != "call" else str(members["at"])
        took = round(members.get("took", 0) * 1e6, 1)
        return [{"ph": "X", "dur": took, "tid": _ROWS[row], "name": name, "cat": op, "args": shown, **common}]

    def _open(self, members: dict[str, Any]) -> list[dict[str, Any]]:
        self._device += 1
        self._flying = {}
        common = {"ph": "M", "pid": self._device, "ts": 0}
        return [
            {
                "name": "process_name",
                "tid": 0,
                "args": {"name": f"{members['device']} ({members['bus']})"},
                **common,
            },
            *(
                {"name": "thread_name", "tid": number, "args": {"name": name}, **common}
                for name, number in _ROWS.items()
            ),
        ]

    def _chain(self, members: dict[str, Any], common: dict[str, Any]) -> list[dict[str, Any]]:
        queue, number = members["queue"], members["number"]
        flying = self._flying.get(queue)
        events: list[dict[str, Any]] = []
        if flying is None:
            flying = self._flying[queue] = set()
            name = f"queue {queue} {members['name']}"
            meta = {"ph": "M", "pid": common["pid"], "tid": _QUEUES + queue, "ts": 0}
            events.append({"name": "thread_name", "args": {"name": name}, **meta})
        out = members["way"] == "out"
        (flying.add if out else flying.discard)(number)
        shown = {key: value for key, value in members.items() if key not in ("op", "t", "way")}
        chain = {"tid": _QUEUES + queue, "cat": "chain", "name": f"{members['name']} chain", **common}
        ident = f"{common['pid']}.{queue}.{number}"
        events.append({"ph": "b" if out else "e", "id": ident, "args": shown, **chain})
        count = {"ph": "C", "name": f"{members['name']} in flight", "args": {"chains": len(flying)}}
        events.append({**count, "tid": _QUEUES + queue, "cat": "chain", **common})
        return events
