"""Each named mutant is killed by the law that is there for it, in both colours."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parent.parent
EVERYWHERE = ("TestMemory", "TestSQLite", "TestRedis", "TestMemcached")
EXACT = ("TestMemory", "TestSQLite", "TestRedis")  # memcached keeps a lock for seconds longer than asked
POLICY = ("TestMemory",)  # the mistake is not the store's, so one store will do

KILLED_BY: dict[str, tuple[str, tuple[str, ...]]] = {
    "blind_delete": ("test_a_remove_by_a_token_that_has_it_not_does_nothing", EVERYWHERE),
    "uncompared_extend": ("test_an_extend_by_a_token_that_has_it_not_does_nothing", EVERYWHERE),
    "check_then_set": ("test_one_of_many_simultaneous_tries_wins", EVERYWHERE),
    "fence_reset": ("test_fences_grow_over_release_and_expiry_and_managers", EVERYWHERE),
    "validity_from_reply": ("test_validity_counts_from_before_the_request", EVERYWHERE),
    "no_undo_after_cancel": (
        "test_an_acquire_that_is_interrupted_when_the_store_has_acted_leaves_no_lock",
        POLICY,
    ),
    "token_reused": ("test_tokens_differ_from_grant_to_grant", EVERYWHERE),
    "release_swallows_loss": ("test_release_of_what_the_store_lost_never_deletes_the_next_holder", EVERYWHERE),
    "no_renewal": ("test_renewal_keeps_the_lock_beyond_its_ttl_and_stops_at_release", EVERYWHERE),
    "no_wake_up": ("test_a_waiter_is_woken_by_the_release", ("TestSQLite",)),  # the one that looks again most often
    "clock_without_margin": ("test_the_lease_is_never_longer_than_the_store_keeps_it", EXACT),
    "forked_child_holds": ("test_a_fork_owns_nothing_of_its_parent", EVERYWHERE),
    "lost_is_not_told": ("test_on_lost_is_called_once_with_the_lease_when_the_ttl_is_over", POLICY),
    "lost_reply_is_no": ("test_an_acquire_whose_answer_is_lost_ends_in_a_lease", POLICY),
}


def failed(mutant: str, law: str, backends: tuple[str, ...]) -> set[tuple[str, str]]:
    """On which backends and in which colours `law` fails for `mutant`."""
    done = subprocess.run(
        [
            sys.executable, "-m", "pytest", "-q", "-rf", "--tb=no", "-p", "mutant_plugin", "-p", "no:cacheprovider",
            "--reruns=0", "--timeout=60", "-k", f"{law} and ({' or '.join(backends)})", "tests/conformance",
        ],
        cwd=ROOT,
        env={**os.environ, "ATOMICLOCK_MUTANT": mutant, "PYTHONPATH": f"{HERE}{os.pathsep}{ROOT / 'src'}"},
        capture_output=True,
        text=True,
        timeout=500,
    )  # fmt: skip
    assert done.returncode in (0, 1), done.stdout + done.stderr
    return {(backend, colour) for backend, colour in re.findall(r"^FAILED \S*::(\w+)::\w+\[(\w+)", done.stdout, re.M)}


@pytest.mark.timeout(600)  # it is a run of pytest by itself
@pytest.mark.parametrize("mutant", KILLED_BY)
def test_the_law_kills_the_mutant(mutant: str) -> None:
    law, backends = KILLED_BY[mutant]
    survivors = {(backend, colour) for backend in backends for colour in ("sync", "async")}
    survivors -= failed(mutant, law, backends)
    assert not survivors, f"{mutant} survives {law} on {sorted(survivors)}"


def test_every_mutant_has_its_law() -> None:
    sys.path.insert(0, str(HERE))
    import mutants

    assert set(mutants.MUTANTS) == set(KILLED_BY)
