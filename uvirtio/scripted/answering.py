"""What the models of types without a driver share: requests and answers, and two ways to answer wrongly."""

from __future__ import annotations

from uvirtio.scripted.model import Model
from uvirtio.scripted.ring import Chain


class Answering(Model):
    """Answers the requests of its queues. ``untouched`` and ``garbled`` are its lies."""

    def __init__(self) -> None:
        super().__init__()
        self.untouched = False
        """Answers are counted, and not written."""
        self.garbled = False
        """Answers are written, and are not what was asked for."""
        self.requests: list[tuple[int, bytes]] = []
        """Queue and bytes of each request."""

    def write_config(self, offset: int, width: int, value: int) -> None:
        """Take no write to the configuration: these types have none, unless their model says so."""
        self.device.check("CFG-WRITE", False, f"{value} was written at {offset}")

    def handle(self, queue: int, chain: Chain) -> int | None:
        """Answer a request; the bytes written, or None where the chain is kept."""
        data = chain.data()
        self.requests.append((queue, data))
        answer = self.answer(queue, data, chain)
        if answer is None:
            return None
        if self.garbled and answer:
            answer = self.garble(queue, data, answer)
        return min(len(answer), chain.room) if self.untouched else chain.fill(answer)

    def answer(self, queue: int, data: bytes, chain: Chain) -> bytes | None:
        """What an honest device answers; None: the chain is kept.

        Args:
            queue: The queue.
            data: All readable bytes.
            chain: The chain.
        """
        raise NotImplementedError

    def garble(self, queue: int, data: bytes, answer: bytes) -> bytes:
        """Another answer, which looks like one.

        Args:
            queue: The queue.
            data: The request.
            answer: The answer to it.
        """
        return answer[:-1] + bytes([answer[-1] ^ 1])
