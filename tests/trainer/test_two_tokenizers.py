"""A teacher whose tokenizer is not the student's: each reads its own tokens of a text, and spans are compared."""

import numpy as np
import pytest
import torch
from datasets import Dataset
from objectives_by_hand import BETA, loss_by_hand
from peft import LoraConfig
from runs import assert_same_gradient, assert_same_run, moved_model, moved_weights, train
from spans_by_hand import CHATS, TEXTS, by_bytes, pairs_by_hand
from teacher_source import TeacherSource

from running_server import start_server
from text_tokenizers import byte_level
from tvkd_client.collator import SCORES, SPANS
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_client.source import ServerSource
from tvkd_shared.errors import InvalidRequest, NotCached

LORA = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
OBJECTIVES = [
    {"objective": "token"},
    {"objective": "token", "strength": 3.0, "center": True, "dpo_weight": 0.5},
    {"objective": "soft-label", "strength": 0.3},
    {"objective": "tvkd", "alpha": 0.3},
    {"objective": "tvkd", "alpha": 0.3, "gamma": 0.9, "terminal": "zero"},
    {"objective": "tvkd", "alpha": 0.3, "potential": "implicit"},
    {"objective": "tvkd", "alpha": 0.3, "potential": "implicit", "gamma": 0.9, "aggregate": "mean", "terminal": "zero"},
]


def name_of(settings: dict) -> str:
    return "-".join(map(str, settings.values()))


@pytest.fixture(scope="session")
def byte_started(byte_teacher, tmp_path_factory):
    """T0: what the teacher started from."""
    return moved_model(byte_teacher, tmp_path_factory.mktemp("started") / "byte-t0")


@pytest.fixture
def roles(byte_teacher, byte_started, merged_student):
    return {
        "teacher": TeacherSource(byte_teacher, teacher_id="T"),
        "teacher_reference": TeacherSource(byte_started, teacher_id="T0"),
        "reference": TeacherSource(merged_student, teacher_id="S0"),
    }


@pytest.fixture
def make(make_trainer, merged_student, byte_teacher):
    """A trainer of the merged student, with the byte-level teacher's tokenizer."""

    def made(rows=CHATS, **settings):
        settings = {"model": merged_student, "teacher_tokenizer": str(byte_teacher)} | settings
        return make_trainer(train_dataset=Dataset.from_list(rows), beta=BETA, **settings)

    return made


@pytest.mark.parametrize("one_teacher", [False, True], ids=["two-models", "one-teacher"])
@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
@pytest.mark.parametrize("settings", OBJECTIVES, ids=name_of)
@pytest.mark.parametrize(("rows", "longest"), [(CHATS, 18), (TEXTS, 13)], ids=["chats", "texts"])
def test_loss_and_gradient_are_the_definition(make, roles, rows, longest, settings, peft_config, one_teacher):
    if one_teacher:
        del roles["teacher_reference"]
    trainer = make(
        rows, **settings, sources=roles, peft_config=peft_config, per_device_train_batch_size=4, max_length=longest
    )
    trained = moved_weights(trainer)
    data = list(trainer.train_dataset)
    assert len(data) == len(rows)

    trainer.model.train()
    loss = trainer.compute_loss(trainer.model, trainer.data_collator(data[:3]))
    gradient = torch.autograd.grad(loss, trained)

    hands = pairs_by_hand(data, trainer.model, roles, settings, longest)
    assert any(one.cuts_a_span for pair in hands[:3] for one in pair)
    wanted = loss_by_hand(settings, hands[:3], hands)
    wanted_gradient = torch.autograd.grad(wanted, trained)

    assert loss.item() == pytest.approx(wanted.item(), rel=1e-5, abs=1e-5)
    assert_same_gradient(gradient, wanted_gradient)


@pytest.mark.parametrize("one_teacher", [False, True], ids=["two-models", "one-teacher"])
@pytest.mark.parametrize("settings", OBJECTIVES, ids=name_of)
def test_with_one_tokenizer_every_number_is_the_same_to_the_bit(
    make_trainer, tiny_teacher, student, settings, one_teacher
):
    folders = {"teacher": tiny_teacher, "reference": student} | ({} if one_teacher else {"teacher_reference": student})
    sources = {role: TeacherSource(folder, teacher_id=role) for role, folder in folders.items()}
    settings = settings | {"sources": sources, "max_length": 10, "gradient_accumulation_steps": 2}
    plain, own = (make_trainer(**settings, teacher_tokenizer=of) for of in (None, str(tiny_teacher)))
    batch = own.data_collator(list(own.train_dataset)[:2])
    assert (SPANS in batch) == (settings["objective"] != "tvkd")
    logs = []
    runs = []
    for trainer in (plain, own):
        runs.append(train(trainer))
        logs.append([{k: v for k, v in log.items() if not k.endswith(("_waited", "runtime", "second"))}
                     for log in trainer.state.log_history])  # fmt: skip
    assert_same_run(*runs)
    assert logs[0] == logs[1]


def test_metrics_and_the_sums_of_a_batch_are_those_of_spans(make, roles):
    trainer = make(objective="token", strength=2.0, sources=roles, per_device_train_batch_size=4, max_steps=1)
    rows = list(trainer.train_dataset)
    batch = trainer.data_collator(rows)
    teachers = tokenize_preferences(Dataset.from_list(CHATS), byte_level())
    A = []
    for side in ("chosen", "rejected"):
        for row, theirs in zip(rows, teachers, strict=True):
            asked = [theirs["prompt_ids"]], [theirs[f"{side}_ids"]]
            T, T0 = (roles[role].fetch(*asked)[0] for role in ("teacher", "teacher_reference"))
            lp = [record.action_logits - record.value()[:-1] for record in (T, T0)]
            ends = [their for _, their in by_bytes(row, side, theirs[f"{side}_ids"])]
            A.append(np.add.reduceat((lp[0] - lp[1]).astype(np.float64), [0, *ends[:-1]]))
    grids = batch[SCORES].result().log_probs
    assert (grids["teacher"] - grids["teacher_reference"]).sum(1) == pytest.approx([a.sum() for a in A], abs=1e-4)
    A = np.concatenate(A)
    trainer.train()
    first = trainer.state.log_history[0]
    assert first["advantage/mean"] == pytest.approx(A.mean(), abs=1e-4)
    assert first["advantage/std"] == pytest.approx(A.std(), rel=1e-3)
    assert first["token/error"] == pytest.approx(np.mean((2 * A) ** 2), rel=1e-3)
    assert first["loss"] == pytest.approx(first["token/error"], rel=1e-3)
    assert first["token/explained"] == pytest.approx(1 - np.mean((2 * A) ** 2) / np.var(2 * A), abs=1e-3)


@pytest.mark.parametrize("one_teacher", [False, True], ids=["two-models", "one-teacher"])
def test_without_a_stored_reference_the_reference_s_forward_is_used(make, roles, one_teacher):
    if one_teacher:
        del roles["teacher_reference"]
    fewer = {role: source for role, source in roles.items() if role != "reference"}
    stored, computed = (make(objective="token", sources=of, max_length=18) for of in (roles, fewer))
    (losses, _), (others, _) = train(stored), train(computed)
    assert losses == pytest.approx(others, rel=1e-4)


def test_a_row_that_does_not_fit_is_named_among_those_that_are_kept(make, roles):
    tools = [*CHATS[:1], CHATS[1] | {"chosen": CHATS[1]["chosen"] * 2}]
    with pytest.raises(
        InvalidRequest, match=r"data set train \(of the pairs that max_length keeps\), row 1: a complet"
    ):
        make(tools, sources=roles, max_length=18)
    with pytest.raises(InvalidRequest, match="data set train, row 1: a completion is messages of assistant, assistant"):
        make(tools, sources=roles, max_length=None)


def test_a_step_s_loss_does_not_depend_on_how_its_spans_are_spread(make, roles):
    settings = {"objective": "token", "sources": roles, "max_steps": 2, "train_sampling_strategy": "sequential"}
    _, whole = train(make(**settings, per_device_train_batch_size=4))
    _, spread = train(make(**settings, per_device_train_batch_size=1, gradient_accumulation_steps=4))
    assert all(torch.allclose(whole[name], spread[name], atol=2e-4) for name in whole)


@pytest.mark.parametrize("peft_config", [None, LORA], ids=["full", "lora"])
def test_a_resumed_run_ends_where_the_whole_run_ends(make, roles, tmp_path, peft_config):
    settings = {"objective": "token", "center": True, "sources": roles, "max_steps": 4, "save_strategy": "steps"}
    settings["peft_config"] = peft_config
    losses, weights = train(make(**settings, save_steps=2))
    rest, resumed = train(
        make(**settings, save_steps=2, output_dir=tmp_path / "again"),
        resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-2"),
    )
    assert_same_run((losses[2:], weights), (rest, resumed))


def test_a_streamed_data_set_trains_as_a_stored_one(make_trainer, make, roles):
    settings = {"objective": "token", "sources": {"teacher": roles["teacher"]}, "train_sampling_strategy": "sequential"}
    settings |= {"max_length": 18}
    stored = make(**settings)
    streamed = make_trainer(
        model=stored.model.name_or_path, teacher_tokenizer=stored.settings.teacher_tokenizer, beta=BETA,
        train_dataset=Dataset.from_list(CHATS).to_iterable_dataset(), **settings,
    )  # fmt: skip
    assert_same_run(train(stored), train(streamed))


def test_workers_change_nothing_and_other_pairs_are_evaluated_in_spans_too(make, roles):
    settings = {"objective": "token", "sources": roles, "max_length": 18, "max_steps": 2}
    here, there = (make(**settings, dataloader_num_workers=workers) for workers in (0, 2))
    assert_same_run(train(here), train(there))
    asked = roles["teacher"].asked
    found = here.evaluate(Dataset.from_list(TEXTS))
    assert roles["teacher"].asked == asked + 2 * len(TEXTS)
    assert found["eval_loss"] == pytest.approx(found["eval_token/error"], rel=1e-4)


@pytest.fixture(scope="module")
def byte_server(byte_teacher, tmp_path_factory):
    running = start_server(byte_teacher, tmp_path_factory.mktemp("bytes") / "values")
    yield running
    running.kill()


def test_server_bulk_and_store_give_the_same_run(make, byte_server, byte_teacher):
    settings = {"objective": "soft-label", "eval_dataset": Dataset.from_list(TEXTS[:2])}
    places = [
        {"teacher": byte_server.url, "teacher_tokenizer": "server"},
        {"teacher": byte_server.url, "teacher_tokenizer": "server", "bulk": True},
        {"teacher": str(byte_server.store_path)},
    ]
    with pytest.raises(NotCached, match="tvkd prefetch"):
        make(**settings | places[2])
    runs = [train(make(**settings | place)) for place in places]
    for run in runs[1:]:
        assert_same_run(runs[0], run)


def test_other_tokenizers_than_the_teachers_are_refused_in_one_line(make, byte_server, byte_teacher, merged_student):
    source = ServerSource(byte_server.url)
    with pytest.raises(
        InvalidRequest, match=r"teacher: .* has another vocabulary .* teacher_tokenizer gives the teacher"
    ):
        make(sources={"teacher": source}, teacher_tokenizer=None)
    with pytest.raises(InvalidRequest, match=r"teacher: teacher_tokenizer .* another vocabulary than model byte-llama"):
        make(sources={"teacher": source}, teacher_tokenizer=str(merged_student))
    with pytest.raises(InvalidRequest, match="teacher_tokenizer is server, and the teacher's values do not come"):
        make(sources={"teacher": TeacherSource(byte_teacher, teacher_id="T")}, teacher_tokenizer="server")


def test_a_teacher_reference_with_other_tokens_is_refused(make, server, byte_server):
    sources = {"teacher": ServerSource(byte_server.url), "teacher_reference": ServerSource(server.url)}
    with pytest.raises(InvalidRequest, match=r"teacher_reference: .* another vocabulary than model tiny-llama"):
        make(objective="token", sources=sources, teacher_tokenizer="server")
