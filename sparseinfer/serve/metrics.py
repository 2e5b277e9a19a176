"""Figures for Prometheus. Every server has a registry of its own."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from sparseinfer.engine.scheduling import SchedulerState
from sparseinfer.serve.served import Served

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600, 1800)
_SHORT_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1, 2.5, 10)
_PREFIX = "sparseinfer"


class Metrics:
    """What is counted as requests go by, and what the engine says when asked."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        registry = {"namespace": _PREFIX, "registry": self.registry}
        self.requests = Counter("requests", "Requests answered.", ["route", "status"], **registry)
        self.in_hand = Gauge(
            "requests_in_hand", "Generating requests not answered yet.", **registry
        )
        self.seconds = Histogram(
            "request_seconds",
            "From a generating request's header to the end of its answer.",
            ["route"],
            buckets=_SECONDS,
            **registry,
        )
        self.first_token = Histogram(
            "time_to_first_token_seconds",
            "From a generating request's header to its first token.",
            buckets=_SECONDS,
            **registry,
        )
        self.between_tokens = Histogram(
            "inter_token_seconds",
            "Between two tokens of one answer.",
            buckets=_SHORT_SECONDS,
            **registry,
        )
        self.answers = Counter(
            "answers", "Answers that came to their end.", ["finish_reason"], **registry
        )
        self.prompt_length = Histogram(
            "prompt_tokens_per_request",
            "Tokens of a request's prompts.",
            buckets=[2**power for power in range(18)],
            **registry,
        )

    def watch(self, served: Served) -> None:
        """From now on also shows what the engine says of itself."""
        self.registry.register(_EngineCollector(served))

    def text(self) -> bytes:
        """All figures in Prometheus' text format."""
        return generate_latest(self.registry)


class _EngineCollector(Collector):
    """Asks the scheduler for its figures whenever Prometheus asks for ours."""

    def __init__(self, served: Served) -> None:
        self._served = served

    def collect(self) -> Iterator[Metric]:
        state = self._served.scheduler.snapshot()
        yield from _counters(state)
        yield from _gauges(state)
        facts = self._served.facts
        active = facts.active(state.recent)
        yield _by_layer(
            "active_fraction", "Neurons computed in full, over the last tokens decoded.", active
        )
        yield _by_layer(
            "calibrated_active_fraction", "The same on the calibration text.", facts.calibrated
        )
        yield _by_layer(
            "active_fraction_drift",
            "Difference of the two: above 0, more fire.",
            facts.drift(active),
        )
        if state.recall is not None:
            yield _counter(
                "recall_samples", "Tokens on which recall was measured.", state.recall.samples
            )
            yield _by_layer(
                "predictor_recall",
                "Of the neurons that fire, the part let through, over the last tokens sampled.",
                state.recall.by_layer,
            )


def _counters(state: SchedulerState) -> Iterator[Metric]:
    for name, help_text, value in (
        ("prompt_tokens", "Prompt tokens computed.", state.prompt_tokens),
        ("cached_prompt_tokens", "Prompt tokens taken from earlier prompts.", state.cached_tokens),
        ("completion_tokens", "Tokens generated; their rate is tokens/s.", state.completion_tokens),
        ("sequences_finished", "Answers that the engine finished.", state.finished),
        ("sequences_failed", "Answers that the engine could not finish.", state.failed),
        ("sequences_cancelled", "Answers taken back: stop strings, clients gone.", state.cancelled),
    ):
        yield _counter(name, help_text, value)


def _counter(name: str, help_text: str, value: int) -> Metric:
    return CounterMetricFamily(f"{_PREFIX}_{name}", help_text, value=value)


def _gauges(state: SchedulerState) -> Iterator[Metric]:
    for name, help_text, value in (
        ("slots", "Answers that can be made at the same time.", state.slots),
        ("slots_prefilling", "Slots that read a prompt.", state.prefilling),
        ("slots_decoding", "Slots that generate.", state.decoding),
        ("queue_length", "Answers that wait for a slot.", state.waiting),
    ):
        yield GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, value=value)


def _by_layer(name: str, help_text: str, values: Sequence[float] | None) -> Metric:
    family = GaugeMetricFamily(f"{_PREFIX}_{name}", help_text, labels=["layer"])
    for layer, value in enumerate(values or ()):
        family.add_metric([str(layer)], value)
    return family
