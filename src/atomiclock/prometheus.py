"""Metrics of locks for Prometheus: `atomiclock.prometheus.export()`. Needs the extra `prometheus`."""

from __future__ import annotations

from collections.abc import Callable

try:
    from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
except ModuleNotFoundError as error:
    from .errors import ConfigurationError

    raise ConfigurationError(
        f"atomiclock.prometheus needs {error.name}: pip install 'atomiclock[prometheus]'"
    ) from error

from ._labels import Labels
from ._observe import Event, observe

WAIT_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
HOLD_BUCKETS = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10, 30, 60, 300, 900, 3600, 14400)
"""Seconds. Waits are meant to be short; what is done under a lock takes from moments to hours."""

_BY = ("lock", "backend")
_OUTCOMES = ("acquired", "timeout", "unavailable")


class Metrics:
    """The metrics in one registry, and the observer that feeds them."""

    def __init__(self, registry: CollectorRegistry, label: Callable[[str], str] | None) -> None:
        self._labels = Labels(label)
        self._begun: set[tuple[str, str]] = set()
        self.acquires = Counter(
            "atomiclock_acquires",
            "Attempts that ended, by how: acquired, timeout, unavailable",
            (*_BY, "outcome"),
            registry=registry,
        )
        self.contended = Counter("atomiclock_contended", "Attempts that found it taken", _BY, registry=registry)
        self.renewals = Counter("atomiclock_renewals", "Renewals that the store confirmed", _BY, registry=registry)
        self.losses = Counter("atomiclock_losses", "Leases that ended before their release", _BY, registry=registry)
        self.held = Gauge("atomiclock_held", "Locks held by now", _BY, registry=registry, multiprocess_mode="livesum")
        self.waits = Histogram(
            "atomiclock_wait_seconds",
            "From the call to the grant, or to giving up",
            (*_BY, "outcome"),
            registry=registry,
            buckets=WAIT_BUCKETS,
        )
        self.holds = Histogram(
            "atomiclock_hold_seconds",
            "From the grant to the release or the loss",
            _BY,
            registry=registry,
            buckets=HOLD_BUCKETS,
        )

    def __call__(self, event: Event) -> None:
        by = (self._labels(event.name), event.backend)
        if by not in self._begun:
            self._begin(by)
        if event.kind in _OUTCOMES:
            self.acquires.labels(*by, event.kind).inc()
            if event.waited is not None:
                self.waits.labels(*by, event.kind).observe(event.waited)
        if event.kind == "acquired":
            self.held.labels(*by).inc()
        elif event.kind == "contended":
            self.contended.labels(*by).inc()
        elif event.kind == "renewed":
            self.renewals.labels(*by).inc()
        elif event.kind in ("released", "lost"):
            self._ended(event, by)

    def _begin(self, by: tuple[str, str]) -> None:
        """Let all counters of a lock be seen at 0. Prometheus takes one that begins at 1 for no increase."""
        self._begun.add(by)
        for outcome in _OUTCOMES:
            self.acquires.labels(*by, outcome)
        for counter in (self.contended, self.renewals, self.losses):
            counter.labels(*by)

    def _ended(self, event: Event, by: tuple[str, str]) -> None:
        self.held.labels(*by).dec()
        if event.held is not None:
            self.holds.labels(*by).observe(event.held)
        if event.kind == "lost":
            self.losses.labels(*by).inc()


def export(registry: CollectorRegistry = REGISTRY, *, label: Callable[[str], str] | None = None) -> Callable[[], None]:
    """Keep metrics of this process's locks in `registry`, to be served as the application serves its others.

    `label` makes of a lock's name what its metrics are labelled with; it must have few values. The default is the
    name's part before its first ":" or "/"; of more than 100 labels the rest are "other". Returns what ends it.
    """
    return observe(Metrics(registry, label))
