"""Where a task waits for a deletion."""

from __future__ import annotations

import asyncio

import pytest

from atomiclock._process import clock
from atomiclock.backends._etcd_session import Hear
from atomiclock.backends._etcd_spares import Spares
from atomiclock.backends._etcd_target import Target
from atomiclock.backends._etcd_tasks import TaskChannel, _Mailbox


async def waiting(mailbox: _Mailbox, seconds: float) -> object:
    channel = TaskChannel(Target(("h:1",), "etcd://h"), Spares())
    return await channel._perform(Hear(mailbox, clock() + seconds))


def test_a_cancellation_that_comes_with_the_news_is_not_forgotten() -> None:
    async def main() -> None:
        mailbox = _Mailbox()
        task = asyncio.create_task(waiting(mailbox, 5))
        await asyncio.sleep(0)
        mailbox.put(True)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(main())


def test_what_never_comes_is_waited_for_until_the_time_is_up() -> None:
    async def main() -> None:
        with pytest.raises((TimeoutError, asyncio.TimeoutError)):
            await waiting(_Mailbox(), 0.01)

    asyncio.run(main())
