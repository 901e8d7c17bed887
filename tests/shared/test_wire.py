"""The wire format: numbers arrive bit for bit, and a malformed request or answer is never taken for a good one."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pydantic import ValidationError

from tvkd_shared.wire import CompletionAnswer, PotentialsRequest, TextItem, TokenItem

float32 = st.floats(width=32, allow_nan=False, allow_infinity=False)
ITEM = {"prompt_token_ids": [1], "completions": [[2]]}


@st.composite
def records(draw):
    tokens = draw(st.integers(1, 9))
    row = arrays(np.float32, tokens + 1, elements=float32)
    return draw(row), draw(arrays(np.float32, tokens, elements=float32)), draw(row)


@given(records())
def test_numbers_travel_bit_for_bit(record):
    values, action_logits, entropies = record
    sent = CompletionAnswer(
        key="0" * 32, cached=True, length=len(action_logits), values=[values.tolist()],
        action_logits=action_logits.tolist(), entropies=entropies.tolist(),
    )  # fmt: skip
    read = CompletionAnswer.model_validate_json(sent.model_dump_json()).scored([1.0])
    assert read.values[1.0].tobytes() == values.tobytes()
    assert read.action_logits.tobytes() == action_logits.tobytes()
    assert read.entropies.tobytes() == entropies.tobytes()


@pytest.mark.parametrize(
    "wrong",
    [
        {"length": 2},
        {"values": [[1.0]]},
        {"values": [[1.0, 2.0], [1.0, 2.0]]},
        {"values": [[1.0, float("nan")]]},
        {"action_logits": [1.0, 2.0]},
        {"entropies": None},
    ],
)
def test_an_answer_that_does_not_fit_is_never_a_record(wrong):
    good = {
        "key": "0" * 32, "cached": True, "length": 1,
        "values": [[1.0, 2.0]], "action_logits": [1.0], "entropies": [0.1, 0.2],
    }  # fmt: skip
    CompletionAnswer(**good).scored([1.0])
    with pytest.raises(ValueError):
        CompletionAnswer(**good | wrong).scored([1.0])


def test_items_are_token_ids_or_text_or_messages():
    request = PotentialsRequest(
        items=[
            ITEM,
            {"prompt": "Hello", "completions": ["world"]},
            {"prompt": [{"role": "user", "content": "Hello"}], "completions": ["world"]},
        ]
    )
    assert [type(item) for item in request.items] == [TokenItem, TextItem, TextItem]


@pytest.mark.parametrize(
    "wrong",
    [
        {"items": []},
        {"items": [{"prompt_token_ids": [], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [1], "completions": []}]},
        {"items": [{"prompt_token_ids": [1], "completions": [[]]}]},
        {"items": [{"prompt_token_ids": [1.5], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [True], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": ["1"], "completions": [[1]]}]},
        {"items": [{"prompt_token_ids": [-1], "completions": [[1]]}]},
        {"items": [ITEM | {"prompt": "both"}]},
        {"items": [{"prompt": "", "completions": ["a"]}]},
        {"items": [ITEM], "temperatures": []},
        {"items": [ITEM], "temperatures": [0.0]},
        {"items": [ITEM], "temperatures": [float("inf")]},
        {"items": [ITEM], "temperatures": [1.0, 1.0]},
        {"items": [ITEM], "temperature": [1.0]},
        {"items": [ITEM], "cache": "no"},
        {"items": [ITEM], "cache": "skip", "return": "digests"},
    ],
)
def test_a_malformed_request_is_refused(wrong):
    with pytest.raises(ValidationError):
        PotentialsRequest.model_validate(wrong)
