"""Chains of requests made up from the OpenAPI document, as JSON and as Arrow, with all of schemathesis's checks.

    FUZZ_CASES=5000 python -m pytest tests/server/test_stateful_fuzz.py -s

Beside what the document promises, a completion's values are the same to the bit, whenever and however it is asked for.
FUZZ_CASES are about how many requests are made for each form of answer, half of them for values.
"""

import json
import os
import re
from collections import Counter
from contextlib import suppress

import httpx
import numpy as np
import pyarrow as pa
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.errors import FlakyStrategyDefinition
from schemathesis.specs.openapi.checks import negative_data_rejection, positive_data_acceptance

from tvkd_shared import arrow_codec
from tvkd_shared.arrow_codec import MEDIA_TYPE as ARROW
from tvkd_shared.record import ENTROPY, value_column
from tvkd_shared.wire import RequestOptions, TokenItem

CASES = int(os.environ.get("FUZZ_CASES", "60"))
STEPS = 6
KNOWN = {}
"""The bits of what was answered so far, as JSON or as Arrow."""
NUMBERS = re.compile("value_|action_logit|entropy")
JSON = "application/json"
POSITIVE = schemathesis.GenerationMode.POSITIVE

ids = st.lists(st.integers(9, 12), min_size=1, max_size=4)  # as `narrowed` makes them
items = st.builds(TokenItem, ids, st.lists(ids, min_size=1, max_size=3))
options = st.fixed_dictionaries(
    {},
    optional={
        "temperatures": st.lists(st.sampled_from([0.1, 0.5, 1.0, 10.0, 11.0]), min_size=1, max_size=3, unique=True),
        "entropy": st.booleans(),
        "stream": st.booleans(),
        "cache": st.sampled_from(["use", "only", "skip"]),
        "return": st.sampled_from(["values", "digests", "tokens"]),
    },
)


@st.composite
def arrow_bodies(draw):
    """A request as Arrow, right or with some bytes changed."""
    chosen = draw(options)
    try:
        body = arrow_codec.encode_request(RequestOptions(**chosen), draw(st.lists(items, min_size=1, max_size=3)))
    except ValueError:  # options that exclude each other
        body = arrow_codec.encode_request(RequestOptions(), [TokenItem([9], [[10]])])
    if draw(st.integers(0, 3)):
        return body
    damaged = bytearray(body)
    for place in draw(st.lists(st.integers(0, len(body) - 1), min_size=1, max_size=3)):
        damaged[place] = draw(st.integers(0, 255))
    return bytes(damaged)


schemathesis.openapi.media_type(ARROW, arrow_bodies())


@pytest.fixture(scope="module")
def document(server):
    """The server's own document, with links that say which requests may follow one another."""
    raw = httpx.get(f"{server.url}/openapi.json").json()
    asked = raw["paths"]["/v1/potentials"]["post"]
    follow = {name: raw["paths"][f"/v1/{name}"]["get"]["operationId"] for name in ("store", "teacher")}
    follow["again"] = asked["operationId"]
    asked["responses"]["200"]["links"] = {name: {"operationId": operation} for name, operation in follow.items()}
    return raw


def narrowed(body, teacher):
    """A right JSON request, made one of few that this teacher can answer, so that completions come again and again."""

    def few(tokens):
        return [9 + int(token) % 4 for token in tokens[:4]]

    def word(text):
        return f" w{20 + len(text) % 3}"

    made = []
    for item in body["items"][:3]:
        if "prompt_token_ids" in item:
            made.append(
                {"prompt_token_ids": few(item["prompt_token_ids"]), "completions": [*map(few, item["completions"][:3])]}
            )
            continue
        chat = not isinstance(item["prompt"], str)
        prompt = [{"role": "user", "content": word(item["prompt"])}] if chat else word(item["prompt"])
        eos = {} if chat else {"append_eos": item.get("append_eos", False)}
        made.append({"prompt": prompt, "completions": [*map(word, item["completions"][:3])]} | eos)
    body = body | {"items": made}
    if "temperatures" in body:
        body["temperatures"] = list(dict.fromkeys([0.5, 1.0, 2.0][int(tau) % 3] for tau in body["temperatures"]))
    if body.get("teacher_id"):
        body["teacher_id"] = teacher
    return body


def computes_anew(case):
    """Whether a request that was answered had `cache: skip`, whose values are others in the last bits."""
    cache = arrow_codec.decode_request(case.body).cache if case.media_type == ARROW else case.body.get("cache")
    return cache == "skip"


def numbers_of(answer, accepted):
    """(key, column) → the bits of its numbers, of an answer of values."""
    if accepted == ARROW:
        table = pa.ipc.open_stream(answer.content).read_all()
        rows = [
            (row["key"].hex(), {name: row[name] for name in row if NUMBERS.match(name)}) for row in table.to_pylist()
        ]
    else:
        told, rows = json.loads(answer.content), []
        for one in (one for item in told["items"] for one in item["completions"] if "values" in one):
            columns = dict(zip(map(value_column, told["temperatures"]), one["values"], strict=True))
            others = {"action_logit": one["action_logits"], ENTROPY: one.get("entropies")}
            rows.append((one["key"], columns | {name: row for name, row in others.items() if row is not None}))
    return {(key, name): np.array(row, np.float32).tobytes() for key, columns in rows for name, row in columns.items()}


@pytest.mark.timeout(36_000)
@pytest.mark.parametrize("accepted", [JSON, ARROW])
def test_chains_of_requests_get_what_the_document_promises_and_values_that_never_change(server, document, accepted):
    answered, failures, teacher = Counter(), [], httpx.get(f"{server.url}/v1/teacher").json()["id"]
    schema = schemathesis.openapi.from_dict(document)
    schema.config.update(base_url=server.url)

    class Chain(schema.as_state_machine()):
        def get_call_kwargs(self, case):
            return {"headers": {"Accept": accepted}} if case.path == "/v1/potentials" else {}

        def before_call(self, case):
            if case.media_type == JSON and case.meta.generation.mode == POSITIVE and case.path == "/v1/potentials":
                case.body = narrowed(case.body, teacher)

        def validate_response(self, response, case, **rest):
            answered[case.method, case.path, case.media_type, response.status_code] += 1
            try:
                check(response, case)
            except BaseException as error:
                failures.append(error)
                raise

    def check(response, case):
        # The document does not have all that makes a request wrong, such as options that exclude one another, and does
        # not say which bytes are Arrow.
        arrow = [negative_data_rejection] if case.media_type == ARROW else []
        case.validate_response(response, excluded_checks=[positive_data_acceptance, *arrow])
        if case.path == "/v1/potentials" and response.status_code == 200 and not computes_anew(case):
            for place, bits in numbers_of(response, accepted).items():
                assert KNOWN.setdefault(place, bits) == bits, place

    Chain.TestCase.settings = settings(
        max_examples=max(1, CASES // STEPS),
        stateful_step_count=STEPS,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    try:
        while answered.total() < CASES and not failures:
            # What is stored, and so the answer to `cache: only`, depends on all that was asked before.
            with suppress(FlakyStrategyDefinition):
                Chain.TestCase().runTest()
    finally:
        for case, count in sorted(answered.items(), key=str):
            print(count, *case)
        print(f"{answered.total():,} cases, {len(KNOWN):,} columns of completions")
    if failures:
        raise failures[0]
    assert httpx.get(f"{server.url}/readyz").status_code == 200
