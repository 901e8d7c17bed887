"""Before a teacher under vLLM is ready its values are asked several times and compared with those of transformers.

The check itself takes any teacher, so it is tried here on teachers under transformers that were spoilt after loading.
"""

import logging
import re

import pytest
import torch

from small_models import load, save
from tvkd_server.settings import ServeSettings, reference_settings
from tvkd_server.teachers import start_check
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.start_check import check_values, probes
from tvkd_shared.errors import InvalidRequest


def run_check(teacher, directory, dtype="float32"):
    check_values(
        teacher,
        probes(teacher, [35], on_cpu=True),
        Checkpoint.find(directory),
        ServeSettings(model=str(directory), device="cpu", dtype=dtype),
    )


def scaled_head(teacher) -> None:
    with torch.no_grad():
        teacher._pass._head._model.lm_head.weight.mul_(1.01)


def a_longer_window(teacher) -> None:
    teacher._pass._backbone._forward.config.sliding_window += 1


def forgets_some_states(teacher) -> None:
    teacher._pass._backbone._forward.norm.register_forward_hook(lambda _, __, output: torch.dropout(output, 0.1, True))


def overflows(teacher) -> None:
    with torch.no_grad():
        teacher._pass._head._model.lm_head.weight[0] = float("inf")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (scaled_head, r"other values than transformers does in float32 \(by 0\.\d+\).*--engine transformers"),
        (a_longer_window, "other values than transformers"),
        (forgets_some_states, "another value each time"),
        (
            overflows,
            "fails at its first questions: .*not all finite.*; its weights may be damaged: copy them again$",
        ),
    ],
)
def test_a_teacher_that_answers_wrong_is_refused_in_one_line(spoil, says, tmp_path):
    directory = save("mistral", tmp_path / "mistral")
    teacher = load(directory)
    spoil(teacher)
    with pytest.raises(InvalidRequest, match=says) as refusal:
        run_check(teacher, directory)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_teacher_that_answers_right_passes_in_each_dtype(dtype, saved, caplog):
    with caplog.at_level(logging.INFO):
        run_check(load(saved("gemma2"), dtype=dtype), saved("gemma2"))
    assert "gives the values of transformers, at 20 sequences" in caplog.text


def test_weights_too_large_to_compare_are_said_to_be_unchecked_with_what_checks_them(saved, caplog, monkeypatch):
    monkeypatch.setattr(start_check, "COMPARED_BYTES", 1000)
    run_check(load(saved("llama")), saved("llama"))
    assert "tvkd store verify --rescore" in caplog.text


def test_probes_are_short_and_long_and_past_each_length_that_is_named(saved):
    teacher = load(saved("llama"))
    lengths = {len(question.prompt) + len(question.completions[0]) for question in probes(teacher, [35], on_cpu=True)}
    assert lengths == {5, 17, 35, 96}
    assert len(probes(teacher, [], on_cpu=False)) == 10


def test_a_length_that_is_not_reached_is_said_with_what_checks_it(saved, caplog, monkeypatch):
    monkeypatch.setattr(start_check, "_LIMIT_ON_CPU", 30)
    probes(load(saved("llama")), [35, 97], on_cpu=True)  # the second is longer than any sequence that is served
    assert re.search("at most 30 tokens, .* before 35; .*tvkd store verify --rescore", caplog.text)


def test_the_lengths_where_attention_changes_are_read_from_the_config(tmp_path):
    directory = save("mistral", tmp_path / "mistral", sliding_window=8)
    assert Checkpoint.find(directory).attention_bounds() == [8]
    assert Checkpoint.find(save("phi3", tmp_path / "phi3")).attention_bounds() == [24]


def test_the_teacher_to_compare_with_takes_nothing_from_the_variables_of_the_one_that_serves(monkeypatch):
    for name, value in {"ENGINE": "vllm", "GPU_MEMORY_UTILIZATION": "0.5", "DTYPE": "bfloat16"}.items():
        monkeypatch.setenv(f"TVKD_{name}", value)
    settings = reference_settings("some-model")
    assert (settings.model, settings.engine, settings.device) == ("some-model", "transformers", "cpu")
    assert (settings.dtype, settings.max_batch_tokens) == (
        "float32",
        ServeSettings.model_fields["max_batch_tokens"].default,
    )
