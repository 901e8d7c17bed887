"""Text through the client: the tokens, ends and records of a real server, and no answer is trusted."""

import httpx
import numpy as np
import pytest

from arrow_answers import URL, changed
from running_server import start_server
from text_tokenizers import byte_level
from tvkd_client.batches import split, tokens_of
from tvkd_client.http import TeacherClient
from tvkd_shared import arrow_codec, json_codec
from tvkd_shared.errors import InvalidRequest, NotCached, WrongAnswer
from tvkd_shared.key import completion_keys
from tvkd_shared.text import tokenize
from tvkd_shared.wire import Message, RequestOptions, TextItem, TokenItem

ITEMS = [
    TextItem(prompt=[Message(role="user", content="the 😀?")], completions=["naïve 👍🏽", " the\n"]),
    TextItem(prompt="the\n", completions=["teacher e\u0301"], append_eos=True),
]


@pytest.fixture(scope="module")
def server(byte_teacher, tmp_path_factory):
    running = start_server(byte_teacher, tmp_path_factory.mktemp("bytes") / "values")
    yield running
    running.kill()


def test_text_comes_with_tokens_ends_and_the_records_of_those_tokens(server):
    client = TeacherClient(server.url)
    answers = client.text_potentials(ITEMS, temperatures=[0.5])
    for item, answered in zip(ITEMS, answers, strict=True):
        expected = tokenize(byte_level(), item)
        assert answered.prompt_tokens.tolist() == expected.prompt_token_ids
        assert [row.tokens.tolist() for row in answered.completions] == expected.completions
        assert [row.ends.tolist() for row in answered.completions] == expected.ends
        records = client.potentials([TokenItem(expected.prompt_token_ids, expected.completions)], temperatures=[0.5])
        for row, record in zip(answered.completions, records[0], strict=True):
            np.testing.assert_array_equal(row.record.numbers, record.numbers)


def test_tokens_alone_cost_the_teacher_nothing_and_are_the_same(server):
    client = TeacherClient(server.url, request_tokens=1)
    new = [TextItem(prompt="the\n", completions=["tokens alone"]), TextItem(prompt="the\n", completions=["日"])]
    before = server.metric("tvkd_computed_completions_total")
    tokens = client.tokenize(new)
    assert server.metric("tvkd_computed_completions_total") == before
    with pytest.raises(NotCached):
        client.text_potentials(new, cache="only")
    assert tokens == [tokenize(byte_level(), item) for item in new]
    keys = [row.key for item in client.text_potentials(new) for row in item.completions]
    teacher = client.teacher().id
    assert keys == [completion_keys(teacher, item.prompt_token_ids, item.completions)[0] for item in tokens]


def test_a_refusal_names_the_item_in_one_line(server):
    with pytest.raises(InvalidRequest, match=r"items\[1\].*completions\[0\]: a token spans the border"):
        TeacherClient(server.url).tokenize([ITEMS[0], TextItem(prompt="t", completions=["he"])])


WRONGS = {
    "another key": lambda _, rows, __: rows[0].update(key=b"0" * 16),
    "another token": lambda _, rows, __: rows[1]["tokens"].__setitem__(0, 9),
    "another prompt": lambda _, rows, __: rows[0]["prompt_tokens"].append(9),
    "a token too many": lambda _, rows, __: rows[2]["tokens"].append(9),
    "no tokens": lambda _, rows, __: rows[1].update(tokens=None),
    "no prompt": lambda _, rows, __: rows[2].update(prompt_tokens=None),
    "a prompt for each row": lambda _, rows, __: rows[1].update(prompt_tokens=rows[0]["prompt_tokens"]),
    "ends that fall": lambda _, rows, __: rows[0]["ends"].__setitem__(0, 99),
    "ends of a shorter text": lambda _, rows, __: rows[1].update(ends=[0] * len(rows[1]["ends"])),
    "an end too few": lambda _, rows, __: rows[1]["ends"].pop(),
    "no text columns": lambda _, rows, fields: fields.__setitem__(
        slice(None), [field for field in fields if field.name not in ("prompt_tokens", "tokens", "ends")]
    ),
}


@pytest.fixture(scope="module")
def stream(server):
    """A real answer to ITEMS."""
    body = json_codec.encode_request(RequestOptions(entropy=True), ITEMS)
    headers = {"content-type": json_codec.MEDIA_TYPE, "accept": arrow_codec.MEDIA_TYPE}
    return httpx.post(f"{server.url}/v1/potentials", content=body, headers=headers).content


@pytest.mark.parametrize("wrong", WRONGS)
def test_a_wrong_answer_about_text_raises(stream, wrong):
    def doctored(_):
        return httpx.Response(200, content=changed(stream, WRONGS[wrong]))

    with pytest.raises(WrongAnswer):
        TeacherClient(URL, transport=httpx.MockTransport(doctored)).text_potentials(ITEMS)


def test_text_is_split_by_what_it_may_weigh():
    item = TextItem(prompt="日" * 30, completions=["x" * 30, "y" * 60])
    assert tokens_of(item) == (2 * 90 + 90) // 3
    assert [len(part) for _, part in split([item] * 5, 180)] == [2, 2, 1]
