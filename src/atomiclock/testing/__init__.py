"""For authors of applications: a store whose locks can be lost, on a clock that the test moves.

    from atomiclock.testing import FakeStore

    def test_stops_when_the_lock_is_lost():
        with FakeStore() as store:
            ...

For authors of backends: the laws that a backend must keep, as a pytest class to inherit.

    import pytest
    from atomiclock.testing import BackendSuite

    class TestMine(BackendSuite):
        @pytest.fixture
        def url(self):
            return "mine://localhost:1234"

Every law runs twice, for threads and for tasks. pytest is needed for these and nowhere else in the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._fake import FakeStore, Taken
    from ._suite import BackendSuite

_WITH_ASSERTS = (
    "_contract", "_delay", "_exclusion", "_expiry", "_failures", "_fences", "_leases", "_leftovers", "_line", "_names",
    "_processes", "_renewal", "_traits", "_verbs", "_waiting",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # Not loaded before it is asked for: the children that some laws start need no pytest, which takes its time.
    if name in ("FakeStore", "Taken"):
        from . import _fake

        value = globals()[name] = getattr(_fake, name)
        return value
    if name != "BackendSuite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _WITH_ASSERTS))
    from ._suite import BackendSuite

    globals()[name] = BackendSuite
    return BackendSuite


__all__ = ["BackendSuite", "FakeStore", "Taken"]
