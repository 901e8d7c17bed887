"""What the server counts, for Prometheus. One registry an app, so that two apps in one process do not mix."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100)


class Metrics:
    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "tvkd_requests", "Requests for values by outcome: ok or an error code", ["outcome"], registry=self.registry
        )
        self.request_seconds = Histogram(
            "tvkd_request_seconds", "Time to answer a request for values", buckets=_SECONDS, registry=self.registry
        )
        self.cached = Counter("tvkd_cached_completions", "Completions answered from the store", registry=self.registry)
        self.computed = Counter("tvkd_computed_completions", "Completions the teacher scored", registry=self.registry)
        self.joined = Counter(
            "tvkd_joined_completions", "Completions answered by another request's teacher run", registry=self.registry
        )
        self.teacher_tokens = Counter(
            "tvkd_teacher_tokens", "Tokens the teacher scored, a shared prompt counted once", registry=self.registry
        )
        self.teacher_seconds = Histogram(
            "tvkd_teacher_seconds", "Time of one prompt in the teacher, waiting included", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.store_seconds = Histogram(
            "tvkd_store_seconds", "Time of one store operation", ["operation"], buckets=_SECONDS, registry=self.registry
        )
        self.queued_tokens = Gauge("tvkd_queued_tokens", "Tokens admitted and not yet computed", registry=self.registry)
        self.connections = Gauge("tvkd_connections", "Open connections", registry=self.registry)
        self.corrupt = Gauge(
            "tvkd_corrupt_blocks", "Damaged blocks met in the store: not served, computed again", registry=self.registry
        )

    def count(self, sample: str) -> int:
        """A counter's present value."""
        return int(self.registry.get_sample_value(sample) or 0)
