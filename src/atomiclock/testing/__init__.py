"""For authors of backends: the laws that a backend must keep, as a pytest class to inherit.

    import pytest
    from atomiclock.testing import BackendSuite

    class TestMine(BackendSuite):
        @pytest.fixture
        def url(self):
            return "mine://localhost:1234"

Every law runs twice, for threads and for tasks. pytest is needed here and nowhere else in the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._suite import BackendSuite

_WITH_ASSERTS = (
    "_contract", "_exclusion", "_expiry", "_failures", "_fences", "_leases", "_leftovers", "_names", "_processes",
    "_renewal", "_traits", "_verbs", "_waiting",
)  # fmt: skip


def __getattr__(name: str) -> Any:
    # Not loaded before it is asked for: the children that some laws start need no pytest, which takes its time.
    if name != "BackendSuite":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import pytest

    pytest.register_assert_rewrite(*(f"{__name__}.{module}" for module in _WITH_ASSERTS))
    from ._suite import BackendSuite

    globals()[name] = BackendSuite
    return BackendSuite


__all__ = ["BackendSuite"]
