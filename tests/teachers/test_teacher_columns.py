"""A column is one declaration and one function: whatever has both is computed by every engine."""

import asyncio

import numpy as np
import pytest
import torch

from small_models import tokens
from tvkd_server.teachers import head
from tvkd_server.teachers.vllm_engine.pooler import Chunk, reduce_chunks, split_rows
from tvkd_shared import record
from tvkd_shared.record import column_names


@pytest.fixture
def variance_is_a_column(monkeypatch):
    """The variance of the logits under π_1."""

    def variance(softmax: head.Softmax) -> torch.Tensor:
        square_SV = softmax.exponentials().mul_(softmax.shifted_SV.square())
        return square_SV.sum(1) / softmax.total_S - softmax.mean_S.square()

    monkeypatch.setattr(record, "COLUMNS", (record.Column("variance", "variances"), *record.COLUMNS))
    monkeypatch.setitem(head.COLUMN_FUNCTIONS, "variance", variance)


def variances(logits_SV: np.ndarray) -> np.ndarray:
    weights_SV = np.exp(logits_SV - logits_SV.max(1, keepdims=True))
    weights_SV /= weights_SV.sum(1, keepdims=True)
    means_S = (weights_SV * logits_SV).sum(1, keepdims=True)
    return (weights_SV * (logits_SV - means_S) ** 2).sum(1)


@pytest.mark.usefixtures("variance_is_a_column")
@pytest.mark.parametrize("architecture", ["llama", "mamba"])
def test_a_new_column_is_read_from_the_transformers_teacher(architecture, teacher, reference):
    prompt, completion = tokens(7, 1), tokens(9, 2)
    (answer,) = asyncio.run(teacher(architecture).score(prompt, [completion], column_names([0.5])))
    assert answer.columns == ("variance", "value_1", "action_logit", "entropy", "value_0.5")
    expected = reference(architecture)(prompt, completion)
    np.testing.assert_allclose(answer.column("variance"), variances(expected.logits), rtol=1e-3, atol=1e-3)
    np.testing.assert_allclose(answer.entropies, expected.entropies, rtol=0, atol=1e-4)
    np.testing.assert_allclose(answer.value(0.5), expected.values(0.5), rtol=0, atol=1e-4)


@pytest.mark.usefixtures("variance_is_a_column")
@pytest.mark.parametrize("steps", [[10], [4, 3, 3], [5, 2, 3], [7, 3]])
def test_a_new_column_is_read_from_the_pooler_in_any_chunks_beside_other_questions(steps):
    hidden_ND = torch.randn(10, 8, generator=torch.Generator().manual_seed(0))
    head_DV = torch.randn(8, 50, generator=torch.Generator().manual_seed(1))
    columns, rows, start, answer = ["variance", "value_1"], [], 0, None
    for length in steps:
        end = start + length
        ids = torch.arange(10)
        chunks = [
            Chunk(ids, 0, 2, finished=True, first_state=1, columns=["entropy"], rows=[]),
            Chunk(ids, start, end, finished=end == 10, first_state=4, columns=columns, rows=rows),
        ]
        other, answer = reduce_chunks(
            lambda hidden: hidden @ head_DV, torch.cat([hidden_ND[:2], hidden_ND[start:end]]), chunks, 2
        )
        assert other.shape == (1, 1 + 1)
        start = end
    positions, numbers = split_rows(answer.numpy())
    logits_SV = (hidden_ND @ head_DV)[4:].double().numpy()
    np.testing.assert_array_equal(positions, range(4, 10))
    np.testing.assert_allclose(numbers[:, columns.index("variance")], variances(logits_SV), rtol=1e-3)
    assert not rows


def test_rows_that_a_preempted_sequence_repeats_are_kept_once():
    hidden_ND, ids, rows = torch.randn(6, 8), torch.arange(6), []
    for start, end in [(0, 4), (0, 3), (3, 6)]:
        chunk = Chunk(ids, start, end, finished=end == 6, first_state=1, columns=["value_1"], rows=rows)
        (answer,) = reduce_chunks(torch.clone, hidden_ND[start:end], [chunk], 8)
    positions, _ = split_rows(answer.numpy())
    np.testing.assert_array_equal(positions, range(1, 6))
