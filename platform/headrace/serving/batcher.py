"""Micro-batches: questions that wait at the same moment are answered together, in one thread off the event loop.

While a batch is being answered the next one gathers, so that under load batches are full and nobody waits for the
clock; only a batch that starts from an empty queue waits ``wait_s`` for company.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Generic, TypeVar

Q = TypeVar("Q")
A = TypeVar("A")


class Batcher(Generic[Q, A]):
    """Owned by one event loop. ``answer`` runs in one thread of its own, a batch at a time."""

    def __init__(self, answer: Callable[[Sequence[Q]], Sequence[A]], max_batch: int, wait_s: float) -> None:
        self._answer = answer
        self._max_batch = max_batch
        self._wait_s = wait_s
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._waiting: list[tuple[Q, asyncio.Future[A]]] = []
        self._full = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def ask(self, question: Q) -> A:
        """The answer to one question; raises what ``answer`` raised for its batch."""
        future: asyncio.Future[A] = asyncio.get_running_loop().create_future()
        self._waiting.append((question, future))
        if len(self._waiting) >= self._max_batch:
            self._full.set()
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Until nobody waits: gather, answer, deliver."""
        if self._wait_s and len(self._waiting) < self._max_batch:
            self._full.clear()
            try:
                async with asyncio.timeout(self._wait_s):
                    await self._full.wait()
            except TimeoutError:
                pass
        while self._waiting:
            batch, self._waiting = self._waiting[: self._max_batch], self._waiting[self._max_batch :]
            batch = [(question, future) for question, future in batch if not future.done()]  # nobody waits any more
            if batch:
                await self._deliver(batch)

    async def _deliver(self, batch: list[tuple[Q, "asyncio.Future[A]"]]) -> None:
        loop = asyncio.get_running_loop()
        try:
            answers = await loop.run_in_executor(self._thread, self._answer, [question for question, _ in batch])
        except Exception as error:  # noqa: BLE001 (whoever asked gets it, and the next batch is answered)
            for _, future in batch:
                if not future.done():
                    future.set_exception(error)
            return
        for (_, future), result in zip(batch, answers, strict=True):
            if not future.done():
                future.set_result(result)
