"""All three roles of one run: from servers, filled first or from a store; by a training's file or in Python."""

import json
import re
import textwrap
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from runs import assert_same_run, rows, train
from safetensors.torch import load_file

from running_server import start_server
from tvkd.cli import main as tvkd
from tvkd_shared.errors import InvalidRequest, NotCached

PAGE = Path(__file__).parents[2] / "docs" / "objectives.md"
NAMES = {"teacher": "teacher-dpo", "teacher_reference": "teacher-sft", "reference": "student"}
"""What the page calls the models."""


@pytest.fixture(scope="module")
def servers(tiny_teacher, started, student, tmp_path_factory):
    """A server of each role, which all fill one store."""
    values = tmp_path_factory.mktemp("roles") / "values"
    folders = zip((tiny_teacher, started, student), NAMES.values(), strict=True)
    running = [start_server(folder, values, "--name", name) for folder, name in folders]
    yield dict(zip(NAMES, running, strict=True))
    for server in running:
        server.kill()


def places(servers) -> dict[str, dict]:
    """The settings of each kind of source."""
    urls = {role: server.url for role, server in servers.items()}
    store = {role: str(server.store_path) for role, server in servers.items()}
    return {
        "server": urls,
        "bulk": urls | {"bulk": True},
        "store": store | {f"{role}_id": name for role, name in NAMES.items()},
    }


@pytest.mark.parametrize(
    ("settings", "first"),
    [
        ({"objective": "token", "center": True, "dpo_weight": 0.5}, "server"),
        ({"objective": "soft-label", "strength": 0.3}, "bulk"),
    ],
)
def test_three_roles_from_every_kind_of_source_give_the_same_run(make_trainer, servers, roles, settings, first):
    settings = settings | {"max_length": 10, "train_dataset": Dataset.from_list(rows(6, seed=len(first)))}
    kinds = places(servers)
    with pytest.raises(NotCached):
        make_trainer(**settings, **kinds["store"])
    runs = [train(make_trainer(**settings, **kinds[kind])) for kind in sorted(kinds, key=lambda kind: kind != first)]
    for run in runs[1:]:
        assert_same_run(runs[0], run)
    losses, _ = train(make_trainer(**settings, sources=roles))
    assert losses == pytest.approx(runs[0][0], abs=1e-4)


def test_the_page_s_file_and_its_python_are_the_same_run(make_trainer, servers, student, tmp_path, monkeypatch):
    """Both blocks as docs/objectives.md has them, with nothing else set."""
    text = PAGE.read_text(encoding="utf-8")
    of_file = yaml.safe_load(textwrap.dedent(re.search(r"(?m)^(    objective: token\n(?:    .+\n)+)", text)[1]))
    of_python = re.search(r"```python\n(.*?)```", text, re.DOTALL)[1]
    pairs = rows(32, seed=9)
    data = Dataset.from_list(pairs)
    make_trainer(objective="token", train_dataset=data, **places(servers)["bulk"])  # fills the store

    monkeypatch.chdir(tmp_path)
    Path("student").symlink_to(student)
    Path("values").symlink_to(servers["teacher"].store_path)
    Path("pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    exec(of_python, {"pairs": data})
    of_file |= {"model_name_or_path": "student", "dataset_name": "pairs.jsonl", "output_dir": "of-file"}
    Path("tvkd.yaml").write_text(yaml.safe_dump(of_file))
    assert tvkd(["train", "--config", "tvkd.yaml"]) == 0

    weights, logs = [], []
    for output in ("out", "of-file"):
        (checkpoint,) = Path(output).glob("checkpoint-*")
        weights.append(load_file(checkpoint / "model.safetensors"))
        history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
        logs.append([{name: log[name] for name in log if not name.endswith("_waited")} for log in history])
    before = load_file(student / "model.safetensors")
    assert logs[0] == logs[1] and "token/error" in logs[0][0]
    assert all((weights[0][name] == weights[1][name]).all() for name in before)
    assert any((weights[0][name] != before[name]).any() for name in before)


def test_roles_that_do_not_go_together_are_refused(make_trainer, roles):
    with pytest.raises(InvalidRequest, match=r"teacher and teacher_reference are one model"):
        make_trainer(objective="token", sources=roles | {"teacher_reference": roles["teacher"]})
    with pytest.raises(InvalidRequest, match=r"center needs A .* neither teacher_reference nor reference is set"):
        make_trainer(objective="token", center=True, sources={"teacher": roles["teacher"]})
    with pytest.raises(InvalidRequest, match=r"potential implicit .* neither"):
        make_trainer(alpha=0.7, potential="implicit", sources={"teacher": roles["teacher"]})
    with pytest.raises(InvalidRequest, match="no teacher is set"):
        make_trainer(objective="token", sources={"reference": roles["reference"]})
    with pytest.raises(InvalidRequest, match="sources name student"):
        make_trainer(alpha=0.0, sources={"student": roles["teacher"]})
