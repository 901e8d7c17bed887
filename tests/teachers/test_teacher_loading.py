"""What cannot serve as a teacher is refused at load in one clear line, and a directory needs no network."""

import json
import shutil
import socket
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    BartConfig,
    BartForConditionalGeneration,
    BertConfig,
    BertLMHeadModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    LlamaModel,
)

from small_models import ask, load
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.errors import InvalidRequest, TeacherUnavailable

SMALL = LlamaConfig(vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=1, num_attention_heads=1)


def without_config(directory: Path) -> None:
    (directory / "config.json").unlink()


def without_weights(directory: Path) -> None:
    (directory / "model.safetensors").unlink()


def with_broken_weights(directory: Path) -> None:
    (directory / "model.safetensors").write_bytes(b"not safetensors at all")


def with_half_of_the_weights(directory: Path) -> None:
    path = directory / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def with_half_of_pytorch_weights(directory: Path) -> None:
    without_weights(directory)
    torch.save({"weight": torch.zeros(1000)}, directory / "pytorch_model.bin")
    (directory / "pytorch_model.bin").write_bytes((directory / "pytorch_model.bin").read_bytes()[:1000])


def with_a_pointer_of_git_lfs(directory: Path) -> None:
    (directory / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")


def with_weights_that_are_not_numbers(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def with_a_shard_less(directory: Path) -> None:
    network = AutoModelForCausalLM.from_pretrained(directory)
    without_weights(directory)
    network.save_pretrained(directory, max_shard_size="100KB")
    next(directory.glob("model-00002*")).unlink()


def with_code_among_pytorch_weights(directory: Path) -> None:
    without_weights(directory)
    torch.save({"weight": Path()}, directory / "pytorch_model.bin")


def under_other_names(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors")
    weights = {f"module.{name}": weight for name, weight in weights.items()}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def with_biases_that_the_config_does_not_name(directory: Path) -> None:
    weights = load_file(directory / "model.safetensors") | {"model.layers.1.self_attn.q_proj.bias": torch.ones(64)}
    save_file(weights, directory / "model.safetensors", {"format": "pt"})


def in_its_makers_form(directory: Path) -> None:
    without_config(directory)
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")
    (directory / "params.json").write_text("{}")


def in_its_makers_form_with_a_config(directory: Path) -> None:
    (directory / "model.safetensors").rename(directory / "consolidated.safetensors")


def of_a_trainers_shards(directory: Path) -> None:
    without_weights(directory)
    (directory / "global_step10").mkdir()


def of_a_trainers_checkpoints(directory: Path) -> None:
    (directory / "checkpoint-10").mkdir()
    (directory / "config.json").rename(directory / "checkpoint-10" / "config.json")


def that_reads_before_it_writes(directory: Path) -> None:
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32}
    BartForConditionalGeneration(BartConfig(vocab_size=64, **sizes)).save_pretrained(directory)


def with_unknown_positions(directory: Path) -> None:
    config(directory, rope_parameters={"rope_type": "fancy", "rope_theta": 1e4})


def with_words_for_sizes(directory: Path) -> None:
    config(directory, vocab_size="503")


def with_a_word_for_the_language_model(directory: Path) -> None:
    config(directory, text_config="llama")


def with_half_of_the_index(directory: Path) -> None:
    without_weights(directory)
    (directory / "model.safetensors.index.json").write_text('{"weight_map": {"lm_head.w')


def with_a_list_for_config(directory: Path) -> None:
    (directory / "config.json").write_text("[1]")


def of_another_vocabulary(directory: Path) -> None:
    config(directory, vocab_size=600)


def of_gguf(directory: Path) -> None:
    without_weights(directory)
    without_config(directory)
    (directory / "model-q4.gguf").write_bytes(b"GGUF")


def of_gguf_with_a_config(directory: Path) -> None:
    without_weights(directory)
    (directory / "model-q4.gguf").write_bytes(b"GGUF")


def a_classifier(directory: Path) -> None:
    LlamaForSequenceClassification(SMALL).save_pretrained(directory)


def a_backbone(directory: Path) -> None:
    LlamaModel(SMALL).save_pretrained(directory)


def a_backbone_that_claims_a_head(directory: Path) -> None:
    a_backbone(directory)
    config(directory, architectures=["LlamaForCausalLM"])


def an_encoder(directory: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 1}
    BertLMHeadModel(BertConfig(vocab_size=64, initializer_range=0.3, **sizes)).save_pretrained(directory)


def of_a_type_with_its_own_code(directory: Path) -> None:
    config(directory, model_type="home-made", auto_map={"AutoModelForCausalLM": "modeling.HomeMade"})


def quantised_without_the_library(directory: Path) -> None:
    config(directory, quantization_config={"quant_method": "gptq", "bits": 4})


def config(directory: Path, **changes) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_config, "no config.json"),
        (without_weights, "no weights"),
        (with_broken_weights, "model.safetensors is no safetensors file, or not all of one; download or copy it again"),
        (with_half_of_the_weights, "model.safetensors has 253,360 bytes, and its header says 506,720"),
        (with_half_of_pytorch_weights, "pytorch_model.bin is no file of PyTorch weights, or not all of one"),
        (with_a_pointer_of_git_lfs, "model.safetensors is a pointer of Git LFS.*git lfs pull"),
        (with_weights_that_are_not_numbers, "not all finite; its weights are damaged"),
        (with_a_shard_less, "lacks model-00002-of-0000.* of model.safetensors.index.json; copy it too"),
        (with_code_among_pytorch_weights, "more than tensors, and no code is run; save it as safetensors"),
        (under_other_names, "no weights for lm_head.weight and 20 more, and unknown ones such as module.lm_head"),
        (with_biases_that_the_config_does_not_name, "no use of model.layers.1.self_attn.q_proj.bias, so config.json"),
        (in_its_makers_form, "no config.json.*params.json, its makers' own form; get the same model in Hugging Face's"),
        (in_its_makers_form_with_a_config, "no weights.*consolidated.safetensors, its makers' own form"),
        (of_a_trainers_shards, "no weights.*global_step10, the shards of a DeepSpeed.*zero_to_fp32"),
        (of_a_trainers_checkpoints, "no config.json.*checkpoint-10/config.json, a folder that may be the checkpoint"),
        (that_reads_before_it_writes, "BartForConditionalGeneration, not a causal LM such as BartForCausalLM"),
        (with_unknown_positions, "'fancy' is not there, or not known"),
        (with_words_for_sizes, "'vocab_size'.* expected int, got str"),
        (with_a_word_for_the_language_model, "does not load as a teacher"),
        (with_half_of_the_index, "model.safetensors.index.json is not JSON"),
        (with_a_list_for_config, "config.json holds a list and not an object"),
        (of_another_vocabulary, r"lm_head.weight is \[503, 64\] in the weights and \[600, 64\] by config.json"),
        (of_gguf, "model-q4.gguf is a GGUF file.*dequantize=True.*save_pretrained"),
        (of_gguf_with_a_config, "no weights.*model-q4.gguf, a GGUF file, which tvkd does not read"),
        (a_classifier, "LlamaForSequenceClassification, not a causal LM"),
        (a_backbone, "LlamaModel, not a causal LM"),
        (a_backbone_that_claims_a_head, "no weights for lm_head.weight"),
        (an_encoder, "BertLMHeadModel is not causal"),
        (of_a_type_with_its_own_code, "home-made.*its own code is never run"),
        (quantised_without_the_library, "does not load as a teacher: .*(optimum|gptq|GPTQ)"),
    ],
)
def test_a_directory_that_cannot_serve_is_refused_in_one_line(spoil, says, saved, tmp_path):
    directory = shutil.copytree(saved("llama"), tmp_path / "llama")
    spoil(directory)
    with pytest.raises(InvalidRequest, match=says) as caught:
        load(directory)
    assert "\n" not in str(caught.value)


def test_a_gguf_file_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF")
    with pytest.raises(InvalidRequest, match=r"GGUF.*save_pretrained"):
        Checkpoint.find(tmp_path / "model.gguf")


@pytest.mark.parametrize("model", [Path("missing"), "/no/such/directory", "./missing", "a/b/c"])
def test_a_directory_that_is_not_there_is_refused_without_asking_the_hub(model):
    with pytest.raises(InvalidRequest, match="no directory"):
        Checkpoint.find(model)


@pytest.mark.parametrize("wrong", [{"dtype": "int8"}, {"device": "abacus"}])
def test_a_wrong_setting_is_refused(wrong, saved):
    with pytest.raises(InvalidRequest, match=next(iter(wrong.values()))):
        load(saved("llama"), **wrong)


def test_a_directory_is_loaded_without_a_socket(saved, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: pytest.fail("a name was looked up"))
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("a socket was connected"))
    load(saved("mistral"))


def test_attention_is_eager_where_its_logits_are_capped(teacher):
    assert teacher("gemma2")._pass._backbone._forward.config._attn_implementation == "eager"
    assert teacher("llama")._pass._backbone._forward.config._attn_implementation == "sdpa"


def test_values_that_are_not_finite_are_no_answer(saved):
    llama = load(saved("llama"))
    with torch.no_grad():
        llama._pass._backbone._forward.norm.weight[0] = float("inf")
    with pytest.raises(TeacherUnavailable, match=r"not all finite$"):
        ask(llama, ([1, 2], [[3]], [1.0]))


def test_logits_that_overflow_float16_are_refused_with_the_dtypes_that_hold_them(saved, tmp_path):
    directory = shutil.copytree(saved("llama"), tmp_path / "llama")
    weights = load_file(directory / "model.safetensors")
    weights["lm_head.weight"] *= 1e5 / float(weights["lm_head.weight"].abs().max())
    save_file(weights, directory / "model.safetensors", {"format": "pt"})
    load(directory)
    with pytest.raises(InvalidRequest, match="overflow float16: serve it in bfloat16 or float32"):
        load(directory, dtype="float16")
