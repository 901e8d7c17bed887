"""What the collator puts into a batch, and what it refuses."""

import pickle
from concurrent.futures import Future

import numpy as np
import pytest
from datasets import Dataset
from runs import assert_same_run, rows, train
from teacher_source import TeacherSource

from tvkd_client.collator import SHAPING
from tvkd_shared.errors import InvalidRequest, TeacherMismatch, WrongAnswer
from tvkd_shared.scored import Scored

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

    def fetch(self, prompts, completions) -> list[Scored]:
        return super().fetch(prompts, [[*completion, 9] for completion in completions])


class OneMissing(TeacherSource):
    def fetch(self, prompts, completions) -> list[Scored]:
        return super().fetch(prompts, completions)[:-1]


def test_values_are_asked_for_whole_and_read_cut(make_trainer, source):
    whole, cut = (make_trainer(alpha=1.0, gamma=0.9, source=source, max_length=length) for length in (None, 10))
    examples = [cut.train_dataset[index] for index in range(len(cut.train_dataset))]
    kept = [
        min(len(row[side]), 10 - len(row["prompt_ids"])) for side in ("chosen_ids", "rejected_ids") for row in examples
    ]
    assert any(n < len(row["chosen_ids"]) for n, row in zip(kept, examples, strict=False))
    shaping = cut.data_collator(examples)[SHAPING].result()
    by_hand = whole.data_collator.shaping(
        [row["prompt_ids"] for row in examples] * 2,
        [row[side] for side in ("chosen_ids", "rejected_ids") for row in examples],
        kept,
    )
    assert np.array_equal(shaping, by_hand)
    assert not np.array_equal(shaping, whole.data_collator(examples)[SHAPING].result())


def test_a_chat_template_s_newline_is_after_the_end(make_trainer, source):
    trainer = make_trainer(alpha=1.0, gamma=0.9, terminal="zero", source=source, train_dataset=Dataset.from_list(CHATS))
    row = trainer.train_dataset[0]
    assert row["chosen_ids"][-2:] == [2, 7]
    V = source.fetch([row["prompt_ids"]], [row["chosen_ids"]])[0].values[1.0].astype(np.float64)
    end = len(row["chosen_ids"]) - 1
    wanted = -(1 - 0.9) * V[1:end].sum() - V[0]
    assert trainer.data_collator([row])[SHAPING].result()[0] == pytest.approx(wanted, abs=1e-9)


def test_the_main_process_gets_a_promise_and_a_worker_waits(make_trainer, source):
    ahead = make_trainer(alpha=0.7, gamma=0.9, source=source)
    assert isinstance(ahead.data_collator([ahead.train_dataset[0]])[SHAPING], Future)
    workers = make_trainer(alpha=0.7, gamma=0.9, source=source, dataloader_num_workers=2)
    assert_same_run(train(ahead), train(workers))


def test_a_collator_can_be_sent_to_a_spawned_worker(make_trainer, source):
    trainer = make_trainer(alpha=0.7, source=source)
    row = trainer.train_dataset[0]
    here = trainer.data_collator([row])[SHAPING].result()
    there = pickle.loads(pickle.dumps(trainer.data_collator))([row])[SHAPING].result()
    assert np.array_equal(here, there)


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


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize(("kind", "message"), [(OneTooMany, "values of"), (OneMissing, "records came")])
def test_values_that_do_not_fit_stop_the_run(make_trainer, tiny_teacher, kind, message, workers):
    trainer = make_trainer(alpha=0.7, source=kind(tiny_teacher), dataloader_num_workers=workers)
    # A dataloader worker's error arrives as the same type, with the worker's trace in its message.
    with pytest.raises(WrongAnswer, match=message):
        trainer.train()


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
    with pytest.raises(InvalidRequest, match="no value source"):
        make_trainer(alpha=0.7)


def test_bulk_refuses_a_stream_and_a_source_that_is_no_server(make_trainer, pairs, source):
    bulk = {"alpha": 0.7, "source": source, "value_source": "bulk", "teacher_url": "http://127.0.0.1:9"}
    with pytest.raises(InvalidRequest, match="streams"):
        make_trainer(**bulk, train_dataset=pairs.to_iterable_dataset())
    with pytest.raises(InvalidRequest, match="TeacherSource is no server"):
        make_trainer(**bulk)
