"""What a server says of each request: an id, where its time went, a line of the log, a trace; and no secret."""

import json
import re
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, HTTPServer

import httpx
import pytest
from fastapi import FastAPI

from running_server import start_server
from tvkd_server.metrics import Metrics
from tvkd_server.timing import Timing
from tvkd_server.tracing import send_traces
from tvkd_shared.errors import InvalidRequest

SECRET = "s3cret-of-the-team"


def item(first, length=3):
    return {"prompt_token_ids": [9, first], "completions": [[10] * length, [11]]}


def post(server, items, headers=None, **options):
    return httpx.post(f"{server.url}/v1/potentials", json={"items": items} | options, headers=headers, timeout=60)


def stages(answer):
    return {name: float(ms) for name, ms in re.findall(r"(\w+);dur=([\d.]+)", answer.headers["server-timing"])}


def test_an_answer_says_where_its_time_went(server):
    first, again = post(server, [item(50), item(51)]), post(server, [item(50), item(51)])
    assert stages(first).keys() == {"codec", "store", "queue", "teacher", "total"}
    assert stages(again).keys() == {"codec", "store", "total"}
    for answer in (first, again):
        assert all(spent <= stages(answer)["total"] for spent in stages(answer).values())
    for name in ('queue_seconds_count{work="on-demand"}', 'codec_seconds_count{operation="encode"}'):
        assert server.metric(f"tvkd_{name}") >= 1


def test_stages_of_prompts_side_by_side_are_counted_once():
    timing = Timing()
    with timing.stage("teacher"), timing.stage("teacher"):
        time.sleep(0.01)
    assert timing.seconds["teacher"] <= timing.total


@pytest.mark.parametrize("path", ["/healthz", "/v1/teacher", "/v1/nothing", "/v1/potentials"])
def test_an_id_is_kept_if_it_can_stand_in_a_log_and_made_otherwise(server, path):
    def id_of(*given):
        headers = [("X-Request-Id", one) for one in given]
        return httpx.get(f"{server.url}{path}", headers=headers).headers["x-request-id"]

    assert id_of("step-17_a.B") == "step-17_a.B"
    made = [id_of(), id_of(""), id_of("a" * 65), id_of('"}{'), id_of("a b"), id_of("ü".encode())]
    assert len(set(made)) == len(made) and all(re.fullmatch("[0-9a-f]{32}", one) for one in made)


def test_the_log_is_lines_of_json_with_ids_and_without_secrets(tiny_teacher, tmp_path):
    server = start_server(
        tiny_teacher, tmp_path / "values", "--log-format", "json", environment={"TVKD_API_KEY": SECRET}
    )
    key = {"Authorization": f"Bearer {SECRET}"}
    assert post(server, [item(50)], key | {"X-Request-Id": "mine"}).status_code == 200
    assert post(server, [item(999)], key | {"X-Request-Id": "wrong"}).status_code == 422
    assert post(server, [item(50)], {"X-Request-Id": "stranger"}).status_code == 401
    assert server.stop() == 0
    lines = [json.loads(line) for line in server.log]
    assert all({"time", "level", "logger", "message"} <= line.keys() for line in lines)
    requests = {line["request_id"]: line for line in lines if line["logger"] == "tvkd_server.requests"}
    outcomes = {name: line["outcome"] for name, line in requests.items()}
    assert outcomes == {"mine": "ok", "wrong": "token-out-of-range", "stranger": "unauthorized"}
    assert requests["mine"]["client"] == "127.0.0.1"
    assert requests["mine"]["stages"].keys() == {"codec", "store", "queue", "teacher"}
    assert SECRET not in "".join(server.log)


def test_a_log_for_people_has_no_line_for_each_request(server):
    post(server, [item(50)])
    assert not [line for line in server.log if "potentials" in line]


def test_a_request_that_waits_too_long_is_to_be_asked_again_and_loses_nothing(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--request-seconds", "0.5", "--max-batch-tokens", "1024")
    items = [{"prompt_token_ids": [9 + n % 100] * 120, "completions": [[9 + n % 99] * 120]} for n in range(900)]
    answers = []
    for options in ({}, {"return": "digests"}) * 200:
        answers.append(post(server, items, **options))
        if answers[-1].status_code == 200:
            break
        assert (answers[-1].status_code, answers[-1].json()["code"]) == (503, "teacher-unavailable")
        assert int(answers[-1].headers["retry-after"]) >= 1
    assert len(answers) > 1 and answers[-1].status_code == 200
    assert server.metric("tvkd_computed_completions_total") < 2 * 900
    assert server.metric("tvkd_queued_tokens") == 0
    server.kill()


def test_traces_without_opentelemetry_are_refused_in_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry.instrumentation.asgi", None)
    with pytest.raises(InvalidRequest, match=r"pip install 'tvkd\[otel\]'"):
        send_traces(FastAPI(), Metrics(), "http://127.0.0.1:9/v1/traces")


def test_a_trace_has_a_span_for_each_stage_of_a_request(tiny_teacher, tmp_path):
    pytest.importorskip("opentelemetry.instrumentation.asgi")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies = []

    class Collector(BaseHTTPRequestHandler):
        def do_POST(self):
            bodies.append(self.rfile.read(int(self.headers["Content-Length"])))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    collector = HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    environment = {"TVKD_API_KEY": SECRET, "OTEL_EXPORTER_OTLP_COMPRESSION": "none"}
    server = start_server(tiny_teacher, tmp_path / "values", "--otlp-endpoint", endpoint, environment=environment)
    parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
    assert post(server, [item(50)], {"Authorization": f"Bearer {SECRET}", "traceparent": parent}).status_code == 200
    assert server.stop() == 0
    collector.shutdown()
    sent = [ExportTraceServiceRequest.FromString(body) for body in bodies]
    spans = [span for one in sent for part in one.resource_spans for scope in part.scope_spans for span in scope.spans]
    assert {"codec", "store", "queue", "teacher"} < {span.name for span in spans}
    assert {span.trace_id.hex() for span in spans} == {parent.split("-")[1]}
    assert SECRET.encode() not in b"".join(bodies)
