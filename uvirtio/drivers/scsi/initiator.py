"""Sending commands to logical units: queues, requests, task management and events of a SCSI host device (5.6)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from operator import index

from uvirtio.device import Device, Observer, QueueSpec, unobserved
from uvirtio.drivers.burst import BaseBurst
from uvirtio.drivers.requests import options
from uvirtio.drivers.scsi.adapter import Adapter
from uvirtio.drivers.scsi.commands import Command
from uvirtio.drivers.scsi.control import ControlQueue
from uvirtio.drivers.scsi.events import Event, EventQueue
from uvirtio.drivers.scsi.lun import Lun
from uvirtio.drivers.scsi.queues import RequestQueues
from uvirtio.drivers.scsi.request import Request
from uvirtio.errors import BadSize, ScsiCheck
from uvirtio.spec import scsi as spec
from uvirtio.spec.scsi import EventType, Key, ResetReason, Response, Task

DEPTH = 32
"""Requests of one queue that can be in flight, by default."""
REQUEST_SIZE = 32 << 10
"""Bytes of data of one request, by default; longer reads and writes are several requests."""
_ATTENTIONS = 4
"""How often a command that changes nothing is repeated after a unit attention: several can be pending."""
_TASK_DONE = (Response.OK, Response.FUNCTION_SUCCEEDED)
_RESETS = (Task.CLEAR_TASK_SET, Task.CLEAR_ACA, Task.I_T_NEXUS_RESET, Task.LOGICAL_UNIT_RESET)


class Initiator(Adapter):
    """Base of ``Scsi``: any command to any unit, task management, events."""

    _requests: RequestQueues

    def __init__(
        self,
        device: Device,
        *,
        allow_write: bool = False,
        depth: int = DEPTH,
        request_size: int = REQUEST_SIZE,
        queues: int = 1,
        observe: Observer = unobserved,
    ) -> None:
        """Start the device; ``Driver.__init__`` lists how that can fail.

        Args:
            device: An open SCSI host device.
            allow_write: Allow commands that change what a unit stores, and resets.
            depth: Requests of one queue that can be in flight; another one waits until one is complete.
            request_size: Bytes of data of one request, at most; a multiple of 512.
            queues: Request queues to use, if the device has as many.
            observe: Called after each step of the initialisation.

        Raises:
            NotVirtio: The device is of another type.
            UsageError: ``depth`` or ``queues`` is below 1.
            BadSize: ``request_size`` is no multiple of 512, or not from 512 bytes to 64 MiB.
            ConfigError: The configuration has sizes that no request can have.
        """
        wanted = options(depth, request_size, queues, spec.UNIT)
        self._wanted_depth, self._wanted_size, self._wanted_queues = wanted
        self._events: EventQueue | None = None
        self._bursts: list[BaseBurst] = []
        super().__init__(device, allow_write=allow_write, observe=observe)
        if self._events is not None:
            with self.session():
                self._events.stock()

    # --- bring-up -------------------------------------------------------------------------------------------

    def _queues(self) -> Sequence[QueueSpec]:
        self._read_config()
        count = min(self._wanted_queues, self._config.num_queues)
        return [
            QueueSpec(spec.CONTROLQ, "controlq", size=16),
            QueueSpec(spec.EVENTQ, "eventq", size=32, required=False, owed=False),
            *(
                # QEMU (7.2 to 11.1) counts in the used length the data that it read, too.
                QueueSpec(
                    spec.REQUESTQ + number, f"requestq{number + 1}", required=number == 0, clamp_used_len=True
                )
                for number in range(count)
            ),
        ]

    def _before_ok(self) -> None:
        device = self.device
        self._control = ControlQueue(device, device.queues[spec.CONTROLQ])
        if spec.EVENTQ in device.queues:
            size = self._config.event_info_size
            self._events = EventQueue(device, device.queues[spec.EVENTQ], size, self._finding)
        self._requests = RequestQueues(self, depth=self._wanted_depth, request_size=self._wanted_size)
        self._requests.watch = self._take_events

    def _about(self) -> str:
        access = "writable" if self.allow_write else "read-only"
        return f"{access}, {self.in_flight} requests out"

    # --- any command ----------------------------------------------------------------------------------------

    def execute(self, lun: Lun, command: Command, *, timeout: float | None = None) -> bytes:
        """Send one command and wait for it. It is repeated after a unit attention if it changes nothing.

        Args:
            lun: The unit.
            command: The command; ``uvirtio.drivers.scsi.commands`` makes them.
            timeout: Seconds to wait; the device's own where None.

        Returns:
            What the device wrote.

        Raises:
            WriteRefused: The command may change what is stored, and that is not allowed; nothing was sent.
            BadSize: It does not fit one request; nothing was sent.
            ScsiCheck, ScsiStatus, ScsiTransport, ScsiAnswer: It failed.
            DeviceTimeout: It did not complete in time.
            ProtocolError: Its answer is invalid.
        """
        with self.session(timeout):
            self._allowed(command)
            return self._run(lun, [command], timeout, repeat=not command.changes)[0]

    def submit(self, lun: Lun, command: Command, *, queue: int | None = None, kick: bool = True) -> Request:
        """Submit one command. Waits for a slot if ``depth`` are in flight, or ``cmd_per_lun`` to the unit.

        Args:
            lun: The unit.
            command: The command; its data are copied.
            queue: The index of the queue, 2 or more; None: any with a free slot.
            kick: Notify the device; else the next kick or wait does.

        Returns:
            The request; its ``result()`` waits for the data.

        Raises:
            WriteRefused: The command may change what is stored, and that is not allowed.
            BadSize: It does not fit one request.
            UsageError: There is no such queue.
            DeviceTimeout: No request completed in time to free a slot.
            ProtocolError: A request that completed meanwhile has an invalid answer.
        """
        with self.session():
            self._allowed(command)
            return self._requests.submit(lun, command, queue=queue, kick=kick)

    def poll(self) -> int:
        """Reap complete requests and events, without waiting.

        Returns:
            How many requests there were.

        Raises:
            ProtocolError: An answer is invalid.
        """
        with self.session():
            self.device.service()
            return self._requests.collect()

    def wait(self, requests: Iterable[Request] | None = None, *, timeout: float | None = None) -> None:
        """Wait until requests are complete, successful or not; errors are in the requests.

        Args:
            requests: What to wait for; None: all that are in flight.
            timeout: Seconds, for all of them; the device's own where None.

        Raises:
            DeviceTimeout: They did not complete in time; the device counts as broken then.
            ProtocolError: An answer is invalid.
        """
        self._requests.wait(requests, timeout=timeout)

    def _allowed(self, command: Command) -> None:
        if command.changes:
            self._require_write(f"send {command.name}")

    def _all(
        self, wanted: Iterable[tuple[Lun, Command]], timeout: float | None, repeat: bool = True
    ) -> list[Request]:
        """Send commands and wait for all of them, successful or not.

        Only the first is kicked at once, so that the device starts; the others together, when all slots are in
        flight or the results are waited for: a kick costs more than a command.
        """
        out: list[Request] = []
        for lun, command in wanted:
            out.append(self._requests.submit(lun, command, kick=not out, timeout=timeout))
        for request in out:
            if not request.done:
                self._requests.wait([request], timeout=timeout)
        if repeat:
            return [self._repeated(request, timeout) for request in out]
        return out

    def _repeated(self, request: Request, timeout: float | None) -> Request:
        """Send a command again while the unit reports a unit attention (SAM-5, 5.14)."""
        for _ in range(_ATTENTIONS):
            error = request.error
            if not isinstance(error, ScsiCheck) or error.key != Key.UNIT_ATTENTION:
                break
            self.device.check_time(request.command.name)
            request = self._requests.submit(request.lun, request.command, timeout=timeout)
            self._requests.wait([request], timeout=timeout)
        return request

    def _run(self, lun: Lun, made: Iterable[Command], timeout: float | None, repeat: bool = True) -> list[bytes]:
        """Send commands to one unit, and return their data; the first error is raised when all are complete."""
        return [request.result() for request in self._all(((lun, one) for one in made), timeout, repeat)]

    # --- task management (5.6.6.2) --------------------------------------------------------------------------

    def manage(self, task: Task, lun: Lun, tag: int = 0, *, timeout: float | None = None) -> Response:
        """Send a task management function.

        Args:
            task: The function.
            lun: The unit; of its target where the function concerns a nexus.
            tag: ``Request.tag`` of the command, where the function concerns one.
            timeout: Seconds to wait; the device's own where None.

        Returns:
            OK (the function is complete) or FUNCTION_SUCCEEDED (a command that was asked for is in the task set).

        Raises:
            WriteRefused: It ends commands of other initiators or resets a unit, and that is not allowed.
            ScsiTransport: There is no such unit, or the device does not know the function.
            DeviceTimeout: The device did not answer in time.
            ProtocolError: The response is invalid.
            BadSize: ``tag`` does not fit 64 bits.
        """
        task, tag = Task(task), index(tag)
        if not 0 <= tag < 1 << 64:
            raise BadSize("a tag has 64 bits", seen=tag, expected="Request.tag (5.6.6.2)")
        with self.session(timeout):
            if task in _RESETS:
                self._require_write(f"send {task.name}")
            response = self._control.manage(task, lun, tag, self.device.seconds(timeout))
            if self._requests.free:
                self._requests.collect()
            if response not in _TASK_DONE:
                raise self.transport_error(f"{task.name} of {lun}", response)
            self.counts[task.name] += 1
            return Response(response)

    def abort(self, request: Request, *, timeout: float | None = None) -> None:
        """Abort a command (ABORT TASK): it is complete then, with or without an error. As ``manage``."""
        self.manage(Task.ABORT_TASK, request.lun, request.tag, timeout=timeout)

    def abort_all(self, lun: Lun, *, timeout: float | None = None) -> None:
        """Abort all commands that this driver has sent to a unit (ABORT TASK SET). As ``manage``."""
        self.manage(Task.ABORT_TASK_SET, lun, timeout=timeout)

    def is_pending(self, request: Request, *, timeout: float | None = None) -> bool:
        """Ask whether a command is in the unit's task set (QUERY TASK). As ``manage``."""
        return (
            self.manage(Task.QUERY_TASK, request.lun, request.tag, timeout=timeout) == Response.FUNCTION_SUCCEEDED
        )

    def reset_lun(self, lun: Lun, *, timeout: float | None = None) -> None:
        """Reset a unit (LOGICAL UNIT RESET); its commands in flight end. As ``manage``."""
        self.manage(Task.LOGICAL_UNIT_RESET, lun, timeout=timeout)
        self._known.pop(lun, None)

    def reset_target(self, target: int, *, timeout: float | None = None) -> None:
        """Reset all units of a target for this driver (I_T NEXUS RESET). As ``manage``."""
        self.manage(Task.I_T_NEXUS_RESET, Lun(target), timeout=timeout)
        self._forget(target)

    # --- events (5.6.6.3) -----------------------------------------------------------------------------------

    def events(self) -> list[Event]:
        """Return the events that came since the last call, oldest first, without waiting.

        An event whose ``missed`` is set says that others were lost: ``scan()`` again, and look at each unit.
        """
        with self.session():
            self.device.service()
            self._take_events()
            found: list[Event] = []
            while self._events is not None and (event := self._events.pop()) is not None:
                found.append(event)
            return found

    def wait_for_event(self, *, timeout: float | None) -> Event | None:
        """Wait for an event.

        Args:
            timeout: Seconds to wait; None: no limit.

        Returns:
            The oldest event; None where none came in time, or the device has no event queue.
        """
        with self.session():
            queue = self._events
            if queue is None:
                return None

            def ready() -> bool:
                self._take_events()
                return len(queue) > 0

            if not ready():
                self.device.wait(ready, timeout=timeout, what="an event", owed=False)
            return queue.pop()

    def _take_events(self) -> None:
        if self._events is not None:
            self._events.take(self._heard)

    def _heard(self, event: Event) -> None:
        """Forget what an event says has changed."""
        if event.missed:
            self._known.clear()
        if event.lun is None:
            return
        self._known.pop(event.lun, None)
        if event.type == EventType.TRANSPORT_RESET and event.reason != ResetReason.HARD and not event.lun.lun:
            self._forget(event.lun.target)  # 5.6.6.3.1: for LUN 0 it may concern the whole target

    def _forget(self, target: int) -> None:
        for lun in [lun for lun in self._known if lun.target == target]:
            del self._known[lun]
