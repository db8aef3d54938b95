"""Things that are asked for one by one, and cost less together."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_TOGETHER = 500


class Together(Generic[Item, Result]):
    """Does for many at once what is asked for one by one.

    What comes while a batch is under way makes up the next one. Nothing is put off for the sake of company, but for
    what nobody waits for: that gathers for `linger_s`.
    """

    def __init__(
        self,
        do: Callable[[list[Item]], Awaitable[Sequence[Result]]],
        at_once: int = MAX_TOGETHER,
        *,
        linger_s: float = 0.0,
    ) -> None:
        """`do` has a result for each item, in their order."""
        self._do = do
        self._at_once = at_once
        self._linger_s = linger_s
        self._hurried = asyncio.Event()
        self._waiting: list[tuple[Item, asyncio.Future[Result]]] = []
        self._task: asyncio.Task[None] | None = None

    async def add(self, item: Item) -> Result:
        """Its result, once there is one. Raises what its batch raised."""
        return await self.put(item)

    def put(self, item: Item) -> asyncio.Future[Result]:
        """The same for who does something else meanwhile."""
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, done))
        if self._task is None or self._task.done():
            # In nobody's context: a batch belongs to no request, and to no transaction.
            self._task = asyncio.create_task(self._run(), name="together", context=Context())
        return done

    async def settle(self) -> None:
        """Do at once what lingers, and wait until there is nothing left to do."""
        self._hurried.set()
        while self._task and not self._task.done():
            await asyncio.wait([self._task])

    async def _run(self) -> None:
        if self._linger_s:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurried.wait(), self._linger_s)
        while self._waiting:
            batch, self._waiting = self._waiting[: self._at_once], self._waiting[self._at_once :]
            try:
                results = await self._do([item for item, _ in batch])
            except asyncio.CancelledError:
                for _, done in (*batch, *self._waiting):
                    done.cancel()
                raise
            except Exception as error:
                for _, done in batch:
                    # Whoever was cancelled meanwhile waits no more.
                    if not done.done():
                        done.set_exception(error)
            else:
                for (_, done), result in zip(batch, results, strict=True):
                    if not done.done():
                        done.set_result(result)
