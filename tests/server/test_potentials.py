"""`POST /v1/potentials` on a real server: what is answered, what is kept, what is refused."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import httpx
import numpy as np
import pytest

from running_server import start_server
from tvkd_shared.key import completion_keys
from tvkd_shared.value import entropy, value

COMPUTED, TOKENS = "tvkd_computed_completions_total", "tvkd_teacher_tokens_total"
_fresh = count()


def fresh_item(completions=1, length=5):
    """An item that no other test asks for: its prompt spells a number in base 100."""
    number = next(_fresh)
    prompt = [8 + number % 100, 8 + number // 100 % 100, 9]
    return {"prompt_token_ids": prompt, "completions": [[10 + k, *range(20, 19 + length)] for k in range(completions)]}


@pytest.fixture
def ask(server):
    def post(*items, **rest):
        return httpx.post(f"{server.url}/v1/potentials", json={"items": items} | rest, timeout=60)

    return post


def completions_of(answer):
    assert answer.status_code == 200, answer.text
    return [completion for item in answer.json()["items"] for completion in item["completions"]]


def refused(answer, status, code):
    assert (answer.status_code, answer.json()["code"]) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    assert "\n" not in answer.json()["detail"]
    return answer.json()["detail"]


@pytest.fixture(scope="module")
def full_logits(tiny_teacher):
    """Independent: the whole sequence alone through transformers, all logits in float64."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_teacher, dtype=torch.float32).eval()

    def run(prompt, completion):
        with torch.no_grad():
            logits = model(torch.tensor([[*prompt, *completion]])).logits[0].double().numpy()
        return logits[len(prompt) - 1 :]

    return run


def test_values_agree_with_full_logits_at_every_state(ask, full_logits):
    item = fresh_item(completions=3, length=6)
    answers = completions_of(ask(item, temperatures=[1.0, 0.5, 2.0], entropy=True))
    for completion, answer in zip(item["completions"], answers, strict=True):
        logits_SV = full_logits(item["prompt_token_ids"], completion)
        for tau, row in zip([1.0, 0.5, 2.0], answer["values"], strict=True):
            np.testing.assert_allclose(row, value(logits_SV, tau), atol=1e-4)
        actions = logits_SV[np.arange(len(completion)), completion]
        np.testing.assert_allclose(answer["action_logits"], actions, atol=1e-4)
        np.testing.assert_allclose(answer["entropies"], entropy(logits_SV), atol=1e-4)


def test_asked_again_the_answer_is_the_same_and_the_teacher_does_not_run(ask, server):
    item = fresh_item(completions=2)
    first = completions_of(ask(item))
    ran = server.metric(TOKENS)
    second = completions_of(ask(item))
    assert server.metric(TOKENS) == ran
    assert [one.pop("cached") for one in first] == [False, False]
    assert [one.pop("cached") for one in second] == [True, True]
    assert first == second


def test_the_same_key_asked_by_fifty_clients_at_once_is_computed_once(ask, server):
    item = fresh_item(length=60)
    computed = server.metric(COMPUTED)
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: completions_of(ask(item))[0], range(50)))
    assert server.metric(COMPUTED) == computed + 1
    assert sum(not answer.pop("cached") for answer in answers) == 1
    assert all(answer == answers[0] for answer in answers)


def test_waiting_for_anothers_computation_takes_no_place_in_the_queue(tiny_teacher, tmp_path):
    server = start_server(tiny_teacher, tmp_path / "values", "--max-queued-tokens", "300")
    item = {"prompt_token_ids": [9], "completions": [[10] * 200]}
    with ThreadPoolExecutor(50) as pool:
        answers = list(pool.map(lambda _: httpx.post(f"{server.url}/v1/potentials", json={"items": [item]}), range(50)))
    assert {answer.status_code for answer in answers} == {200}
    assert server.metric(COMPUTED) == 1 and server.metric("tvkd_queued_tokens") == 0
    server.kill()


def test_a_repeated_completion_in_one_request_is_computed_once(ask, server):
    item = fresh_item()
    item["completions"] *= 3
    computed = server.metric(COMPUTED)
    one, two, three = completions_of(ask(item, item))[:3]
    assert one == two == three
    assert server.metric(COMPUTED) == computed + 1


def test_a_new_temperature_leaves_what_is_stored_as_it_is(ask):
    item = fresh_item()
    before = completions_of(ask(item, entropy=True))[0]
    after = completions_of(ask(item, temperatures=[0.7, 1.0], entropy=True))[0]
    assert not after["cached"]
    assert after["values"][1] == before["values"][0]
    assert (after["action_logits"], after["entropies"]) == (before["action_logits"], before["entropies"])
    again = completions_of(ask(item, temperatures=[0.7]))[0]
    assert again["cached"] and again["values"] == [after["values"][0]]


def test_cache_only_never_runs_the_teacher(ask, server):
    item = fresh_item(completions=2)
    ran = server.metric(TOKENS)
    assert "2 of 2" in refused(ask(item, cache="only"), 404, "not-cached")
    assert server.metric(TOKENS) == ran
    completions_of(ask(item))
    assert all(one["cached"] for one in completions_of(ask(item, cache="only")))


def test_cache_skip_keeps_nothing(ask):
    item = fresh_item()
    assert not completions_of(ask(item, cache="skip"))[0]["cached"]
    refused(ask(item, cache="only"), 404, "not-cached")


def test_digests_fill_the_store_and_send_no_values(ask, server):
    item = fresh_item(completions=2)
    teacher_id = httpx.get(f"{server.url}/v1/teacher").json()["id"]
    keys = completion_keys(teacher_id, item["prompt_token_ids"], item["completions"])
    answers = completions_of(ask(item, **{"return": "digests"}))
    assert answers == [{"key": key.hex(), "cached": False, "length": 5} for key in keys]
    assert all(one["cached"] for one in completions_of(ask(item, cache="only")))


def test_text_is_tokenised_with_the_teachers_own_tokenizer(ask):
    answer = ask({"prompt": "w20 w21", "completions": [" w30 w31"]})
    item = answer.json()["items"][0]
    assert item["prompt_tokens"] == [20, 21]
    assert completions_of(answer)[0]["tokens"] == [30, 31]
    assert completions_of(answer)[0]["offsets"] == [[0, 4], [4, 8]]
    by_ids = completions_of(ask({"prompt_token_ids": [20, 21], "completions": [[30, 31]]}))[0]
    assert by_ids["key"] == completions_of(answer)[0]["key"]


def test_messages_are_rendered_with_the_teachers_chat_template(ask):
    answer = ask({"prompt": [{"role": "user", "content": "w20 w21"}], "completions": ["w30"]})
    assert answer.json()["items"][0]["prompt_tokens"][:3] == [4, 20, 21]
    assert completions_of(answer)[0]["offsets"] == [[0, 3], [3, 3], [3, 3]]  # what the template adds is no text


def test_the_end_of_sequence_token_stands_behind_text_where_it_is_asked_for(ask):
    answer = completions_of(ask({"prompt": "w20 w21", "completions": [" w30"], "append_eos": True}))[0]
    assert (answer["tokens"], answer["offsets"]) == ([30, 2], [[0, 4], [4, 4]])


def test_a_bad_item_is_named_and_costs_its_neighbours_nothing(ask, server):
    good, bad = fresh_item(), {"prompt_token_ids": [1], "completions": [[5, 128]]}
    ran = server.metric(TOKENS)
    detail = refused(ask(good, bad), 422, "token-out-of-range")
    assert "items[1]" in detail and "128" in detail and "127" in detail
    assert server.metric(TOKENS) == ran


def test_a_sequence_too_long_is_refused_and_the_longest_is_not(ask):
    longest = {"prompt_token_ids": [9] * 200, "completions": [[10] * 56]}
    completions_of(ask(longest))
    too_long = {"prompt_token_ids": [9] * 200, "completions": [[10] * 57]}
    assert "256" in refused(ask(too_long), 422, "sequence-too-long")


def test_another_teacher_is_refused(ask):
    assert "was asked for" in refused(ask(fresh_item(), teacher_id="0" * 32), 409, "teacher-mismatch")


def test_a_temperature_out_of_range_is_refused(ask):
    assert "0.1" in refused(ask(fresh_item(), temperatures=[0.01]), 422, "temperature-not-served")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'{"items": 3}', b"\xff\xfe", b"[" * 100_000, b"null"])
def test_what_is_no_request_is_a_problem_and_not_a_fault(server, body):
    answer = httpx.post(f"{server.url}/v1/potentials", content=body, headers={"content-type": "application/json"})
    assert answer.status_code in (400, 422) and answer.json()["code"] == "invalid-request"


def test_the_store_counts_what_it_keeps(ask, server):
    before = httpx.get(f"{server.url}/v1/store").json()
    completions_of(ask(fresh_item(completions=2, length=7)))
    after = httpx.get(f"{server.url}/v1/store").json()
    assert after["sequences"] - before["sequences"] == 2
    assert after["tokens"] - before["tokens"] == 14
    assert after["misses"] - before["misses"] == 2


def test_every_outcome_is_counted(ask, server):
    def counted(outcome):
        return server.metric(f'tvkd_requests_total{{outcome="{outcome}"}}')

    asked = {
        "ok": fresh_item(),
        "token-out-of-range": {"prompt_token_ids": [999], "completions": [[1]]},
        "invalid-request": {},
    }
    for item in asked.values():
        ask(item)
    before = {outcome: counted(outcome) for outcome in asked}
    for item in asked.values():
        ask(item)
    assert {outcome: counted(outcome) - before[outcome] for outcome in asked} == dict.fromkeys(asked, 1)


@pytest.mark.parametrize("path", ["/v1/nothing", "/nothing"])
def test_an_unknown_path_is_a_problem_too(server, path):
    refused(httpx.get(server.url + path), 404, "not-found")


def test_repeated_completions_count_towards_a_request_and_are_scored_once(server):
    repeated = {"prompt_token_ids": [9] * 50, "completions": [[10] * 100] * 3000}
    answer = httpx.post(f"{server.url}/v1/potentials", json={"items": [repeated], "cache": "skip"}, timeout=60)
    refused(answer, 413, "payload-too-large")
    ran = server.metric(TOKENS)
    repeated["completions"] = [[10] * 100] * 20
    answers = completions_of(httpx.post(f"{server.url}/v1/potentials", json={"items": [repeated], "cache": "skip"}))
    assert len(answers) == 20 and server.metric(TOKENS) == ran + 150


def test_a_large_body_of_mistakes_fails_at_the_first(server):
    wrong = {"prompt_token_ids": ["a"] * 100_000, "completions": [[1]] * 100_000}
    detail = refused(httpx.post(f"{server.url}/v1/potentials", json={"items": [wrong]}), 422, "invalid-request")
    assert "more" not in detail


def test_a_text_item_that_is_wrong_is_named(ask):
    good = {"prompt": "w20", "completions": [" w30"]}
    assert "items[1]" in refused(ask(good, {"prompt": "w20 " * 300, "completions": ["w9"]}), 422, "sequence-too-long")


@pytest.mark.parametrize("teacher_id", ["\ud800", "x" * 32, "0" * 31])
def test_what_is_no_teacher_id_is_refused(server, teacher_id):
    body = json.dumps({"items": [fresh_item()], "teacher_id": teacher_id})
    answer = httpx.post(f"{server.url}/v1/potentials", content=body, headers={"content-type": "application/json"})
    refused(answer, 422, "invalid-request")


def test_a_body_of_another_type_is_told_what_to_send(server):
    answer = httpx.post(f"{server.url}/v1/potentials", content=b"{}", headers={"content-type": "text/plain"})
    assert "application/json" in refused(answer, 422, "invalid-request")
