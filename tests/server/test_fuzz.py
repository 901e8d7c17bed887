"""The HTTP interface fuzzed from its own OpenAPI: whatever is sent, the answer is one that the document promises."""

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, settings


@pytest.fixture(scope="module")
def documented(server):
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


documented_api = schemathesis.pytest.from_fixture("documented")


@documented_api.parametrize()
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
def test_every_answer_is_one_the_document_promises(case):
    case.call_and_validate()


def test_after_the_fuzzing_the_teacher_still_answers(server):
    item = {"prompt_token_ids": [9], "completions": [[10]]}
    assert httpx.post(f"{server.url}/v1/potentials", json={"items": [item]}).status_code == 200
    assert httpx.get(f"{server.url}/readyz").status_code == 200
