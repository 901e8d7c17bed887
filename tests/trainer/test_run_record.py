"""A run says what it is, in its folder, its checkpoints and its card; another run does not go on with it unawares."""

import json

import pytest
from datasets import Dataset
from runs import rows

from tvkd.cli import main as tvkd
from tvkd_client.run_record import without_credentials
from tvkd_shared.errors import InvalidRequest

SAVING = {"save_strategy": "steps", "save_steps": 2, "max_steps": 4}


class Renamed:
    """The same values, said to be another model's."""

    teacher_id = "another-teacher"

    def __init__(self, source) -> None:
        self.fetch = source.fetch


def read(folder) -> dict:
    return json.loads((folder / "tvkd.json").read_text())


def test_a_run_says_what_it_is(make_trainer, source, tmp_path):
    trainer = make_trainer(
        train_dataset=Dataset.from_list([*rows(6), {"prompt": "w8 " * 90, "chosen": "w9", "rejected": "w10"}]),
        eval_dataset=Dataset.from_list(rows(3, seed=1)), max_length=60, alpha=0.5, terminal="zero", source=source,
        **SAVING,
    )  # fmt: skip
    trainer.train()
    said = read(tmp_path / "out")
    assert said == read(tmp_path / "out" / "checkpoint-4")
    assert said["objective"]["objective"] == "tvkd"
    assert (said["objective"]["alpha"], said["objective"]["terminal"], said["objective"]["beta"]) == (0.5, "zero", 0.1)
    assert said["models"]["teacher"]["id"] == "the-tiny-teacher"
    assert said["data"]["train"] == {"rows": 7, "pairs": 6, "dropped": 1}
    assert said["data"]["eval"] == {"rows": 3, "pairs": 3, "dropped": 0}
    assert {"tvkd", "trl", "torch"} <= said["versions"].keys()
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| objective | objective tvkd, alpha 0.5" in card and "| train | rows 7, pairs 6, dropped 1 |" in card
    assert "| teacher | the-tiny-teacher |" in card


@pytest.mark.parametrize(
    ("changed", "line"),
    [
        ({"alpha": 0.5}, "alpha 0.7, not 0.5"),
        ({"recipe": "tpkd-ref", "alpha": 1, "gamma": 0.9}, "gamma 1.0, not 0.9; form difference, not tpkd-ref"),
        ({"potential": "entropy", "beta": 0.2}, "potential soft-value, not entropy; beta 0.1, not 0.2"),
        ({"objective": "token"}, "objective tvkd, not token: set"),
        ({"teacher": "another"}, "teacher the-tiny-teacher, not another-teacher"),
    ],
)
def test_a_changed_run_does_not_go_on_unless_it_is_accepted(make_trainer, source, tmp_path, changed, line):
    def make(**settings):
        values = Renamed(source) if settings.pop("teacher", None) else source
        return make_trainer(**{"alpha": 0.7, "source": values, **SAVING, **settings})

    make().train()
    checkpoint = tmp_path / "out" / "checkpoint-2"
    with pytest.raises(InvalidRequest, match=line):
        make(**changed).train(resume_from_checkpoint=str(checkpoint))
    with pytest.raises(InvalidRequest, match=line):  # and before the model is loaded, where the settings say it
        make(**changed, resume_from_checkpoint=str(checkpoint))
    assert "earlier" not in read(tmp_path / "out")
    make(**changed, accept_changed=True).train(resume_from_checkpoint=str(checkpoint))
    (earlier,) = read(tmp_path / "out")["earlier"]
    assert (earlier["up_to_step"], earlier["objective"]["alpha"]) == (2, 0.7)
    assert read(tmp_path / "out" / "checkpoint-4")["earlier"] == [earlier]


def test_what_the_objective_does_not_read_may_change(make_trainer, source, tmp_path):
    make_trainer(alpha=0.0, gamma=0.9, **SAVING).train()
    make_trainer(alpha=0.0, gamma=0.8, **SAVING).train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"))


def test_a_server_is_named_and_the_command_resumes_in_one_line(config, server, tmp_path, capsys):
    path = config(teacher=server.url, save_strategy="steps", save_steps=2, quiet=True)
    assert tvkd(["train", "--config", path]) == 0
    teacher = read(tmp_path / "out")["models"]["teacher"]
    assert (teacher["name"], teacher["engine"], teacher["place"]) == ("tiny-llama", "transformers", server.url)
    assert f"| teacher | tiny-llama, {teacher['id']}, float32" in (tmp_path / "out" / "README.md").read_text()
    resumed = ["train", "--config", path, "--resume_from_checkpoint", "true", "--gamma", "0.5"]
    capsys.readouterr()
    assert tvkd(resumed) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("tvkd train: ")]
    assert len(said) == 1 and "gamma 0.9, not 0.5" in said[0] and "accept_changed" in said[0]
    assert tvkd([*resumed, "--accept-changed"]) == 0


@pytest.mark.parametrize(
    ("place", "written"),
    [
        ("https://me:secret@host:8077/teacher?token=secret#secret", "https://host:8077/teacher"),
        ("s3://bucket/values", "s3://bucket/values"),
        ("/data/values", "/data/values"),
    ],
)
def test_no_credential_of_a_place_is_written(place, written):
    assert without_credentials(place) == written
