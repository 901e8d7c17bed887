"""A teacher's id changes with what can change a value, and with nothing else."""

import json
import shutil
from pathlib import Path

import pytest

import small_models
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.key import teacher_id


@pytest.fixture
def directory(saved, tmp_path) -> Path:
    return shutil.copytree(saved("llama"), tmp_path / "llama")


def load(directory, **settings):
    return small_models.load(directory, **settings).info


def edit_config(directory, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def flip_last_bit(path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_id_stays_when_the_directory_moves_and_when_only_its_name_changes(directory, tmp_path):
    before = load(directory)
    after = load(directory.rename(tmp_path / "elsewhere"), name="another name")
    assert (before.id, before.name, after.name) == (after.id, "llama", "another name")


def test_one_weight_byte_changes_the_id(directory):
    before = load(directory).id
    flip_last_bit(directory / "model.safetensors")
    assert load(directory).id != before


def test_the_dtype_changes_the_id(directory):
    own, narrow = load(directory), load(directory, dtype="bfloat16")
    assert (own.dtype, narrow.dtype) == ("float32", "bfloat16") and own.id != narrow.id


def test_a_config_entry_that_changes_a_logit_changes_the_id_and_a_note_does_not(directory):
    before = load(directory).id
    edit_config(directory, transformers_version="0.0.0", _name_or_path="/somewhere")
    assert load(directory).id == before
    edit_config(directory, rms_norm_eps=1e-3)
    assert load(directory).id != before


def test_auto_runs_a_bfloat16_checkpoint_in_float32_on_the_cpu(directory):
    edit_config(directory, dtype="bfloat16")
    assert load(directory).dtype == "float32"


def test_weights_are_hashed_once_and_again_when_the_file_changes(directory, monkeypatch):
    checkpoint = Checkpoint.find(directory)
    digest = checkpoint.weights_digest()
    with monkeypatch.context() as patch:
        patch.setattr("hashlib.file_digest", lambda *_: pytest.fail("hashed twice"))
        assert checkpoint.weights_digest() == digest
    flip_last_bit(directory / "model.safetensors")
    assert checkpoint.weights_digest() != digest


def test_a_cache_folder_that_cannot_be_written_costs_nothing_but_a_second_hashing(directory, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    checkpoint = Checkpoint.find(directory)
    assert checkpoint.weights_digest() == checkpoint.weights_digest()


def test_shards_are_all_part_of_the_digest(directory):
    from transformers import AutoModelForCausalLM

    network = AutoModelForCausalLM.from_pretrained(directory)
    (directory / "model.safetensors").unlink()
    network.save_pretrained(directory, max_shard_size="100KB")
    files = Checkpoint.find(directory).weight_files()
    assert len(files) > 1
    before = load(directory).id
    flip_last_bit(files[-1])
    assert load(directory).id != before


def test_the_description_names_limits_and_engine(directory):
    info = load(directory)
    assert (info.vocab_size, info.longest_sequence, info.engine) == (503, 96, "transformers")
    assert list(info.temperatures) == [0.1, 10.0] and info.tokenizer_digest is None


def test_the_longest_sequence_is_read_under_the_architectures_own_name(saved):
    assert load(saved("gpt2")).longest_sequence == 96


def test_the_id_of_known_weights_and_config_never_changes():
    config = {
        "model_type": "llama",
        "vocab_size": 128,
        "rope_parameters": {"rope_type": "default"},
        "dtype": "bfloat16",
    }
    weights = "0123456789abcdef" * 2
    assert teacher_id(weights, config, "float32", None) == "39fe6e91040eb44d1d41caaeca793125"
    assert teacher_id(weights, config, "bfloat16", "fp8") == "a5c27d3e59f64509709b4c4f148ed00f"
    quantized = config | {"quantization_config": {"quant_method": "gptq", "bits": 4}}
    assert (
        teacher_id(weights, quantized, "float16", quantized["quantization_config"])
        == "a8c82cfe8fa6db421e4ac480763f9ec5"
    )


def test_a_teachers_id_is_made_of_its_weights_its_config_file_its_dtype_and_its_quantisation(directory):
    checkpoint = Checkpoint.find(directory)
    expected = teacher_id(checkpoint.weights_digest(), checkpoint.config, "float32", None)
    assert load(directory).id == expected
