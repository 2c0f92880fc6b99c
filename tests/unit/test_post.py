"""The queue that the keeper and etcd's threads wait at."""

from __future__ import annotations

import threading
import time
from queue import Empty

import pytest

from atomiclock._post import Post


def test_things_come_in_order_and_a_timeout_ends() -> None:
    post: Post[int] = Post()
    for timeout in (0, 0.0, 0.01):
        with pytest.raises(Empty):
            post.get(timeout)
    for number in range(5):
        post.put(number)
    assert [post.get(0) for _ in range(5)] == list(range(5))
    with pytest.raises(Empty):
        post.get(0)
    threading.Timer(0.02, post.put, [7]).start()
    assert post.get() == 7


def test_no_timeout_is_so_short_that_it_lasts_for_ever() -> None:
    """A SimpleQueue in its place hangs here within a second, up to Python 3.12."""
    end = time.monotonic() + 1.5

    def wait() -> None:
        number = 0
        while time.monotonic() < end:
            number += 1
            with pytest.raises(Empty):
                Post[int]().get(timeout=number % 40 * 1e-6)

    threads = [threading.Thread(target=wait, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert not any(thread.is_alive() for thread in threads)


def test_nothing_is_lost_between_threads() -> None:
    post: Post[int] = Post()
    putting = [threading.Thread(target=lambda: [post.put(1) for _ in range(2000)]) for _ in range(4)]
    for thread in putting:
        thread.start()
    assert sum(post.get(timeout=10) for _ in range(8000)) == 8000
    with pytest.raises(Empty):
        post.get(0)
    for thread in putting:
        thread.join()
