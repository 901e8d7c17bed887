"""The HTTP interface fuzzed from its own OpenAPI: whatever is sent, the answer is one that the document promises."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis.specs.openapi.checks import positive_data_acceptance

ROUTES = [
    ("/v1/potentials", "POST"),
    ("/v1/shaping", "POST"),
    ("/v1/teacher", "GET"),
    ("/v1/store", "GET"),
    ("/v1/vocabulary", "GET"),
    ("/healthz", "GET"),
    ("/readyz", "GET"),
    ("/metrics", "GET"),
]


@pytest.fixture(scope="module")
def documented(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


def test_every_route_is_fuzzed(documented):
    assert {(path, method.upper()) for path in documented for method in documented[path]} == set(ROUTES)


POSITIVE, NEGATIVE = schemathesis.GenerationMode.POSITIVE, schemathesis.GenerationMode.NEGATIVE


# A route without a body or parameters can be asked in one way only, and that one is right.
@pytest.mark.parametrize(
    ("path", "method", "mode"),
    [*((*route, POSITIVE) for route in ROUTES), *((*route, NEGATIVE) for route in ROUTES[:2])],
)
def test_every_answer_is_one_the_document_promises(documented, path, method, mode):
    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.data())
    def fuzz(data):
        data.draw(documented[path][method].as_strategy(generation_mode=mode)).call_and_validate(
            # The teacher's vocabulary and longest sequence are no part of the document, and refuse some valid requests.
            excluded_checks=[positive_data_acceptance]
        )

    fuzz()


def test_after_the_fuzzing_the_teacher_still_answers(server):
    item = {"prompt_token_ids": [9], "completions": [[10]]}
    assert httpx.post(f"{server.url}/v1/potentials", json={"items": [item]}).status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200
