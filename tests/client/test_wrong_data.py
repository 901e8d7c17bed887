"""Data that are wrong or odd: a file is read as TRL reads it, or a command refuses it in one line that says why."""

import json
from types import SimpleNamespace
from typing import Any

import datasets
import pytest
import yaml
from preference_rows import message
from trl import DPOTrainer

from tvkd.cli import main as tvkd
from tvkd_client.dataset import load_preferences
from tvkd_client.preference_tokens import tokenize_preferences

PLAIN: dict[str, Any] = {"prompt": "w8 w9 ", "chosen": "w10 w11", "rejected": "w12"}
CHAT: dict[str, Any] = {
    "prompt": [message("user", "w8 w9")],
    "chosen": [message("assistant", "w10")],
    "rejected": [message("assistant", "w11")],
}
SAID = message("assistant", "w8")
FROM_GPT = {"from": "gpt", "value": "w8"}
AS_TRL = None
"""In place of a line: the file makes the tokens that TRL makes of it."""


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


CHANGED_TEXT: list[tuple[str, dict[str, Any], str | None]] = [
    ("prompt is null", {"prompt": None}, "row 0: prompt is None, not text"),
    ("prompt is a number", {"prompt": 7}, "row 0: prompt is 7, not text"),
    ("prompt is a truth value", {"prompt": True}, "row 0: prompt is True, not text"),
    ("prompt is empty", {"prompt": ""}, "row 0: prompt is empty"),
    ("prompt is blank", {"prompt": " \n"}, "row 0: prompt is empty"),
    ("prompt is a hard space", {"prompt": "\u00a0"}, "row 0: prompt is empty"),
    ("prompt is a list of texts", {"prompt": ["w8", "w9"]}, "row 0: prompt is ['w8', 'w9'], not text"),
    ("prompt is an object", {"prompt": {"text": "w8"}}, "row 0: prompt is {'text': 'w8'}, not text"),
    ("prompt is a date", {"prompt": "2024-01-01"}, "row 0: prompt is datetime"),
    ("prompt is one special token", {"prompt": "<bos>"}, "the prompt is '<bos>', special tokens only"),
    ("prompt is of unknown words", {"prompt": "żółć 漢字 "}, "special tokens only"),
    ("chosen is a list of texts", {"chosen": ["w8"]}, "row 0: chosen is ['w8'], not text"),
    ("chosen is no number", {"chosen": float("nan")}, "row 0: chosen is nan, not text"),
    ("chosen is one message", {"chosen": SAID}, "row 0: chosen is {'role'"),
    ("chosen is a chat as JSON", {"chosen": json.dumps([SAID])}, "row 0: chosen is a chat written as text"),
    ("chosen is a chat as Python", {"chosen": str([SAID])}, "row 0: chosen is a chat written as text"),
    ("chosen is a message as JSON", {"chosen": json.dumps(SAID)}, "row 0: chosen is a chat written as text"),
    ("chosen is ShareGPT's as JSON", {"chosen": json.dumps(FROM_GPT)}, "row 0: chosen is a chat written as text"),
    ("prompt is a chat as JSON", {"prompt": json.dumps([SAID])}, "row 0: prompt is a chat written as text"),
    ("rejected is a tab", {"rejected": "\t"}, "row 0: rejected is empty"),
    ("half a character", {"chosen": "w10 \ud800"}, "surrogate"),
    ("both begin with the prompt", {"chosen": "w8 w9 w10", "rejected": "w8 w9 w11"}, "would be read twice"),
    ("images that are null", {"images": None}, "has images"),
    ("tools that are no JSON", {"tools": "none"}, "row 0: no tokens: Expecting value"),
    ("one begins with the prompt", {"chosen": "w8 w9 w10"}, AS_TRL),
    ("an answer of JSON", {"chosen": '{"value": 3}'}, AS_TRL),
    ("both are the same", {"rejected": "w10 w11"}, AS_TRL),
    ("EOS inside", {"chosen": "w10 <eos> w11"}, AS_TRL),
    ("EOS alone", {"chosen": "<eos>"}, AS_TRL),
    ("a zero byte", {"chosen": "w10\u0000w11"}, AS_TRL),
    ("emoji and Arabic", {"chosen": "🙂", "rejected": "ﷺ"}, AS_TRL),
    ("a template's tags", {"chosen": "{% raise %} {{ 1/0 }}"}, AS_TRL),
    ("columns of tokens", {"prompt_ids": ["a"], "chosen_ids": "b", "rejected_ids": None}, AS_TRL),
    ("log-probs of its own", {"ref_chosen_logps": -1.0, "ref_rejected_logps": -2.0}, AS_TRL),
]
CHANGED_CHAT: list[tuple[str, dict[str, Any], str | None]] = [
    ("no message", {"prompt": []}, "row 0: prompt is empty"),
    ("chosen has no message", {"chosen": []}, "row 0: chosen is empty"),
    ("a message of nothing", {"chosen": [{}]}, "row 0: chosen is [{}], not text, or a list of messages"),
    ("a message is null", {"chosen": [None]}, "row 0: chosen is [None], not text"),
    ("a message is text", {"chosen": [SAID, "w9"]}, "row 0: chosen is [{'role'"),
    ("messages in a list in a list", {"chosen": [[SAID]]}, "row 0: chosen is [[{'role'"),
    ("no role", {"chosen": [{"content": "w8"}]}, "row 0: chosen is [{'content'"),
    ("a role is a number", {"chosen": [message(3, "w8")]}, "row 0: chosen is [{'role': 3"),
    ("no content", {"chosen": [{"role": "assistant"}]}, "row 0: chosen has a message whose content is None"),
    ("a content is a truth value", {"rejected": [message("assistant", False)]}, "whose content is False, not text"),
    ("a content is a list of texts", {"chosen": [message("assistant", ["w8"])]}, "content is ['w8'], not text"),
    ("a content is an object", {"chosen": [message("assistant", {"text": "w8"})]}, "content is {'text': 'w8'}"),
    ("a picture", {"prompt": [message("user", [{"type": "image", "image": "x.png"}])]}, "content is [{'type'"),
    ("no call of a tool", {"chosen": [{"role": "assistant", "tool_calls": []}]}, "whose content is None"),
    ("a call of a tool is text", {"chosen": [{"role": "assistant", "tool_calls": "x"}]}, "whose content is None"),
    ("ShareGPT", {"chosen": [FROM_GPT]}, "row 0: chosen is [{'from': 'gpt'"),
    ("completions are text", {"chosen": "w8", "rejected": "w9"}, "row 0: prompt is [{'role'"),
    ("prompt is text", {"prompt": "w8 w9"}, "write the prompt as messages too"),
    ("whole chats", {side: CHAT["prompt"] + CHAT[side] for side in ("chosen", "rejected")}, "would be read twice"),
    ("tools that are a number", {"tools": 5}, "row 0: no tokens: 'int' object is not iterable"),
    ("settings of the template", {"chat_template_kwargs": "x"}, "row 0: no tokens: 'str' object is not a mapping"),
    ("a role of its own", {"chosen": [message("critic", "w8")]}, AS_TRL),
    ("chosen ends with the user", {"chosen": [SAID, message("user", "w9")]}, AS_TRL),
    ("prompt ends with the assistant", {"prompt": [*CHAT["prompt"], SAID]}, AS_TRL),
    ("two answers on end", {"chosen": [SAID, SAID]}, AS_TRL),
    ("keys beside", {"chosen": [SAID | {"name": "n", "weight": 0}]}, AS_TRL),
]
FILES: list[tuple[str, str | bytes, str | None]] = [
    ("null later.jsonl", lines(PLAIN, PLAIN | {"chosen": None}), "row 1: chosen is None, not text"),
    ("column later.jsonl", lines(PLAIN, {"prompt": "w8"}), "row 1: chosen is None, not text"),
    ("text, then chat.jsonl", lines(PLAIN, CHAT), "row 1: prompt is [{'role'"),
    ("chat, then text.jsonl", lines(CHAT, PLAIN), "row 1: prompt is 'w8 w9 ', not messages"),
    ("number later.jsonl", lines(PLAIN, PLAIN | {"prompt": 5}), "row 1: prompt is 5, not text"),
    ("empty.jsonl", "", "cannot be read: it has no rows"),
    ("blank.jsonl", "\n\n", "cannot be read: it has no rows"),
    ("torn.jsonl", lines(PLAIN) + '{"prompt": "w8", "cho', "cannot be read: JSON parse error"),
    ("commas.jsonl", json.dumps(PLAIN) + ",\n" + json.dumps(PLAIN), "cannot be read: JSON parse error"),
    ("twice.jsonl", '{"prompt": "w8", "chosen": "w9", "chosen": "w10", "rejected": "w11"}', "specified twice"),
    ("page.jsonl", "<html>", "cannot be read: JSON parse error"),
    ("nested.json", json.dumps({"data": [PLAIN, PLAIN]}), "has columns data; needed are chosen, rejected"),
    ("labels.jsonl", lines({"prompt": "w8", "completion": "w9", "label": True}), "needed are chosen, rejected"),
    ("capitals.jsonl", lines({"Prompt": "w8", "Chosen": "w9", "Rejected": "w10"}), "needed are chosen, rejected"),
    ("lists.jsonl", lines({"instruction": "w8", "output": ["w9", "w10"]}), "needed are chosen, rejected"),
    ("latin.jsonl", lines(PLAIN).replace("w11", "é").encode("latin-1"), "row 0: its text is not UTF-8"),
    (
        "latin later.jsonl",
        (lines(PLAIN) + lines(PLAIN).replace("w11", "é")).encode("latin-1"),
        "row 1: its text is not",
    ),
    ("wide.jsonl", json.dumps(PLAIN).encode("utf-16"), "cannot be read: JSON parse error"),
    ("header.csv", "prompt,chosen,rejected\n", "cannot be read: it has no rows"),
    ("hole.csv", "prompt,chosen,rejected\nw8,w9,\n", "row 0: rejected is None, not text"),
    ("short.csv", "prompt,chosen,rejected\nw8 ,w9\n", "row 0: rejected is None, not text"),
    ("numbers.csv", "prompt,chosen,rejected\n1,2,3\n", "row 0: chosen is 2, not text"),
    ("not there.csv", "prompt,chosen,rejected\nw8 ,NA,w10\n", "row 0: chosen is None, not text"),
    ("shifted.csv", "prompt,chosen,rejected\nw8, w9,w10,w11\n", "columns are shifted"),
    ("longer.csv", "prompt,chosen,rejected\nw8,w9,w10\nw8,w9,w10,w11\n", "Expected 3 fields in line 3, saw 4"),
    ("open quote.csv", 'prompt,chosen,rejected\n"w8,w9,w10\n', "EOF inside string"),
    ("semicolons.csv", "prompt;chosen;rejected\nw8;w9;w10\n", "has columns prompt;chosen;rejected"),
    ("not.parquet", "PAR0", "cannot be read: Parquet file size is 4 bytes"),
    ("array.json", json.dumps([PLAIN, PLAIN]), AS_TRL),
    ("mark.jsonl", "\ufeff" + lines(PLAIN), AS_TRL),
    ("windows.jsonl", lines(PLAIN).replace("\n", "\r\n"), AS_TRL),
    ("spaces.csv", "prompt,chosen,rejected\nw8 ,w9,w10\n", AS_TRL),
]
CASES = [(f"{name}.jsonl", lines(PLAIN | changed), line) for name, changed, line in CHANGED_TEXT]
CASES += [(f"{name} (chat).jsonl", lines(CHAT | changed), line) for name, changed, line in CHANGED_CHAT]
CASES += FILES


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def written(tmp_path):
    def write(name: str, content: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
        return str(path)

    return write


def token_ids(rows) -> list[tuple[list[int], ...]]:
    return [tuple(row[column] for column in ("prompt_ids", "chosen_ids", "rejected_ids")) for row in rows]


def as_trl(path: str, tokenizer) -> list[tuple[list[int], ...]]:
    """The tokens that TRL's trainer makes of the file, with no code of ours."""
    kind = {"jsonl": "json"}.get(suffix := path.rpartition(".")[2], suffix)
    rows = datasets.load_dataset(kind, data_files=path, split="train")
    args = SimpleNamespace(dataset_num_proc=None, max_length=None, truncation_mode="keep_start")
    return token_ids(DPOTrainer._prepare_dataset(SimpleNamespace(_tokenizer=tokenizer), rows, tokenizer, args, "x"))


REFUSED = {name: (content, line) for name, content, line in CASES if line is not AS_TRL}
TAKEN = {name: content for name, content, line in CASES if line is AS_TRL}


@pytest.mark.parametrize("name", TAKEN)
def test_a_file_is_read_as_trl_reads_it(name, written, tokenizer):
    path = written(name, TAKEN[name])
    assert token_ids(tokenize_preferences(load_preferences(path), tokenizer)) == as_trl(path, tokenizer)


@pytest.fixture
def command(server, student, tmp_path):
    """Gives the words of a command that reads the file at a path."""

    def of(name: str, path: str) -> list[str]:
        if name == "prefetch":
            return ["prefetch", "--server", server.url, "--dataset", path, "--tokenizer", str(student), "--quiet"]
        settings = {
            "model_name_or_path": str(student), "output_dir": str(tmp_path / "out"), "teacher": server.url,
            "max_steps": 1, "use_cpu": True, "bf16": False, "report_to": "none", "quiet": True, "disable_tqdm": True,
        }  # fmt: skip
        settings |= {"datasets": [{"path": path}]} if name == "train on a mixture" else {"dataset_name": path}
        (tmp_path / "tvkd.yaml").write_text(yaml.safe_dump(settings))
        return ["train", "--config", str(tmp_path / "tvkd.yaml")]

    return of


OF_A_MIXTURE = ("latin later.jsonl", "shifted.csv", "empty.jsonl", "both begin with the prompt.jsonl",
                "a call of a tool is text (chat).jsonl", "prompt is one special token.jsonl")  # fmt: skip


@pytest.mark.parametrize(
    ("verb", "name"),
    [(verb, name) for verb in ("prefetch", "train") for name in REFUSED]
    + [("train on a mixture", name) for name in OF_A_MIXTURE],
)
def test_a_command_says_in_one_line_what_is_wrong_and_ends_with_2(verb, name, command, written, capsys):
    content, line = REFUSED[name]
    assert tvkd(command(verb, written(name, content))) == 2
    progress = ("examples/s]", "it/s]")
    said = [text for text in capsys.readouterr().err.splitlines() if text and not text.endswith(progress)]
    assert len(said) == 1 and line in said[0], said


@pytest.mark.parametrize("verb", ["prefetch", "train", "train on a mixture"])
def test_a_command_takes_what_trl_takes(verb, command, written):
    name = "a role of its own (chat).jsonl"
    assert tvkd(command(verb, written(name, TAKEN[name]))) == 0
