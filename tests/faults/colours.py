"""Both faces of the library behind one, so that each law is written once and holds for threads and for tasks."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

from atomiclock import AsyncLockManager, LockManager

COLOURS = ("sync", "async")
BEAT = 0.01


class Beat:
    """A clock that goes on only as far as this process gets to run, and never faster than the time: a thread counts.

    By it a call is late, and an event loop stands still, if that is our fault and not that of a busy machine.
    """

    def __init__(self) -> None:
        self.count = 0
        self.asleep = 0
        """Beats at which the thread `watched` did not want to run."""
        self.watched: int | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._run, name="beat of the tests", daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while not self._end.wait(BEAT):
            self.count += 1
            if self.watched is not None:
                stat = Path(f"/proc/self/task/{self.watched}/stat").read_text()
                self.asleep += stat.rpartition(")")[2].split()[0] != "R"

    def stop(self) -> None:
        self._end.set()
        self._thread.join(5)


class Face:
    """Makes managers whose methods can be called from the test's thread, whatever their colour."""

    def __init__(self, colour: str) -> None:
        self.colour = colour
        self._closers: list[Callable[[], None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None
        self._beat = Beat()
        self._ticks = [0, 0]  # for how many beats it had slept at the last tick, and at most between two
        if colour == "async":
            self._loop = asyncio.new_event_loop()
            self._thread = threading.Thread(target=self._serve, name="loop of the tests", daemon=True)
            self._thread.start()

    def manager(self, url: str, **options: Any) -> Any:
        if self._loop is None:
            manager = LockManager(url, **options)
            self._closers.append(manager.close)
            return manager
        blocking = Blocking(AsyncLockManager(url, **options), self)
        self._closers.append(blocking.aclose)
        return blocking

    def clock(self) -> float:
        """Seconds, but those in which the machine did not let this process run."""
        return self._beat.count * BEAT

    def longest_stall(self) -> float:
        """Seconds for which the event loop slept and did not turn, at the worst since the last call; 0 without one.

        While it works, to read a certificate for example, it is as slow as the machine.
        """
        now = self._beat.asleep
        (last, worst), self._ticks = self._ticks, [now, 0]
        return 0.0 if self._loop is None else max(worst, now - last) * BEAT

    def call(self, function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """What `function`, awaited if need be, returns on the loop."""
        assert self._loop is not None

        async def work() -> Any:
            result = function(*args, **kwargs)
            return await result if inspect.isawaitable(result) else result

        return asyncio.run_coroutine_threadsafe(work(), self._loop).result()

    def tasks(self) -> list[Any]:
        """The loop's tasks but our own."""
        if self._loop is None:
            return []
        return [task for task in self.call(lambda: asyncio.all_tasks()) if "_tick" not in repr(task)][1:]

    def close(self) -> None:
        for close in self._closers:
            close()
        self._beat.stop()
        if self._loop is not None:
            asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(10)
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(10)
            self._loop.close()

    def _serve(self) -> None:
        assert self._loop is not None
        asyncio.set_event_loop(self._loop)
        self._ticker = self._loop.create_task(self._tick())
        self._loop.run_forever()

    async def _tick(self) -> None:
        self._beat.watched = threading.get_native_id()
        self._ticks = [self._beat.asleep, 0]
        while True:
            await asyncio.sleep(BEAT)
            now = self._beat.asleep
            self._ticks = [now, max(self._ticks[1], now - self._ticks[0])]

    async def _end(self) -> None:
        """What asyncio.run() does at its end."""
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.get_running_loop().shutdown_asyncgens()


class Blocking:
    """An object of the asynchronous face whose coroutines are waited for."""

    def __init__(self, target: Any, face: Face) -> None:
        self._target = target
        self._face = face

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._target, name)
        if not inspect.ismethod(value):
            return value

        def method(*args: Any, **kwargs: Any) -> Any:
            result = self._face.call(value, *args, **kwargs)
            return Blocking(result, self._face) if hasattr(result, "release") else result

        return method

    def __bool__(self) -> bool:
        return bool(self._target)

    def __enter__(self) -> Any:
        return self._face.call(self._target.__aenter__) and self

    def __exit__(self, *error: object) -> Any:
        return self._face.call(self._target.__aexit__, *error)
