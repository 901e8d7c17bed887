"""Quantised weights have the values of what they mean, or are refused in one line that says what to do."""

import json

import pytest

from quantized_models import save_quantized
from small_models import Reference, ask, assert_agrees, load, tokens
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.errors import InvalidRequest

QUESTIONS = [(tokens(length, length), [tokens(20, 1), tokens(9, 2)], [0.5]) for length in (3, 40)]


@pytest.mark.parametrize("form", ["compressed-tensors", "fp8"])
def test_a_form_that_transformers_reads_here_has_the_values_of_the_weights_that_it_means(form, tmp_path):
    if form == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
    quantized, plain = save_quantized(form, tmp_path)
    teacher, reference = load(quantized, dtype="float32"), Reference(plain)
    for (prompt, completions, _), records in zip(QUESTIONS, ask(teacher, *QUESTIONS), strict=True):
        for completion, record in zip(completions, records, strict=True):
            assert_agrees(record, reference(prompt, completion), tolerance=1e-3)
    assert teacher.info.quantization == form


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ("gptq", "optimum.*are quantised .gptq.: try the other engine, or serve what they were made from"),
        ("awq", "gptqmodel.*are quantised .awq.: try the other engine"),
        ("bitsandbytes", "pip install -U bitsandbytes.*try the other engine"),
        # transformers would load what follows as if it were not quantised.
        ("fp8 static", "no use of .*input_scale and 27 more.*are quantised .fp8.: try the other engine"),
        ("modelopt", "transformers does not know such weights; .*modelopt.: try the other engine"),
        ("exl2", "transformers does not know such weights"),
        ("mlx", "names no quant_method; MLX writes such checkpoints, and only MLX reads them: serve what they"),
    ],
)
def test_a_form_that_transformers_does_not_read_here_is_refused_in_one_line(form, says, tmp_path):
    quantized, _ = save_quantized(form, tmp_path)
    with pytest.raises(InvalidRequest, match=says) as refusal:
        load(quantized)
    assert "\n" not in str(refusal.value)


def without_its_settings(quantized) -> None:
    config = json.loads((quantized / "config.json").read_text())
    del config["quantization_config"]
    (quantized / "config.json").write_text(json.dumps(config))


def test_weights_whose_config_does_not_say_that_they_are_quantised_are_refused(tmp_path):
    quantized, _ = save_quantized("fp8 static", tmp_path)
    without_its_settings(quantized)
    with pytest.raises(InvalidRequest, match=r"no use of model\..*does not say how the weights are quantised"):
        load(quantized)


def test_modelopts_own_file_says_that_the_weights_are_quantised(tmp_path):
    quantized, _ = save_quantized("modelopt", tmp_path)
    without_its_settings(quantized)
    assert Checkpoint.find(quantized).quantization is None
    (quantized / "hf_quant_config.json").write_text('{"quantization": {"quant_algo": "FP8"}}')
    assert Checkpoint.find(quantized).quantization == {
        "quant_method": "modelopt",
        "quantization": {"quant_algo": "FP8"},
    }
    with pytest.raises(InvalidRequest, match="transformers does not know such weights"):
        load(quantized)
