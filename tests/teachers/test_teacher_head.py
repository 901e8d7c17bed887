"""The reduction keeps the definitions of `tvkd_shared.value` in float32, whatever the logits are."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tvkd_server.teachers.head import reduce
from tvkd_shared.record import column_names, value_column
from tvkd_shared.value import entropy, value

logits = st.lists(st.floats(-300, 300, width=32), min_size=4, max_size=4)


@settings(deadline=None)
@given(st.lists(logits, min_size=1, max_size=5), st.lists(st.floats(0.1, 10), max_size=3), st.randoms())
def test_each_column_is_that_of_its_definition_in_any_order(rows, temperatures, random):
    actions_S = torch.arange(len(rows)) % 4
    columns = random.sample(names := column_names(temperatures), len(names))
    numbers = dict(zip(columns, reduce(torch.tensor(rows), actions_S, columns).T.numpy(), strict=True))
    for temperature in (1.0, *temperatures):
        np.testing.assert_allclose(numbers[value_column(temperature)], value(rows, temperature), rtol=1e-6, atol=1e-4)
    np.testing.assert_allclose(numbers["entropy"], entropy(rows), rtol=0, atol=1e-4)
    actions = [row[action] for row, action in zip(rows, actions_S, strict=True)]
    np.testing.assert_array_equal(numbers["action_logit"], np.float32(actions))


def test_a_token_that_is_ruled_out_takes_no_part():
    kept, ruled_out = [[1.0, 2.0, 0.5]], [[1.0, 2.0, 0.5, -np.inf]]
    row, row_ruled_out = (
        reduce(torch.tensor(logits_SV), torch.tensor([1]), column_names([0.5])) for logits_SV in (kept, ruled_out)
    )
    torch.testing.assert_close(row, row_ruled_out)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_logits_are_reduced_in_float32(dtype):
    logits_SV = torch.randn(3, 5000, generator=torch.Generator().manual_seed(0)).mul(8).to(dtype)
    reduced = reduce(logits_SV, torch.zeros(3, dtype=torch.long), ["value_1"])
    assert reduced.dtype == torch.float32
    np.testing.assert_allclose(reduced.flatten(), value(logits_SV.double().numpy()), rtol=0, atol=1e-4)
