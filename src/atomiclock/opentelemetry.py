"""Metrics and spans of locks through the OpenTelemetry API: `atomiclock.opentelemetry.instrument()`.

Needs the extra `otel`. Which SDK and exporter they go to is the application's own choice; without one nothing happens.
"""

from __future__ import annotations

import time
from collections.abc import Callable

try:
    from opentelemetry.metrics import MeterProvider, get_meter
    from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider, get_tracer
except ModuleNotFoundError as error:
    from .errors import ConfigurationError

    raise ConfigurationError(f"atomiclock.opentelemetry needs {error.name}: pip install 'atomiclock[otel]'") from error

from . import __version__
from ._labels import Labels
from ._observe import Event, observe


class Telemetry:
    """The instruments, and the observer that feeds them."""

    def __init__(
        self,
        meters: MeterProvider | None,
        tracers: TracerProvider | None,
        label: Callable[[str], str] | None,
    ) -> None:
        self._labels = Labels(label)
        self._tracer = get_tracer("atomiclock", __version__, tracers)
        meter = get_meter("atomiclock", __version__, meters)
        self._acquires = meter.create_counter("atomiclock.acquires", "{attempt}", "Attempts that ended, by outcome")
        self._contended = meter.create_counter("atomiclock.contended", "{attempt}", "Attempts that found it taken")
        self._renewals = meter.create_counter("atomiclock.renewals", "{renewal}", "Renewals the store confirmed")
        self._losses = meter.create_counter("atomiclock.losses", "{lease}", "Leases that ended before their release")
        self._held = meter.create_up_down_counter("atomiclock.held", "{lock}", "Locks held by now")
        self._waits = meter.create_histogram("atomiclock.wait.duration", "s", "From the call to its outcome")
        self._holds = meter.create_histogram("atomiclock.hold.duration", "s", "From the grant to its end")
        self._spans: dict[str, Span] = {}  # of the locks that are held, by token

    def __call__(self, event: Event) -> None:
        by = {"lock": self._labels(event.name), "backend": event.backend}
        if event.kind in ("acquired", "timeout", "unavailable"):
            self._attempted(event, by)
        elif event.kind == "contended":
            self._contended.add(1, by)
        elif event.kind == "renewed":
            self._renewals.add(1, by)
        else:
            self._ended(event, by)

    def _attempted(self, event: Event, by: dict[str, str]) -> None:
        outcome = {**by, "outcome": event.kind}
        self._acquires.add(1, outcome)
        now = time.time_ns()
        begun = now - round((event.waited or 0.0) * 1e9)
        if event.waited is not None:
            self._waits.record(event.waited, outcome)
        span = self._tracer.start_span(
            f"acquire {by['lock']}", kind=SpanKind.CLIENT, attributes=_attributes(event, outcome), start_time=begun
        )
        if event.kind != "acquired":
            said = event.reason or (f"{event.holder} has it" if event.holder else None)
            span.set_status(Status(StatusCode.ERROR, said))
        span.end(now)
        if event.kind == "acquired":
            self._held.add(1, by)
            self._spans[event.token] = self._tracer.start_span(
                f"hold {by['lock']}", attributes=_attributes(event, by), start_time=now
            )

    def _ended(self, event: Event, by: dict[str, str]) -> None:
        self._held.add(-1, by)
        if event.held is not None:
            self._holds.record(event.held, by)
        span = self._spans.pop(event.token, None)
        if event.kind == "lost":
            self._losses.add(1, by)
            if span is not None:
                span.set_status(Status(StatusCode.ERROR, event.reason))
        if span is not None:
            span.end()


def _attributes(event: Event, by: dict[str, str]) -> dict[str, str | int | float]:
    """Of a span, which may have what a metric must not: the name, and numbers that are never the same."""
    facts = {"name": event.name, "owner": event.owner, "fence": event.fence, "holder": event.holder}
    return {f"atomiclock.{key}": value for key, value in {**by, **facts}.items() if value is not None}


def instrument(
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    label: Callable[[str], str] | None = None,
) -> Callable[[], None]:
    """Record metrics and spans of this process's locks with these providers (default: the global ones).

    Metrics are labelled by `label` of a lock's name, as in `atomiclock.prometheus.export`; spans also have the name
    itself. A span `acquire …` is one attempt, a span `hold …` one lease. Returns what ends it.
    """
    return observe(Telemetry(meter_provider, tracer_provider, label))
