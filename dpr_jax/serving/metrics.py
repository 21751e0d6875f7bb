"""The metrics of the server, in Prometheus' text format."""

from collections.abc import Callable

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10)


class Metrics:
    """Counters and histograms of one server."""

    def __init__(self) -> None:
        disable_created_metrics()
        registry = self._registry = CollectorRegistry()
        self._labelled: list[tuple[Gauge, Callable[[], dict[str, float]]]] = []
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        self.requests = Counter(
            "dpr_requests",
            "Requests answered.",
            ("method", "route", "status"),
            registry=registry,
        )
        self.request_s = Histogram(
            "dpr_request_seconds",
            "From the request's headers to the end of its answer.",
            ("route",),
            buckets=SECONDS,
            registry=registry,
        )
        self.stage_s = Histogram(
            "dpr_stage_seconds",
            "Seconds in a stage: queue, encode, search, passages.",
            ("stage",),
            buckets=SECONDS,
            registry=registry,
        )
        self.batch_size = Histogram(
            "dpr_batch_questions",
            "Questions that were encoded and searched together.",
            ("retriever",),
            buckets=(1, 2, 4, 8, 16, 32, 64, 128),
            registry=registry,
        )
        self.rejected = Counter(
            "dpr_rejected", "Requests that were refused.", ("reason",), registry=registry
        )
        self.reloads = Counter(
            "dpr_reloads", "Reloads by outcome.", ("outcome",), registry=registry
        )
        self.log_lines_lost = Counter(
            "dpr_access_log_lost",
            "Lines that the access log's reader was too slow for.",
            registry=registry,
        )

    def gauge(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Adds a gauge whose value is computed when the page is made."""
        Gauge(name, text, registry=self._registry).set_function(value)

    def gauges(
        self, name: str, text: str, label: str, values: Callable[[], dict[str, float]]
    ) -> None:
        """Adds a gauge with one label, whose values are computed when the page is made."""
        gauge = Gauge(name, text, (label,), registry=self._registry)
        self._labelled.append((gauge, values))

    def page(self) -> bytes:
        """Returns the page."""
        for gauge, values in self._labelled:
            gauge.clear()
            for label, value in values().items():
                gauge.labels(label).set(value)
        return generate_latest(self._registry)
