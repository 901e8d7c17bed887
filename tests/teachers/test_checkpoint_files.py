"""What checkpoints have beside what a teacher needs changes no value, and what might is refused."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from families import save_tiny
from small_models import ask, load
from tvkd_server.teachers.vllm_engine.files import refuse_other_weights, refuse_untied_head
from tvkd_shared.errors import InvalidRequest


def config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def old_pickle(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    torch.save(weights, directory / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    (directory / "model.safetensors").unlink()


def a_broken_generation_config(directory: Path) -> None:
    (directory / "generation_config.json").write_text("[1]")


def code_of_its_own_beside_a_known_type(directory: Path) -> None:
    config(directory, auto_map={"AutoModelForCausalLM": "modeling_llama.LlamaForCausalLM"})


def weights_of_parts_that_the_model_lacks(directory: Path) -> None:
    """A value head, layers for speculation, and a buffer that older versions wrote."""
    weights = load_file(directory / "model.safetensors")
    for name in ("v_head.summary.bias", "model.layers.2.mlp.up_proj.weight", "model.rotary_emb.inv_freq"):
        weights[name] = torch.ones(1)
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    "change",
    [
        old_pickle,
        a_broken_generation_config,
        code_of_its_own_beside_a_known_type,
        weights_of_parts_that_the_model_lacks,
    ],
)
def test_what_a_teacher_does_not_need_changes_no_value(change, saved, teacher, tmp_path):
    directory = shutil.copytree(saved("llama"), tmp_path / "llama")
    change(directory)
    question = ([1, 2], [[3, 4]], [1.0])
    ((own,),), ((other,),) = ask(teacher("llama"), question), ask(load(directory), question)
    np.testing.assert_array_equal(own.value(1.0), other.value(1.0))


def test_scaled_positions_in_the_old_words_are_those_in_the_new(saved, tmp_path):
    question, values = ([1, 2], [[3, 4, 5]], [1.0]), []
    for name, changes in {
        "old": {"rope_parameters": None, "rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 1e4},
        "new": {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 1e4}},
        "plain": {},
    }.items():
        directory = shutil.copytree(saved("llama"), tmp_path / name)
        config(directory, **changes)
        values.append(ask(load(directory), question)[0][0].value(1.0))
    np.testing.assert_array_equal(values[0], values[1])
    assert not np.allclose(values[1], values[2])


@pytest.mark.parametrize(
    ("name", "other"),
    [
        ("model.safetensors", "model-old.safetensors"),
        ("model.safetensors", "model.safetensors.index.json"),
        ("pytorch_model.bin", "adapter.safetensors"),
        ("pytorch_model.bin", "pytorch_model-old.bin"),
    ],
)
def test_a_file_that_vllm_would_read_and_the_id_does_not_cover_is_refused(name, other, tmp_path):
    torch.save({}, tmp_path / "pytorch_model.bin")
    save_file({}, tmp_path / "model.safetensors")
    for file in tmp_path.iterdir():
        if file.name != name:
            file.unlink()
    (tmp_path / "training_args.bin").touch()
    refuse_other_weights(tmp_path)
    (tmp_path / other).touch()
    with pytest.raises(InvalidRequest, match=f"has {other} beside {name}, and vLLM would read it; move it away"):
        refuse_other_weights(tmp_path)


def test_files_beside_those_of_an_index_are_allowed_because_vllm_keeps_to_the_index(tmp_path):
    (tmp_path / "model.safetensors.index.json").write_text('{"weight_map": {"w": "model-00001-of-00001.safetensors"}}')
    for name in ("model-00001-of-00001.safetensors", "consolidated.safetensors"):
        save_file({}, tmp_path / name)
    refuse_other_weights(tmp_path)


FORMS = {
    "safetensors": lambda weights, folder: save_file(weights, folder / "model.safetensors", {"format": "pt"}),
    "bin": lambda weights, folder: torch.save(weights, folder / "pytorch_model.bin"),
    "bin of old": lambda weights, folder: torch.save(
        weights, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_head_that_vllm_would_not_use_is_refused(form, saved, tmp_path):
    directory = shutil.copytree(saved("llama"), tmp_path / "llama")
    weights = load_file(directory / "model.safetensors")
    (directory / "model.safetensors").unlink()
    FORMS[form](weights, directory)
    refuse_untied_head(directory)
    config(directory, tie_word_embeddings=True)
    with pytest.raises(InvalidRequest, match=r"lm_head.weight that is not its embeddings.*set that to false"):
        refuse_untied_head(directory)
    weights["lm_head.weight"] = weights["model.embed_tokens.weight"].clone()
    FORMS[form](weights, directory)
    refuse_untied_head(directory)


def test_whether_the_head_is_tied_may_stand_beside_the_language_model_s_config(tmp_path):
    refuse_untied_head(save_tiny("qwen2_vl", tmp_path / "qwen2_vl"))
