"""The error tree: what each error also is, and that it survives a broker."""

from __future__ import annotations

import copy
import pickle

import pytest

from atomiclock import errors
from atomiclock.errors import (
    BackendRefused,
    BackendUnavailable,
    ConfigurationError,
    LockError,
    LockLost,
    LockTimeout,
    NotHeld,
    StaleFence,
)

ALSO: dict[type[LockError], tuple[type[Exception], ...]] = {
    LockError: (),
    LockTimeout: (TimeoutError,),
    LockLost: (),
    NotHeld: (RuntimeError,),
    StaleFence: (),
    BackendUnavailable: (ConnectionError,),
    ConfigurationError: (ValueError,),
    BackendRefused: (BackendUnavailable, ConfigurationError),
}


def test_every_error_is_in_the_tree_and_here() -> None:
    found = {one for one in vars(errors).values() if isinstance(one, type) and issubclass(one, Exception)}
    assert found == set(ALSO)


@pytest.mark.parametrize("kind", ALSO)
def test_each_is_what_an_application_would_catch(kind: type[LockError]) -> None:
    assert issubclass(kind, (LockError, *ALSO[kind]))
    for also in ALSO[kind]:
        assert issubclass(kind, also)


@pytest.mark.parametrize("kind", ALSO)
@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_each_survives_pickling_with_all_it_says(kind: type[LockError], protocol: int) -> None:
    error = kind("the lock 'é\udcff' is gone", name="é\udcff", waited=1.5, owner="me", reason="why")
    for twin in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error), copy.deepcopy(error)):
        assert type(twin) is kind
        assert str(twin) == str(error) == "the lock 'é\udcff' is gone"
        assert (twin.name, twin.waited, twin.owner, twin.reason) == ("é\udcff", 1.5, "me", "why")
        assert twin.args == error.args


def test_an_error_with_a_note_can_be_pickled() -> None:
    error = LockLost("gone", name="x", reason="why")
    error.__dict__["__notes__"] = ["a note"]
    assert pickle.loads(pickle.dumps(error)).reason == "why"


def test_an_error_needs_nothing() -> None:
    for kind in ALSO:
        assert str(kind()) == ""
        assert kind().name is None
    assert (LockTimeout().waited, LockTimeout().owner, LockLost().reason) == (0.0, None, "")


def test_an_os_error_takes_no_message_for_an_errno() -> None:
    error = LockTimeout("two words", name="x")
    assert error.errno is None
    assert str(error) == "two words"
