"""What the collator puts into a batch, and what it refuses."""

import pickle
import threading
from concurrent.futures import Future

import httpx
import numpy as np
import pytest
from datasets import Dataset, IterableDataset
from runs import assert_same_run, rows, train
from teacher_source import TeacherSource

from tvkd_client import ServerSource, TeacherClient
from tvkd_client.collator import SCORES
from tvkd_client.completions import Completions
from tvkd_client.token_rows import TOKEN_COLUMNS
from tvkd_shared.errors import InvalidRequest, TeacherMismatch, TeacherUnavailable, WrongAnswer
from tvkd_shared.record import Record

CHATS = [
    {
        "prompt": [{"role": "user", "content": "w10 w11 w12"}],
        "chosen": [{"role": "assistant", "content": "w20 w21 w22"}],
        "rejected": [{"role": "assistant", "content": f"w30 w{31 + row}"}],
    }
    for row in range(4)
]


class OneTooMany(TeacherSource):
    """Answers for a completion with one more token: well-formed records of another sequence."""

    def fetch(self, prompts, completions) -> list[Record]:
        return super().fetch(prompts, [[*completion, 9] for completion in completions])


class AfterTheReference(TeacherSource):
    """Answers only once the reference's forward pass was made."""

    passed = threading.Event()

    def fetch(self, prompts, completions) -> list[Record]:
        assert self.passed.wait(10)
        return super().fetch(prompts, completions)


class OneMissing(TeacherSource):
    def fetch(self, prompts, completions) -> list[Record]:
        return super().fetch(prompts, completions)[:-1]


def test_values_are_asked_for_whole_and_read_cut(make_trainer, source):
    whole, cut = (make_trainer(alpha=1.0, gamma=0.9, source=source, max_length=length) for length in (None, 10))
    examples = [cut.train_dataset[index] for index in range(len(cut.train_dataset))]
    prompts = [row["prompt_ids"] for row in examples] * 2
    completions = [row[side] for side in ("chosen_ids", "rejected_ids") for row in examples]
    kept = [min(len(completion), 10 - len(prompt)) for prompt, completion in zip(prompts, completions, strict=True)]
    assert any(n < len(completion) for n, completion in zip(kept, completions, strict=True))
    shaping = cut.data_collator(examples)[SCORES].result().shaping
    mask = np.arange(10) < np.array(kept)[:, None]
    columns = {name: [row[name] for row in examples] for name in TOKEN_COLUMNS}
    by_hand = whole.data_collator.scores(Completions(columns, kept), mask).shaping
    assert np.array_equal(shaping, by_hand)
    assert not np.array_equal(shaping, whole.data_collator(examples)[SCORES].result().shaping)


def test_a_chat_template_s_newline_is_after_the_end(make_trainer, source):
    trainer = make_trainer(alpha=1.0, gamma=0.9, terminal="zero", source=source, train_dataset=Dataset.from_list(CHATS))
    row = trainer.train_dataset[0]
    assert row["chosen_ids"][-2:] == [2, 7]
    V = source.fetch([row["prompt_ids"]], [row["chosen_ids"]])[0].values[1.0].astype(np.float64)
    end = len(row["chosen_ids"]) - 1
    wanted = -(1 - 0.9) * V[1:end].sum() - V[0]
    assert trainer.data_collator([row])[SCORES].result().shaping[0] == pytest.approx(wanted, abs=1e-9)


def test_the_main_process_gets_a_future_and_a_worker_waits(make_trainer, source):
    ahead = make_trainer(alpha=0.7, gamma=0.9, source=source)
    assert isinstance(ahead.data_collator([ahead.train_dataset[0]])[SCORES], Future)
    workers = make_trainer(alpha=0.7, gamma=0.9, source=source, dataloader_num_workers=2)
    assert_same_run(train(ahead), train(workers))


def test_a_collator_can_be_sent_to_a_spawned_worker(make_trainer, source):
    trainer = make_trainer(alpha=0.7, source=source)
    row = trainer.train_dataset[0]
    here = trainer.data_collator([row])[SCORES].result()
    there = pickle.loads(pickle.dumps(trainer.data_collator))([row])[SCORES].result()
    assert np.array_equal(here.shaping, there.shaping)


def test_reference_log_probs_are_computed_without_values(make_trainer, source):
    trainer = make_trainer(alpha=0.7, source=source, precompute_ref_log_probs=True)
    assert source.asked == 0
    losses, _ = train(trainer)
    assert losses == pytest.approx(train(make_trainer(alpha=0.7, source=source))[0], abs=1e-5)


def test_a_data_set_given_to_evaluate_is_shaped(make_trainer, source):
    held_out = Dataset.from_list(rows(4, seed=9))
    for precompute in (False, True):
        trainer = make_trainer(alpha=0.7, source=source, precompute_ref_log_probs=precompute)
        before = source.asked
        assert trainer.evaluate(held_out)["eval_loss"] != pytest.approx(np.log(2), abs=1e-3)
        assert source.asked - before == 2 * len(held_out)


def test_a_streamed_data_set_trains_as_a_stored_one(make_trainer, pairs, source):
    stored, streamed = (
        make_trainer(alpha=0.7, source=source, train_dataset=data, train_sampling_strategy="sequential")
        for data in (pairs, pairs.to_iterable_dataset())
    )
    assert_same_run(train(stored), train(streamed))


NOT_FITTING = pytest.mark.parametrize(("kind", "message"), [(OneTooMany, "values of"), (OneMissing, "records for")])


@NOT_FITTING
def test_values_that_do_not_fit_are_in_no_mean_of_the_advantage(make_trainer, source, student, kind, message):
    wrong = kind(student)
    wrong.teacher_id = "T0"
    with pytest.raises(WrongAnswer, match=f"^teacher_reference: .*{message}"):
        make_trainer(objective="token", center=True, source=source, sources={"teacher_reference": wrong})


@pytest.mark.parametrize("workers", [0, 1])
@NOT_FITTING
def test_values_that_do_not_fit_stop_the_run(make_trainer, tiny_teacher, kind, message, workers):
    trainer = make_trainer(alpha=0.7, source=kind(tiny_teacher), dataloader_num_workers=workers)
    # A dataloader worker's error arrives as the same type, with the worker's trace in its message.
    with pytest.raises(WrongAnswer, match=message):
        trainer.train()


def test_values_travel_while_the_reference_is_computed(make_trainer, tiny_teacher):
    source = AfterTheReference(tiny_teacher)
    trainer = make_trainer(alpha=0.7, source=source)
    reference = trainer.compute_ref_log_probs
    trainer.compute_ref_log_probs = lambda *batch: (reference(*batch), source.passed.set())[0]
    batch = trainer.data_collator([trainer.train_dataset[0]])
    assert trainer.compute_loss(trainer.model, batch).isfinite()


def alive(name: str) -> list[str]:
    """Threads of a pool that do not end; Python would wait for them before the process does."""
    of_pool = [thread for thread in threading.enumerate() if thread.name.startswith(name)]
    for thread in of_pool:
        thread.join(5)
    return [thread.name for thread in of_pool if thread.is_alive()]


def test_no_thread_is_left_when_training_ends_or_fails(make_trainer, tiny_teacher, source):
    make_trainer(alpha=0.7, source=source).train()
    assert alive("values") == []
    failing = make_trainer(alpha=0.7, source=OneMissing(tiny_teacher))
    with pytest.raises(WrongAnswer):
        failing.train()
    assert alive("values") == []
    with pytest.raises(WrongAnswer):
        failing.evaluate(Dataset.from_list(rows(2)))
    assert alive("values") == []


def test_a_closed_collator_ends_what_waits_for_a_server(make_trainer, source):
    asked = threading.Event()

    def loading(_: httpx.Request) -> httpx.Response:
        asked.set()
        problem = {"title": "", "status": 503, "detail": "loading", "code": "teacher-unavailable"}
        return httpx.Response(503, json=problem, headers={"Retry-After": "60"})

    trainer = make_trainer(alpha=0.7, source=source, value_concurrency=1)
    server = ServerSource("http://teacher.test")
    server.client = TeacherClient("http://teacher.test", transport=httpx.MockTransport(loading))
    trainer.data_collator.sources = {"teacher": server}
    begun, waiting = (trainer.data_collator([trainer.train_dataset[0]])[SCORES] for _ in range(2))
    assert asked.wait(10)
    trainer.data_collator.close()
    assert alive("values") == [] and waiting.cancelled()
    with pytest.raises(TeacherUnavailable, match="given up"):
        begun.result(0)


def test_nothing_is_reported_to_the_hub(make_trainer, monkeypatch):
    reported = []
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.setattr("trl.trainer.base_trainer.send_telemetry", lambda **what: reported.append(what))
    make_trainer(alpha=0.0)
    assert reported == []


def test_another_teacher_is_refused(make_trainer, source):
    with pytest.raises(TeacherMismatch, match="the-tiny-teacher"):
        make_trainer(alpha=0.7, source=source, teacher_id="another")


def test_shaping_without_a_source_is_refused(make_trainer):
    with pytest.raises(InvalidRequest, match="no teacher is set"):
        make_trainer(alpha=0.7)


def test_bulk_refuses_a_stream_and_a_source_that_is_no_server(make_trainer, pairs, source):
    bulk = {"alpha": 0.7, "source": source, "bulk": True}
    stream = pairs.to_iterable_dataset()
    for streamed in ({"train_dataset": stream}, {"eval_dataset": stream}, {"eval_dataset": {"a": pairs, "b": stream}}):
        with pytest.raises(InvalidRequest, match="streams"):
            make_trainer(**bulk, **streamed)
    with pytest.raises(InvalidRequest, match="no role has a server"):
        make_trainer(**bulk)


def test_images_are_refused_in_training_and_evaluation(make_trainer, pairs, source):
    seen = pairs.add_column("image", ["x.png"] * len(pairs))
    for data in ({"train_dataset": seen}, {"eval_dataset": seen}, {"eval_dataset": {"a": pairs, "b": seen}}):
        with pytest.raises(InvalidRequest, match="has images"):
            make_trainer(alpha=0.7, source=source, **data)
    with pytest.raises(InvalidRequest, match="has images"):
        make_trainer(alpha=0.7, source=source).evaluate(seen)


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_an_empty_training_set_is_refused(make_trainer, pairs, source, alpha):
    for empty in (pairs.select([]), IterableDataset.from_generator(lambda: iter(()))):
        with pytest.raises(InvalidRequest, match="train_dataset has no rows"):
            make_trainer(alpha=alpha, source=source, train_dataset=empty)
