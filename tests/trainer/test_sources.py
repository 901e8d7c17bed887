"""Server, bulk and store give the same run, to the bit."""

import re
import shutil
from contextlib import closing
from pathlib import Path
from typing import get_args

import pytest
from datasets import Dataset
from runs import assert_same_run, rows, train

from tvkd_client import ServerSource, TeacherClient
from tvkd_client.preference_tokens import NO_TOKENIZER
from tvkd_client.training_settings import Role
from tvkd_shared.errors import InvalidRequest, NotCached, SequenceTooLong, TeacherMismatch
from tvkd_shared.store import open_store

READING = {"alpha": 0.7, "gamma": 0.9, "temperature": 2.0, "terminal": "zero"}


def sources(server) -> dict[str, dict]:
    return {
        "server": {"teacher": server.url},
        "bulk": {"teacher": server.url, "bulk": True},
        "store": {"teacher": str(server.store_path)},
    }


def whole(tokens) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and completions of a trainer's rows."""
    columns = tokens[:]
    return columns["prompt_ids"] * 2, columns["chosen_ids"] + columns["rejected_ids"]


def test_every_source_gives_the_same_losses_and_weights(make_trainer, server, source):
    runs = [train(make_trainer(**READING, **settings)) for settings in sources(server).values()]
    for run in runs[1:]:
        assert_same_run(runs[0], run)
    losses, _ = train(make_trainer(**READING, source=source))
    assert losses == pytest.approx(runs[0][0], abs=1e-4)


@pytest.mark.parametrize("kind", ["server", "store"])
def test_dataloader_workers_change_nothing(make_trainer, server, kind):
    settings = READING | sources(server)[kind] | {"max_steps": 2}
    ServerSource(server.url, (1.0, 2.0)).fetch(*whole(make_trainer(alpha=0.0).train_dataset))
    here, there = (train(make_trainer(**settings, dataloader_num_workers=workers)) for workers in (0, 2))
    assert_same_run(here, there)


def test_bulk_leaves_nothing_to_compute(make_trainer, server):
    data, held_out = (Dataset.from_list(rows(6, seed=seed)) for seed in (71, 72))
    client = TeacherClient(server.url)
    before = client.store().misses
    trainer = make_trainer(**READING, **sources(server)["bulk"], train_dataset=data, eval_dataset=held_out)
    filled = client.store().misses
    train(trainer)
    trainer.evaluate()
    assert filled - before == 2 * (6 + 6)
    assert client.store().misses == filled


def test_a_pair_that_a_fill_s_model_cannot_read_is_said_with_its_role(make_trainer, server):
    long = Dataset.from_list([{"prompt": "w8", "chosen": " w9" * 300, "rejected": " w10"}])
    with pytest.raises(SequenceTooLong, match=r"^teacher: "):
        make_trainer(**READING, **sources(server)["bulk"], train_dataset=long)


def test_the_fill_shows_how_far_it_is(make_trainer, server, capfd):
    data = Dataset.from_list(rows(5, seed=74))
    make_trainer(**READING, **sources(server)["bulk"], train_dataset=data, disable_tqdm=False)
    assert re.search(r"Filling the value store: 100%.* 5/5", capfd.readouterr().err)
    make_trainer(**READING, **sources(server)["bulk"], train_dataset=data)
    assert "Filling" not in capfd.readouterr().err


def test_what_a_store_lacks_is_said_before_the_first_step(make_trainer, server):
    stored, held_out = (Dataset.from_list(rows(4, seed=seed)) for seed in (73, 75))
    ServerSource(server.url, (1.0, 2.0)).fetch(*whole(make_trainer(alpha=0.0, train_dataset=stored).train_dataset))
    settings = READING | sources(server)["store"]
    make_trainer(**settings, train_dataset=stored)
    with pytest.raises(
        NotCached, match=r"teacher: .*train: 0 of 8, eval: 8 of 8 missing\); run .*, where teacher_model"
    ):
        make_trainer(**settings, train_dataset=stored, eval_dataset=held_out)
    with pytest.raises(NotCached, match=r"train: 8 of 8, a: 0 of 8, b: 8 of 8"):
        make_trainer(**settings, train_dataset=held_out, eval_dataset={"a": stored, "b": held_out})
    # Another temperature is another column, which the store lacks.
    with pytest.raises(NotCached, match="train: 8 of 8"):
        make_trainer(**settings | {"temperature": 3.0}, train_dataset=stored)


@pytest.mark.parametrize("role", get_args(Role))
def test_one_completion_that_a_role_s_store_lacks_is_said_with_role_and_split(make_trainer, server, source, role):
    data, held_out = (Dataset.from_list(rows(4, seed=seed)) for seed in (76, 77))
    data_sets = {"train_dataset": data, "eval_dataset": held_out}
    trainer = make_trainer(alpha=0.0, **data_sets)
    prompts, completions = whole(trainer.eval_dataset)
    ServerSource(server.url).fetch(*whole(trainer.train_dataset))
    ServerSource(server.url).fetch(prompts[1:], completions[1:])
    others = {} if role == "teacher" else {"source": source}
    with pytest.raises(NotCached, match=rf"^{role}: store .* \(train: 0 of 8, eval: 1 of 8 missing\)"):
        make_trainer(objective="token", **data_sets, **{role: str(server.store_path)}, **others)


@pytest.mark.parametrize("role", get_args(Role))
@pytest.mark.parametrize("kind", ["server", "store", "source"])
@pytest.mark.parametrize("named", ["0" * 32, "another-name"])
def test_another_model_than_a_role_s_id_names_is_refused(make_trainer, server, source, kind, role, named):
    """Also where the vocabulary, and with it the model, is not looked at."""
    place = {"server": {role: server.url}, "store": {role: str(server.store_path)}, "source": {}}[kind]
    given = {name: source for name in {"teacher", role} if kind == "source" or name != role}
    with pytest.raises(TeacherMismatch, match=rf"^{role}: "):
        make_trainer(objective="token", other_vocabulary=True, sources=given, **place, **{f"{role}_id": named})


@pytest.mark.parametrize("role", get_args(Role))
def test_a_model_without_a_tokenizer_is_said(make_trainer, server, source, tmp_path, caplog, role):
    model = TeacherClient(server.url).teacher().model_copy(update={"tokenizer_digest": None})
    with closing(open_store(tmp_path / "values")) as store:
        store.add_teacher(model.id, model.model_dump(mode="json"))
    others = {} if role == "teacher" else {"source": source}
    with pytest.raises(NotCached, match="16 of 16"):
        make_trainer(objective="token", **{role: str(tmp_path / "values")}, **others)
    assert [record.message for record in caplog.records if record.message.startswith(f"{role}: {NO_TOKENIZER}")]


@pytest.fixture
def with_vocabulary(student, tmp_path):
    """The student's folder with a changed tokenizer, by a function that changes the text of tokenizer.json."""

    def copied(change):
        other = Path(tmp_path) / "student"
        shutil.copytree(student, other)
        (other / "tokenizer.json").write_text(change((other / "tokenizer.json").read_text()))
        return other

    return copied


def test_a_token_that_the_data_do_not_use_is_compared_with_the_server_s(make_trainer, server, with_vocabulary):
    ServerSource(server.url).fetch([[10]], [[11, 2]])
    other = with_vocabulary(lambda text: text.replace('"w8"', '"w8 or more"'))
    data = Dataset.from_list([{"prompt": "w10 w11", "chosen": " w12", "rejected": " w13"}])
    settings = READING | {"model": other, "train_dataset": data}
    make_trainer(**settings, **sources(server)["server"])
    with pytest.raises(InvalidRequest, match=r"teacher: .* has another vocabulary"):
        make_trainer(**settings, **sources(server)["store"])
    with pytest.raises(InvalidRequest, match=r"teacher: .* has another vocabulary"):
        # Which tokens a stream will use is not known.
        make_trainer(**settings | {"train_dataset": data.to_iterable_dataset()}, **sources(server)["server"])
    ServerSource(server.url, (1.0, 2.0)).fetch(*whole(make_trainer(alpha=0.0, train_dataset=data).train_dataset))
    make_trainer(**settings, **sources(server)["store"], other_vocabulary=True)


def test_a_token_that_the_data_use_is_refused(make_trainer, server, with_vocabulary):
    other = with_vocabulary(lambda text: text.replace('"w8"', '"w"').replace('"w9"', '"w8"').replace('"w"', '"w9"'))
    data = Dataset.from_list([{"prompt": "w10 w9", "chosen": " w8", "rejected": " w13"}])
    with pytest.raises(InvalidRequest, match=r"teacher: .* 8 is 'w9' here and 'w8' there"):
        make_trainer(model=other, train_dataset=data, **READING, **sources(server)["server"])
