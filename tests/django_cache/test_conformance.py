"""The conformance suite on Django's caches, each on the store behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from servers import RedisServer

from atomiclock.testing import BackendSuite
from atomiclock.testing._exclusion import ExclusionLaws
from atomiclock.testing._names import NameLaws
from atomiclock.testing._traits import TraitLaws
from atomiclock.testing._verbs import VerbLaws

PRELOAD = """
import json, os
from django.conf import settings
settings.configure(**json.loads(os.environ["ATOMICLOCK_TEST_DJANGO"]))
"""


class TestRedisCache(BackendSuite):
    preload = PRELOAD

    @pytest.fixture
    def url(self, django_project: dict[str, Any]) -> str:
        return "django://Shop_1"

    @pytest.fixture
    def leftovers(self, redis_server: RedisServer) -> Callable[[], int]:
        return lambda: len(redis_server.keys())


class TestPyMemcacheCache(VerbLaws, ExclusionLaws, NameLaws, TraitLaws):
    """The laws that keys and values matter to. memcached:// itself keeps all, at its leisurely clock."""

    preload = PRELOAD

    @pytest.fixture
    def brief(self) -> float:
        return 0.3

    @pytest.fixture
    def short(self) -> float:
        return 1.0

    @pytest.fixture
    def url(self, django_project: dict[str, Any]) -> str:
        return "django://pymemcache"


class TestDatabaseCache(BackendSuite):
    preload = PRELOAD

    @pytest.fixture
    def url(self, django_project: dict[str, Any]) -> str:
        return "django://database"

    @pytest.fixture
    def leftovers(self, rows: Callable[[], int]) -> Callable[[], int]:
        return rows


@pytest.mark.filterwarnings("ignore:django.*LocMemCache:RuntimeWarning")
class TestLocMemCache(BackendSuite):
    preload = PRELOAD

    @pytest.fixture
    def url(self, django_project: dict[str, Any]) -> str:
        return "django://memory"

    @pytest.fixture
    def leftovers(self, django_project: dict[str, Any]) -> Callable[[], int]:
        from django.core.cache import caches

        return lambda: len(caches["memory"]._cache)
