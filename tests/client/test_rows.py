"""What people's preference data look like: each row is read as TRL reads it, or one line says what is wrong with it."""

import json

import pytest
from datasets import Dataset, IterableDataset
from preference_rows import conversational, message, plain
from trl.data_utils import extract_prompt

from tvkd_client.dataset import Columns
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.rows import gate
from tvkd_client.token_rows import spelled
from tvkd_shared.errors import InvalidRequest

CALL = {"type": "function", "function": {"name": "w9", "arguments": "{}"}}
TOOLS = json.dumps([{"type": "function", "function": {"name": "w9", "parameters": {}}}])
ASKED = [message("user", "w8 w9")]
CHAT = conversational(1)[0]
WHOLE = {side: CHAT["prompt"] + CHAT[side] for side in ("chosen", "rejected")}


def refusal(*rows, columns=None, tokenizer=None) -> str:
    with pytest.raises(InvalidRequest) as caught:
        dataset = (columns or Columns()).of(Dataset.from_list([*rows]), "x")
        if tokenizer:
            tokenize_preferences(dataset, tokenizer, "x")
    line = str(caught.value)
    assert "\n" not in line
    return line


@pytest.mark.parametrize(
    "column",
    ["question", "instruction", "input", "query", "system", "Prompt", "user_input", "prompt.text", "messages", "post",
     "text", "history", "dialogue", "chat", "request", "document", "article", "context", "conversations", "title",
     "userMessage", "question_1", "source_text", "问题"],
)  # fmt: skip
def test_a_prompt_under_another_name_is_taken_only_when_it_is_named(column):
    row = {column: "0+1?", "chosen": "It is 1.", "rejected": "It is 0."}
    assert f"{column} looks like it: --prompt-column {column}" in refusal(row)
    assert f"{column} looks like it" in refusal(row | {column: None}, row), "only row 0 lacks it"
    taken = Columns(column).of(Dataset.from_list([row]), "x")
    assert taken.to_list() == [{"prompt": "0+1?", "chosen": "It is 1.", "rejected": "It is 0."}]


@pytest.mark.parametrize(
    "cell",
    [{"id": 7, "full_text": "0+1?"}, ["0+1?"], [{"from": "human", "value": "0+1?"}], [message("user", "0+1?")]],
    ids=["object", "texts", "ShareGPT", "messages"],
)
def test_a_column_with_text_inside_may_be_the_prompt_too(cell):
    row = {"info": cell, "system": "Add.", "chosen": "It is 1.", "rejected": "It is 0."}
    assert "no column prompt, and info, system look like it: --prompt-column COLUMN takes it" in refusal(row)


def test_columns_that_say_something_of_a_pair_are_no_prompt():
    """Names and types of such columns in data sets that people share."""
    texts = (
        "id", "prompt_id", "postId", "source", "dataset", "subset", "domain", "url", "category", "prompt_category",
        "type", "question_type", "lang", "language", "chosen_model", "model2", "rejected_response", "original_chosen",
        "output", "reference_answer", "score", "chosen-rating", "preference", "rationale", "annotator", "timestamp",
        "metadata", "tags",
    )  # fmt: skip
    others = {"turns": 3, "context_length": 7, "question": None, "margin": 0.5, "labels": ["w8"], "meta": {"a": "w9"}}
    row = dict.fromkeys(texts, "w8") | others | {"chosen": "It is 1.", "rejected": "It is 0."}
    (taken,) = Columns().of(Dataset.from_list([row]), "x")
    assert taken["prompt"] == "It is"


def test_every_column_may_have_another_name():
    row = {"q": "0+1?", "rejected": "It is 1.", "chosen": "Maybe 0", "prompt": "unused", "prompt_id": "7"}
    (taken,) = Columns("q", "rejected", "chosen").of(Dataset.from_list([row]), "x")
    assert taken == {"prompt": "0+1?", "chosen": "It is 1.", "rejected": "Maybe 0", "prompt_id": "7"}
    assert "has no column question; it has q, rejected" in refusal(row, columns=Columns("question"))


@pytest.mark.parametrize(
    ("row", "line"),
    [
        ({"chosen": "Yes", "rejected": "Yes sir"}, "row 0: what chosen and rejected share, 'Ye', ends inside a word"),
        ({"chosen": "It is 1.", "rejected": "Maybe 0"}, "share no beginning, and there is no prompt"),
        ({"chosen": [message("assistant", "w8")], "rejected": [message("assistant", "w9")]}, "share no message but"),
        (
            {side: [message("system", "w8"), message("user", side)] for side in ("chosen", "rejected")},
            "share no message but the system's",
        ),
    ],
)
def test_a_prompt_that_is_not_there_is_not_made_up(row, line):
    assert line in refusal(row)


def test_a_shared_beginning_is_the_prompt_when_the_user_says_so():
    row = {"prompt": "unused", "chosen": "Q: w8 A: Yes", "rejected": "Q: w8 A: Yet"}
    (taken,) = Columns("none").of(Dataset.from_list([row]), "x")
    assert taken == extract_prompt({"chosen": row["chosen"], "rejected": row["rejected"]})


def test_a_prompt_of_special_tokens_only_is_refused(tokenizer):
    assert "the prompt is '<bos>', special tokens only" in refusal(
        plain(1)[0] | {"prompt": "<bos>"}, tokenizer=tokenizer
    )


def test_the_first_pair_is_shown_as_the_model_reads_it(tokenizer):
    row = {"prompt": "w8 ", "chosen": "w9 " * 100, "rejected": "w10"}
    prompt, chosen, rejected = spelled(tokenize_preferences(Dataset.from_list([row]), tokenizer)[0], tokenizer).split(
        "\n"
    )
    assert "'w8'" in prompt and "'w10 <eos>'" in rejected
    assert "w9 w9 … w9" in chosen.replace("  ", " ") and len(chosen) < 200


@pytest.mark.parametrize("extra", [{}, {"messages": WHOLE["chosen"]}, {"question": "other"}])
def test_a_text_prompt_beside_whole_chats_that_begin_with_it_is_read_once(extra, tokenizer):
    row = {"prompt": CHAT["prompt"][0]["content"]} | WHOLE | extra
    taken = tokenize_preferences(Dataset.from_list([row]), tokenizer)[0]
    expected = tokenize_preferences(Dataset.from_list([CHAT]), tokenizer)[0]
    assert all(taken[name] == expected[name] for name in ("prompt_ids", "chosen_ids", "rejected_ids"))


@pytest.mark.parametrize("column", ["messages", "completion"])
def test_a_column_that_trl_would_take_for_the_kind_of_the_rows_is_left_out(column):
    row = plain(1)[0] | {column: CHAT["prompt"], "id": 7}
    assert gate(Dataset.from_list([row]), "x").column_names == ["prompt", "chosen", "rejected", "id"]


def test_a_call_of_a_tool_needs_no_content(tokenizer):
    called = [{"role": "assistant", "tool_calls": [CALL]}]
    row = {"prompt": ASKED, "chosen": called, "rejected": [message("assistant", "w9")], "tools": TOOLS}
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "message['content']", "(message['content'] or message['tool_calls'][0]['function']['name'])"
    )
    tokens = tokenize_preferences(Dataset.from_list([row]), tokenizer)[0]
    assert tokens["chosen_ids"] == tokens["rejected_ids"] == [9, 2, 7]


@pytest.mark.parametrize(
    "content", [None, [{"type": "text", "text": "w9"}]], ids=["a call of a tool without content", "parts"]
)
def test_a_template_that_writes_a_content_as_python_does_is_refused(content, tokenizer):
    said = {"role": "assistant", "content": content} | ({} if content else {"tool_calls": [CALL]})
    row = {"prompt": ASKED, "chosen": [said], "rejected": [message("assistant", "w9")]}
    assert f"row 0: the chat template writes the content {content!r} as Python does" in refusal(
        row, tokenizer=tokenizer
    )


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (CHAT | {"prompt": None}, "prompt is None, not messages"),
        (CHAT | {"rejected": [message("assistant", None)]}, "rejected has a message whose content is None, not text"),
        (CHAT | {"prompt": [message("user", None)]}, "prompt has a message whose content is None"),
        (CHAT | {"rejected": [message("assistant", 4)]}, "rejected has a message whose content is 4"),
        (CHAT | {"rejected": [message("assistant", [{"type": "image"}])]}, "content is [{'type': 'image'"),
        (CHAT | {"chosen": [message("assistant", "")]}, "chosen is empty"),
        (CHAT | {"prompt": [message("user", " ")]}, "prompt is empty"),
        (CHAT | {"chosen": []}, "chosen is empty"),
        (CHAT | {"chosen": [{"from": "gpt", "value": "w8"}]}, "chosen is [{'from'"),
        (CHAT | {"rejected": [{"from": "gpt", "value": "w8"}]}, "rejected is [{'from'"),
        (CHAT | {"rejected": "w8"}, "rejected is 'w8', not messages"),
        (CHAT | {"chosen": "w8"}, "prompt is [{'role'"),
        (CHAT | {"prompt": "w8 w9"}, "the messages of chosen do not begin with it; write the prompt as messages too"),
        ({"prompt": "w7"} | WHOLE, "prompt is text, and the messages of chosen do not begin with it"),
        (CHAT | WHOLE, "begins with the prompt, which would be read twice: --prompt-column none"),
        (plain(1)[0] | {"prompt": 1}, "prompt is 1, not text"),
        (plain(1)[0] | {"chosen": 1}, "chosen is 1, not text, or a list of messages"),
        (plain(1)[0] | {"chosen": " \n"}, "chosen is empty"),
        (plain(1)[0] | {"rejected": str(CHAT["chosen"])}, "rejected is a chat written as text"),
        (plain(1)[0] | {"rejected": json.dumps(CHAT["chosen"])}, "rejected is a chat written as text"),
        (plain(1)[0] | {"rejected": CHAT["chosen"][0]}, "rejected is {'role'"),
    ],
)
def test_a_wrong_row_is_named(row, line):
    said = refusal(row)
    assert line in said and said.startswith("data set x, row 0: ")


def test_a_row_that_the_template_refuses_is_found_among_many(tokenizer):
    tokenizer.chat_template = "{% if messages[0]['content'] == 'w0' %}{{ raise_exception('no') }}{% endif %}w1 " + (
        "{% for message in messages %}{{ message['content'] }} {% endfor %}"
    )
    rows = conversational(9)
    rows[5]["prompt"][0]["content"] = rows[7]["prompt"][0]["content"] = "w0"
    assert "data set x, row 5: the tokenizer's chat template refuses" in refusal(*rows, tokenizer=tokenizer)


def test_tools_that_are_no_json_are_said(tokenizer):
    assert "row 0: no tokens: " in refusal(CHAT | {"tools": "w9("}, tokenizer=tokenizer)


def test_rows_that_stream_are_checked_as_they_come():
    rows = [*plain(2), plain(1)[0] | {"chosen": ""}]
    passed = iter(gate(IterableDataset.from_generator(lambda: iter(rows)), "x"))
    assert [next(passed), next(passed)] == rows[:2]
    with pytest.raises(InvalidRequest, match="row 2: chosen is empty"):
        next(passed)
    asked = [{"post": "0+1?", "chosen": "It is 1.", "rejected": "It is 0."}]
    with pytest.raises(InvalidRequest, match="post looks like it"):
        gate(IterableDataset.from_generator(lambda: iter(asked)), "x")
