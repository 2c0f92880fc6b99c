"""The keeper of an event loop is woken for whatever it was told of, and at that time."""

from __future__ import annotations

import asyncio

import pytest

from atomiclock import AsyncLockManager, LockLost
from atomiclock.backends import Remove


async def lose_one_and_keep_another() -> None:
    told = asyncio.Event()
    async with AsyncLockManager("memory://keeper") as locks:
        gone = await locks.acquire("a", ttl=30, on_lost=lambda lease: told.set())
        store, hold = locks._store, gone._hold
        assert await store.perform(Remove(hold.key, hold.token, 0, store.terms.clock() + 1))
        with pytest.raises(LockLost):
            await gone.extend()
        short = await locks.acquire("b", ttl=0.5)
        await asyncio.wait_for(told.wait(), 5)
        await asyncio.sleep(1.0)
        assert short, "it was renewed"
        await short.release()


def test_a_loss_that_extend_finds_is_told_at_once_and_puts_no_renewal_off() -> None:
    asyncio.run(lose_one_and_keep_another())
