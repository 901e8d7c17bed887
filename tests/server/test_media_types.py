"""JSON and Arrow on a real server: every combination says the same, and a wrong one is told in one line."""

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from raw_http import connect
from tvkd_server.media_types import ARROW, JSON, codec_of_answer
from tvkd_shared.arrow_codec import decode_answer, encode_request
from tvkd_shared.record import column_names
from tvkd_shared.wire import RequestOptions, TokenItem

ITEMS = [TokenItem([50, 51], [[52, 53], [54]]), TokenItem([55], [[56, 57, 58]])]
AS_JSON = {"items": [{"prompt_token_ids": i.prompt_token_ids, "completions": i.completions} for i in ITEMS]}
OPTIONS = {"temperatures": [1.0, 0.5], "entropy": True}


def body_of(media_type):
    arrow = encode_request(RequestOptions(**OPTIONS), [TokenItem(*map_arrays(item)) for item in ITEMS])
    return {"content": arrow} if media_type == ARROW else {"json": AS_JSON | OPTIONS}


def map_arrays(item):
    return np.array(item.prompt_token_ids), [np.array(ids) for ids in item.completions]


def post(server, accept, content_type=JSON, **body):
    headers = {"content-type": content_type} | ({"accept": accept} if accept else {})
    return httpx.post(f"{server.url}/v1/potentials", headers=headers, timeout=60, **body)


def one_line(answer):
    assert answer.headers["content-type"] == "application/problem+json"
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid-request"), answer.text
    assert "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


def values_of(answer):
    """(key, values at 0.5, entropies) of each completion."""
    if answer.headers["content-type"] == ARROW:
        items = decode_answer(answer.content, column_names([0.5])).items
        completions = [completion for item in items for completion in item.completions]
        return [(c.key.hex(), c.record.value(0.5).tolist(), c.record.entropies.tolist()) for c in completions]
    completions = [completion for item in answer.json()["items"] for completion in item["completions"]]
    return [(c["key"], c["values"][1], c["entropies"]) for c in completions]


def test_every_combination_of_json_and_arrow_says_the_same(server):
    answers = {
        (asked, answered): post(server, answered, asked, **body_of(asked))
        for asked in (JSON, ARROW)
        for answered in (JSON, ARROW)
    }
    for (_, answered), answer in answers.items():
        assert answer.status_code == 200 and answer.headers["content-type"] == answered
    first, *others = map(values_of, answers.values())
    assert len(first) == 3 and all(other == first for other in others)


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", JSON),
        ("*/*", JSON),
        ("application/*", JSON),
        ("text/html, */*;q=0.1", JSON),
        (ARROW, ARROW),
        (f"{ARROW}, */*;q=0.5", ARROW),
        (f"{ARROW}, */*", ARROW),
        (f"{ARROW}, {JSON}", JSON),
        (f"{ARROW};q=0.5, {JSON};q=0.9", JSON),
        (f"{JSON};q=0.2, {ARROW};q=0.9", ARROW),
        (f"*/*, {JSON};q=0", ARROW),
        (f"{ARROW.upper()} ; q=1.0", ARROW),
    ],
)
def test_the_answer_comes_as_accept_prefers(accept, expected):
    assert expected == codec_of_answer(accept).MEDIA_TYPE


@pytest.mark.parametrize("accept", ["text/html", f"{JSON};q=0", "*/*;q=0", "nonsense", ";;,"])
def test_an_answer_that_nobody_offers_is_refused(server, accept):
    assert "Accept" in one_line(post(server, accept, **body_of(JSON)))


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", "", "arrow"])
def test_a_request_of_another_type_is_told_what_to_send(server, content_type):
    assert ARROW in one_line(post(server, JSON, content_type, content=b"{}"))


@pytest.mark.parametrize("coding", ["zstd", "gzip", "identity, br", "x"])
@pytest.mark.parametrize("path", ["potentials", "shaping"])
def test_a_compressed_body_is_refused_before_it_is_read(server, path, coding):
    head = f"POST /v1/{path} HTTP/1.1\r\nHost: tvkd\r\nContent-Type: {JSON}\r\nContent-Encoding: {coding}\r\n"
    with connect(server, head.encode() + b"Content-Length: 1000\r\n\r\n") as connection:
        answer = b""
        while not answer.endswith(b"}"):
            answer += connection.recv(1 << 16)
    assert answer.startswith(b"HTTP/1.1 415") and b"accept-encoding: identity" in answer
    assert f"Content-Encoding is `{coding}`; send the body as it is".encode() in answer


def test_a_body_that_says_it_is_not_compressed_is_read(server):
    headers = {"content-encoding": "Identity", "content-type": JSON}
    assert httpx.post(f"{server.url}/v1/potentials", json=AS_JSON, headers=headers).status_code == 200


def test_text_is_answered_the_same_as_json_and_as_arrow(server):
    chat = [{"role": "user", "content": "w20"}]
    items = [{"prompt": "w20", "completions": [" w30", " w31 w32"]}, {"prompt": chat, "completions": ["w30"]}]
    plain, arrow = (post(server, accept, json={"items": items} | OPTIONS) for accept in (JSON, ARROW))
    assert values_of(plain) == values_of(arrow)
    read = decode_answer(arrow.content, column_names([0.5])).items
    for as_json, as_arrow in zip(plain.json()["items"], read, strict=True):
        assert as_json["prompt_tokens"] == as_arrow.prompt_tokens.tolist()
        for one, other in zip(as_json["completions"], as_arrow.completions, strict=True):
            assert one["tokens"] == other.tokens.tolist()
            assert [end for _, end in one["offsets"]] == other.ends.tolist()


@pytest.fixture(scope="module")
def sound():
    return body_of(ARROW)["content"]


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_a_damaged_arrow_request_is_never_a_fault_of_the_server(server, sound, data):
    damaged = bytearray(sound)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(sound) - 1))] = data.draw(st.integers(0, 255))
    answer = post(server, ARROW, ARROW, content=bytes(damaged[: data.draw(st.integers(0, len(sound)))]))
    assert answer.status_code < 500, answer.text


@pytest.mark.parametrize("share", [0.0, 0.3, 0.6, 0.99])
def test_a_cut_off_arrow_request_is_told_so(server, sound, share):
    assert "cut off" in one_line(post(server, ARROW, ARROW, content=sound[: int(share * len(sound))])) or share > 0


def test_an_arrow_request_at_fault_has_the_error_of_a_json_request(server):
    bad = encode_request(RequestOptions(), [TokenItem(np.array([1]), [np.array([5, 128])])])
    answer = post(server, ARROW, ARROW, content=bad)
    assert (answer.status_code, answer.json()["code"]) == (422, "token-out-of-range")
    assert "completions[0][1] is 128" in answer.json()["detail"]
