"""Objective token warns, with the number and what to do, where the teacher would teach more than preferences."""

import numpy as np
import pytest
from teacher_source import TeacherSource

from tvkd_shared.record import Record

UNLEARNS = (
    "the teacher's cross-entropy on chosen completions is {number} nats a {unit} above that of the student's "
    "reference, so the student will unlearn its fine-tuning. Set teacher_reference to the model that the teacher's DPO "
    "started from, or take a teacher that was fine-tuned on the same data"
)
DISPLACED = (
    "the advantage's mean is -{number} nats a {unit}: the teacher's DPO made all completions less likely, and the "
    "student will learn that too. Set center: true, or train the teacher more mildly"
)


class Lowered(TeacherSource):
    """A model whose log-prob of each token is 1.5 nats less."""

    def fetch(self, prompts, completions) -> list[Record]:
        return [
            Record.of({1.0: record.value() + np.float32(1.5)}, record.action_logits, record.entropies)
            for record in super().fetch(prompts, completions)
        ]


@pytest.mark.parametrize(("base", "line"), [("reference", UNLEARNS), ("teacher_reference", DISPLACED)])
@pytest.mark.parametrize("own_tokenizer", [False, True], ids=["tokens", "spans"])
def test_what_a_lowered_teacher_would_teach_is_said_with_its_number(
    make_trainer, student, caplog, base, line, own_tokenizer
):
    """Behind 256 tokens or spans; with the student's own tokenizer for the teacher each span is a token."""
    settings = {"teacher_tokenizer": str(student)} if own_tokenizer else {}
    trainer = make_trainer(
        objective="token",
        sources={"teacher": Lowered(student, teacher_id="the lowered one"), base: TeacherSource(student)},
        per_device_train_batch_size=8,
        max_steps=4,
        **settings,
    )
    tokens = sum(len(row[side]) for row in trainer.train_dataset for side in ("chosen_ids", "rejected_ids"))
    assert tokens < 256 <= 4 * tokens
    said = []
    step = trainer.training_step

    def observed(*args, **kwargs):
        loss = step(*args, **kwargs)
        said.append([record.message for record in caplog.records if record.name.startswith("tvkd_client")])
        return loss

    trainer.training_step = observed
    trainer.train()
    wanted = line.format(number="1.50", unit="span" if own_tokenizer else "token")
    behind = -(-256 // tokens)
    assert said == [[]] * (behind - 1) + [[wanted]] * (5 - behind)
