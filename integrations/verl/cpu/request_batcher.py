"""Joins requests that arrive concurrently into batches.

verl sends one request per response. A forward pass of a small model costs nearly the same for 1 and for 100 rows, so
batching is what makes the rollout fast: the first request opens a window of a few milliseconds, then everything that
waits with the same key runs as one batch. Requests that arrive while a batch runs wait for the next one.
"""

import asyncio
from collections import defaultdict
from collections.abc import Callable, Hashable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

WINDOW_SECONDS = 0.01


class RequestBatcher:
    """Runs ``run_batch(key, items) -> results`` in one thread, on batches of items that share a key.

    Args:
        run_batch: Blocking function; returns one result per item.
        max_batch_size: Most items in one batch.
    """

    def __init__(self, run_batch: Callable[[Hashable, list[Any]], list[Any]], max_batch_size: int):
        self._run_batch = run_batch
        self._max_batch_size = max_batch_size
        self._waiting: dict[Hashable, list[tuple[Any, asyncio.Future]]] = defaultdict(list)
        self._loop_task: asyncio.Task | None = None
        # One thread: batches and weight updates take turns, so that no batch sees half of an update.
        self._executor = ThreadPoolExecutor(max_workers=1)
        self._open = asyncio.Event()
        self._open.set()

    async def submit(self, key: Hashable, item: Any) -> Any:
        """The result for ``item``; raises what ``run_batch`` raised for its batch."""
        future = asyncio.get_running_loop().create_future()
        self._waiting[key].append((item, future))
        if self._loop_task is None or self._loop_task.done():
            self._loop_task = asyncio.create_task(self._drain())
        return await future

    async def run_alone(self, function: Callable[..., Any], *args: Any) -> Any:
        """Run a blocking function between batches, never beside one."""
        return await asyncio.get_running_loop().run_in_executor(self._executor, function, *args)

    async def pause(self) -> None:
        """Hold back waiting and new requests; returns when the running batch has ended."""
        self._open.clear()
        await self.run_alone(lambda: None)

    def resume(self) -> None:
        """Undo :meth:`pause`."""
        self._open.set()

    async def _drain(self) -> None:
        while self._waiting:
            await asyncio.sleep(WINDOW_SECONDS)
            await self._open.wait()
            key, batch = self._take_batch()
            try:
                results = await self.run_alone(self._run_batch, key, [item for item, _ in batch])
            except Exception as error:
                for _, future in batch:
                    _settle(future, error=error)
                continue
            for (_, future), result in zip(batch, results, strict=True):
                _settle(future, result)

    def _take_batch(self) -> tuple[Hashable, list[tuple[Any, asyncio.Future]]]:
        key, waiting = next(iter(self._waiting.items()))
        batch, rest = waiting[: self._max_batch_size], waiting[self._max_batch_size :]
        del self._waiting[key]
        if rest:
            self._waiting[key] = rest
        return key, batch


def _settle(future: asyncio.Future, result: Any = None, error: Exception | None = None) -> None:
    if future.cancelled():
        return
    if error is not None:
        future.set_exception(error)
    else:
        future.set_result(result)
