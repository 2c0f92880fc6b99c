"""No token is ever given twice."""

from __future__ import annotations

import asyncio
import ctypes
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from atomiclock import AsyncLockManager, LockTimeout, _process


def test_tokens_are_128_bits_in_hex_and_differ() -> None:
    tokens = [_process.new_token() for _ in range(100)]
    assert len(set(tokens)) == len(tokens)
    assert {(len(token), bytes.fromhex(token).hex() == token) for token in tokens} == {(32, True)}


def test_threads_that_take_tokens_at_once_never_get_the_same() -> None:
    made: list[str] = []
    threads = [
        threading.Thread(target=lambda: made.extend([_process.new_token() for _ in range(2000)])) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(made)) == 16_000


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("fork", [lambda: os.fork(), lambda: ctypes.PyDLL(None).fork()], ids=["python", "c"])
def test_a_forked_child_never_repeats_a_token_of_its_parent(fork: Callable[[], int]) -> None:
    reading, writing = os.pipe()
    child = fork()
    if not child:
        os.write(writing, "".join(_process.new_token() for _ in range(50)).encode())
        os._exit(0)
    os.close(writing)
    with open(reading) as pipe:
        said = pipe.read()
    os.waitpid(child, 0)
    theirs = {said[at : at + 32] for at in range(0, len(said), 32)}
    ours = {_process.new_token() for _ in range(50)}
    assert len(theirs) == len(ours) == 50
    assert not theirs & ours


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_a_call_that_is_made_before_a_fork_and_awaited_on_both_sides_excludes_them(tmp_path: Path) -> None:
    acquiring = AsyncLockManager(f"sqlite:///{tmp_path}/locks.db").acquire("k", timeout=0)
    start, go = os.pipe()
    answer, say = os.pipe()
    child = os.fork()
    if not child:  # pragma: no cover
        said = "nothing"
        try:
            os.read(start, 1)
            said = asyncio.run(_entered(acquiring))
        finally:
            os.write(say, said.encode())
            os._exit(0)

    async def ask_the_child_meanwhile() -> str:
        async with acquiring as lease:
            assert lease
            os.write(go, b"!")
            return os.read(answer, 100).decode()

    try:
        assert asyncio.run(ask_the_child_meanwhile()) == "it is held"
    finally:
        os.write(go, b"!")  # also if we were not let in
        os.waitpid(child, 0)
        for end in (start, go, answer, say):
            os.close(end)


async def _entered(acquiring: Any) -> str:
    try:
        async with acquiring:
            return "entered"
    except LockTimeout:
        return "it is held"
