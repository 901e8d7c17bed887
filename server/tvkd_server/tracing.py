"""Traces by OpenTelemetry, made and sent only where they are asked for."""

from fastapi import FastAPI

from tvkd_server.metrics import Metrics
from tvkd_shared.errors import InvalidRequest


def send_traces(app: FastAPI, metrics: Metrics, endpoint: str) -> None:
    """Send a span for each request, and in it one for each stage, by OTLP over HTTP. Raises InvalidRequest when
    OpenTelemetry is not installed."""
    try:
        # An optional extra: servers without traces need none of it.
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import TracerProvider  # noqa: PLC0415
        from opentelemetry.sdk.trace.export import BatchSpanProcessor  # noqa: PLC0415
        from opentelemetry.util.http import parse_excluded_urls  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise InvalidRequest(f"--otlp-endpoint needs {error.name}; run: pip install 'tvkd[otel]'") from error
    provider = TracerProvider(resource=Resource.create({"service.name": "tvkd"}))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint)))
    app.add_middleware(
        OpenTelemetryMiddleware,
        tracer_provider=provider,
        excluded_urls=parse_excluded_urls("/healthz,/readyz,/metrics"),
        exclude_spans=["receive", "send"],
    )
    metrics.span = provider.get_tracer("tvkd").start_as_current_span
