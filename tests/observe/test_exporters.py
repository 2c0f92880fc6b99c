"""Metrics and spans: real registries and SDKs, read as their own exporters read them."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from prometheus_client import CollectorRegistry, generate_latest
from servers import RedisServer, wait_until

import atomiclock.opentelemetry
import atomiclock.prometheus
from atomiclock import LockLost, LockManager, LockTimeout
from atomiclock._labels import MOST, OTHER, Labels, template_of

DASHBOARD = Path(__file__).parents[2] / "examples" / "observe" / "grafana.json"


@contextmanager
def stopping(stop: Callable[[], None]) -> Iterator[None]:
    try:
        yield
    finally:
        stop()


def some_events(server: RedisServer) -> None:
    """Two grants, of which one is lost, and an attempt that times out."""
    with LockManager(server.url, ttl=0.6) as locks:
        with locks.acquire("invoice:42"), pytest.raises(LockTimeout):
            locks.acquire("invoice:42", timeout=0)
        kinds: list[str] = []
        with stopping(atomiclock.observe(lambda event: kinds.append(event.kind))):
            lease = locks.acquire("invoice:43")
            wait_until(lambda: "renewed" in kinds, what="it was renewed")
        server.command("DEL", "atomiclock:invoice:43")
        wait_until(lambda: lease.lost, what="it is lost")
        with pytest.raises(LockLost):
            lease.release()


def test_prometheus_counts_what_happens(redis_server: RedisServer) -> None:
    registry = CollectorRegistry()
    with stopping(atomiclock.prometheus.export(registry)):
        some_events(redis_server)
    by = {"lock": "invoice:*", "backend": "redis"}

    def value(name: str, **more: str) -> float:
        return registry.get_sample_value(f"atomiclock_{name}", {**by, **more}) or 0.0

    assert value("acquires_total", outcome="acquired") == 2
    assert value("acquires_total", outcome="timeout") == 1
    assert value("contended_total") == 1
    assert value("renewals_total") >= 1
    assert value("losses_total") == 1
    assert value("held") == 0
    assert value("wait_seconds_count", outcome="acquired") == 2
    assert value("hold_seconds_count") == 2
    assert 0.1 < value("hold_seconds_sum") < 60
    text = generate_latest(registry).decode()
    assert "invoice:42" not in text


def test_prometheus_shows_what_is_held() -> None:
    registry = CollectorRegistry()
    with stopping(atomiclock.prometheus.export(registry, label=lambda name: "any")), LockManager("memory://") as locks:
        with locks.acquire("x"), locks.acquire("y"):
            assert registry.get_sample_value("atomiclock_held", {"lock": "any", "backend": "memory"}) == 2
        assert registry.get_sample_value("atomiclock_held", {"lock": "any", "backend": "memory"}) == 0


def test_prometheus_shows_all_counters_of_a_lock_from_its_first_event_on() -> None:
    """Of a counter that begins at 1, `increase()` says 0: the first loss would ring no bell."""
    registry = CollectorRegistry()
    with stopping(atomiclock.prometheus.export(registry)), LockManager("memory://") as locks, locks.acquire("x:1"):
        by = {"lock": "x:*", "backend": "memory"}
        for counter in ("losses", "renewals", "contended"):
            assert registry.get_sample_value(f"atomiclock_{counter}_total", by) == 0
        for outcome in ("timeout", "unavailable"):
            assert registry.get_sample_value("atomiclock_acquires_total", {**by, "outcome": outcome}) == 0


def points(reader: InMemoryMetricReader) -> dict[str, list[Any]]:
    data = reader.get_metrics_data()
    assert data is not None
    metrics = [metric for one in data.resource_metrics for scope in one.scope_metrics for metric in scope.metrics]
    return {metric.name: list(metric.data.data_points) for metric in metrics}


def test_opentelemetry_counts_and_traces_what_happens(redis_server: RedisServer) -> None:
    reader, spans = InMemoryMetricReader(), InMemorySpanExporter()
    meters, tracers = MeterProvider([reader]), TracerProvider()
    tracers.add_span_processor(SimpleSpanProcessor(spans))
    instrument = atomiclock.opentelemetry.instrument
    with stopping(instrument(meter_provider=meters, tracer_provider=tracers)):
        with tracers.get_tracer("test").start_as_current_span("request"):
            some_events(redis_server)
    found = points(reader)
    assert {name: sum(point.value for point in found[name]) for name in found if "duration" not in name} == {
        "atomiclock.acquires": 3,
        "atomiclock.contended": 1,
        "atomiclock.held": 0,
        "atomiclock.losses": 1,
        "atomiclock.renewals": pytest.approx(2, abs=1),
    }
    assert sum(point.count for point in found["atomiclock.wait.duration"]) == 3
    assert sum(point.count for point in found["atomiclock.hold.duration"]) == 2
    assert {point.attributes["lock"] for name in found for point in found[name]} == {"invoice:*"}
    _check(list(spans.get_finished_spans()))
    meters.shutdown()
    tracers.shutdown()


def _check(spans: list[ReadableSpan]) -> None:
    request = next(span for span in spans if span.name == "request")
    ours = [span for span in spans if span is not request]
    assert sorted(span.name for span in ours) == [*["acquire invoice:*"] * 3, *["hold invoice:*"] * 2]
    for span in ours:
        assert span.parent is not None
        assert span.parent.span_id == request.context.span_id
        assert span.start_time is not None
        assert span.end_time is not None
        assert span.start_time <= span.end_time
    failed = [span for span in ours if span.status.status_code is StatusCode.ERROR]
    assert sorted(span.name for span in failed) == ["acquire invoice:*", "hold invoice:*"]
    assert {(span.attributes or {})["atomiclock.name"] for span in ours} == {"invoice:42", "invoice:43"}
    assert any("no longer has it" in str(span.status.description) for span in failed)


def test_without_an_sdk_nothing_happens_and_nothing_fails() -> None:
    code = (
        "import atomiclock, atomiclock.opentelemetry as o; o.instrument()\n"
        "with atomiclock.acquire_lock('x', 'memory://'): pass"
    )
    sources = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": sources}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("module", "missing", "extra"),
    [("prometheus", "prometheus_client", "prometheus"), ("opentelemetry", "opentelemetry.metrics", "otel")],
)
def test_a_missing_package_names_the_extra(module: str, missing: str, extra: str) -> None:
    code = f"import sys; sys.modules[{missing!r}] = None; import atomiclock.{module}"
    sources = str(Path(__file__).parents[2] / "src")
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": sources}, capture_output=True, text=True, check=False
    )
    assert f"ConfigurationError: atomiclock.{module} needs" in done.stderr
    assert f"atomiclock[{extra}]" in done.stderr


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("invoice:42", "invoice:*"),
        ("nightly-report", "nightly-report"),
        ("order-1742", "order-*"),
        ("1742", "*"),
        ("https://example.org/rss", "https:*"),
        ("/var/lib/x", "/*"),
        ("tasks.import_feed:a b", "tasks.import_feed:*"),
        ("3f2504e0-4f89-41d3-9a0c-0305e82c3301", "*-*-*-*-*"),
        ("two words", "two *"),
        ("x" * 500, "x" * 80),
    ],
)
def test_a_name_becomes_a_template(name: str, label: str) -> None:
    assert template_of(name) == label


def test_labels_stay_few_whatever_the_names_are() -> None:
    labels = Labels(lambda name: name)
    made = {labels(f"name-{number}") for number in range(10 * MOST)}
    assert len(made) == MOST + 1
    assert OTHER in made
    assert labels("name-0") == "name-0"


def test_the_dashboard_asks_for_metrics_that_there_are(redis_server: RedisServer) -> None:
    registry = CollectorRegistry()
    with stopping(atomiclock.prometheus.export(registry)):
        some_events(redis_server)
    samples = {sample.name for metric in registry.collect() for sample in metric.samples}
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    asked = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
    used = {name for expression in asked for name in re.findall(r"atomiclock_\w+", expression)}
    assert used
    assert used <= samples
    shown = {name.removesuffix("_bucket") for name in used}
    ours = {re.sub("_(bucket|count|sum)$", "", name) for name in samples if not name.endswith("_created")}
    assert ours == shown


def test_no_panel_of_the_dashboard_covers_another() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    covered = [
        (x, y)
        for place in (panel["gridPos"] for panel in dashboard["panels"])
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(covered) == len(set(covered))
    assert max(x for x, _ in covered) < 24, "Grafana's grid has 24 columns"
