"""A chat template that is not the teacher's is said once where conversations are trained, and not where text is."""

import json
import shutil

import pytest
from runs import rows

from tvkd.cli import main as tvkd

SAID = "is not that of teacher tiny-llama"


@pytest.fixture
def other(student, tmp_path):
    """The student with another chat template."""
    shutil.copytree(student, tmp_path / "other")
    template = (tmp_path / "other" / "chat_template.jinja").read_text()
    (tmp_path / "other" / "chat_template.jinja").write_text(template.replace("<eos>\n", "<eos> "))
    return str(tmp_path / "other")


def conversations(path) -> str:
    chats = [
        {side: [{"role": "user" if side == "prompt" else "assistant", "content": text.strip()}]
         for side, text in row.items()}
        for row in rows(4)
    ]  # fmt: skip
    path.write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    return str(path)


@pytest.mark.parametrize("command", ["prefetch", "train"])
def test_another_template_is_said_where_conversations_are_trained(
    command, config, other, server, tmp_path, capsys, caplog
):
    def said(**settings) -> int:
        caplog.clear()
        path = config(teacher=server.url, quiet=True, max_steps=1, **settings)
        assert tvkd([command, "--config", path]) == 0
        return (capsys.readouterr().err + caplog.text).count(SAID)

    chats = conversations(tmp_path / "chats.jsonl")
    assert said(dataset_name=chats, model_name_or_path=other) == 1
    assert said(dataset_name=chats) == 0
    assert said(dataset_name=chats, model_name_or_path=other, teacher_tokenizer="server") == 0
    assert said(model_name_or_path=other) == 0
