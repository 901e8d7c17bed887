"""What the server counts, for Prometheus. One registry an app, so that two apps in one process do not mix."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from tvkd_server.timing import CURRENT

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
            "tvkd_teacher_seconds", "Time of one prompt in the engine, waiting there included", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self.queue_seconds = Histogram(
            "tvkd_queue_seconds", "Time until it is one prompt's turn in the engine: on-demand, or bulk", ["work"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.codec_seconds = Histogram(
            "tvkd_codec_seconds", "Time to decode, prepare (tokenise, check) or encode one request", ["operation"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self.store_seconds = Histogram(
            "tvkd_store_seconds", "Time of one store operation", ["operation"], buckets=_SECONDS, registry=self.registry
        )
        self.queued_tokens = Gauge("tvkd_queued_tokens", "Tokens admitted and not yet computed", registry=self.registry)
        self.connections = Gauge("tvkd_connections", "Open connections", registry=self.registry)
        self.corrupt = Gauge(
            "tvkd_corrupt_blocks", "Damaged blocks met in the store: not served, computed again", registry=self.registry
        )

        self.span: Callable[[str], AbstractContextManager[Any]] = nullcontext
        """Makes the span of a trace, where traces are sent."""

    @contextmanager
    def stage(self, name: str, seconds: Histogram) -> Iterator[None]:
        """Time one part of a request: as a metric, for the request's `Server-Timing` and log line, and as a span."""
        timing = CURRENT.get()
        with self.span(name), timing.stage(name) if timing else nullcontext(), seconds.time():
            yield

    def count(self, sample: str) -> int:
        """A counter's present value."""
        return int(self.registry.get_sample_value(sample) or 0)
