"""A setting without a meaning is refused in one line that names it."""

from pathlib import Path

import pytest
import torch

from tvkd_client import TVKDConfig, trl_private
from tvkd_client.train import parse
from tvkd_shared.errors import InvalidRequest


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("alpha", float("nan")),
        ("alpha", "0.7"),
        ("gamma", 1.5),
        ("gamma", -0.1),
        ("temperature", 0.0),
        ("temperature", float("inf")),
        ("potential", "value"),
        ("terminal", "eos"),
        ("aggregate", "median"),
        ("form", "tpkd-ref"),  # which is 0 with γ = 1
        ("recipe", "tvkd"),
        ("objective", "sequence"),
        ("strength", float("nan")),
        ("strength", 2.0),
        ("center", True),
        ("dpo_weight", 0.5),
        ("max_value_error", -1.0),
        ("reference_tolerance", -1.0),
        ("teacher", 8077),
        ("reference_id", 12345),
        ("teacher_tokenizer", True),
        ("value_concurrency", 0),
        ("teacher_id", 12345),
        ("beta", 0.0),
        ("loss_type", ["ipo"]),
        ("loss_type", ["sft"]),
        ("f_divergence_type", "forward_kl"),
        ("truncation_mode", "keep_end"),
        ("ld_alpha", 0.5),
        ("use_weighting", True),
        ("label_smoothing", 0.1),
        ("accelerator_config", {"dispatch_batches": True}),
    ],
)
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_a_setting_without_a_meaning_is_refused(tmp_path, name, setting):
    with pytest.raises(InvalidRequest) as refused:
        TVKDConfig(str(tmp_path), bf16=False, use_cpu=True, **{name: setting})
    named = "dispatch_batches" if name == "accelerator_config" else name
    assert str(refused.value).startswith(named) and "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "setting"),
    [
        ("loss_type", ["sigmoid", "sft"]),
        ("loss_weights", [2.0]),
        ("precompute_ref_log_probs", True),
        ("sync_ref_model", True),
    ],
)
@pytest.mark.parametrize("objective", ["token", "soft-label"])
def test_a_setting_that_an_objective_has_no_meaning_for_is_refused(tmp_path, objective, name, setting):
    with pytest.raises(InvalidRequest, match=name):
        TVKDConfig(str(tmp_path), bf16=False, use_cpu=True, objective=objective, **{name: setting})


def test_another_trl_is_refused(monkeypatch):
    trl_private.check()
    monkeypatch.setattr(trl_private.trl, "__version__", "1.17.0")
    with pytest.raises(InvalidRequest, match=r"TRL 1\.17\.0 is installed"):
        trl_private.check()


def test_a_moved_method_of_trl_is_refused(monkeypatch):
    monkeypatch.delattr(trl_private.DPOTrainer, "_precompute_ref_logps")
    with pytest.raises(InvalidRequest, match="_precompute_ref_logps"):
        trl_private.check()


def test_the_example_s_settings_are_all_known(monkeypatch, tmp_path):
    example = Path(__file__).parents[2] / "client" / "tvkd_client" / "tvkd.yaml"
    (tmp_path / "student").mkdir()
    monkeypatch.chdir(tmp_path)
    _, training, _, _ = parse(["--config", str(example)])
    assert (training.alpha, training.gamma, training.teacher) == (0.7, 1.0, "http://127.0.0.1:8077")
    assert training.bf16 is torch.accelerator.is_available(), "it runs as it is on a machine without an accelerator"
