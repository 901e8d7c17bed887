"""A PEFT adapter is served as the model that PEFT makes of it and its base, or one line says what lacks."""

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch
from peft import IA3Config, LoraConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from small_models import VOCABULARY, Reference, ask, assert_agrees, load, save, tokens
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.ending import declared_eos
from tvkd_shared.errors import InvalidRequest

ATTENTION = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def adapt(directory: Path, base: Path, config=None, *, rows: int = VOCABULARY) -> Path:
    """Save an adapter of the base whose weights are all random, with so many rows of embeddings."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if rows != VOCABULARY:
        model.resize_token_embeddings(rows, mean_resizing=False)
    torch.manual_seed(7)
    model = get_peft_model(model, config or LoraConfig(task_type="CAUSAL_LM", **ATTENTION))
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.normal_(std=0.2)
    model.save_pretrained(directory)
    return directory


def expected(adapter: Path, *, rows: int = VOCABULARY) -> Reference:
    """The adapter beside its base, as PEFT runs them: nothing is merged."""
    from peft import PeftModel

    config = json.loads((adapter / "adapter_config.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(config["base_model_name_or_path"], attn_implementation="eager")
    if rows != VOCABULARY:
        model.resize_token_embeddings(rows, mean_resizing=False)
    reference = Reference(Path(config["base_model_name_or_path"]))
    reference.model = PeftModel.from_pretrained(model, adapter).eval()
    return reference


def lora(**more) -> LoraConfig:
    return LoraConfig(task_type="CAUSAL_LM", **ATTENTION | more)


@pytest.mark.parametrize(
    ("config", "tied", "rows"),
    [
        (lora(), False, VOCABULARY),
        (lora(use_dora=True, use_rslora=True), False, VOCABULARY),
        (lora(modules_to_save=["lm_head"]), False, VOCABULARY),
        (lora(), True, VOCABULARY),
        (lora(target_modules=["q_proj", "lm_head"]), True, VOCABULARY),
        (lora(target_modules=["q_proj", "embed_tokens"], ensure_weight_tying=True), True, VOCABULARY),
        (lora(modules_to_save=["embed_tokens", "lm_head"]), False, VOCABULARY + 3),
        (IA3Config(task_type="CAUSAL_LM", target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
         False, VOCABULARY),
    ],
    ids=["lora", "dora", "head", "tied", "tied-head", "tied-table", "added-tokens", "ia3"],
)  # fmt: skip
def test_an_adapter_is_served_as_the_model_that_peft_makes_of_it(config, tied, rows, tmp_path):
    base = save("llama", tmp_path / "base", tie_word_embeddings=tied)
    adapter = adapt(tmp_path / "tuned", base, config, rows=rows)
    teacher = load(adapter)
    prompt, completion = tokens(9, 1), [*tokens(20, 2), rows - 1]
    ((record,),) = ask(teacher, (prompt, [completion], [1.0, 2.0]))
    assert_agrees(record, expected(adapter, rows=rows)(prompt, completion))
    kept_tied = json.loads((Checkpoint.find(adapter).directory / "config.json").read_text())["tie_word_embeddings"]
    assert kept_tied == (tied and "lm_head" not in config.target_modules)
    assert (teacher.info.name, teacher.info.vocab_size) == ("tuned", rows)
    ((plain,),) = ask(load(base), (prompt, [completion[:-1]], [1.0]))
    assert abs(plain.value(1.0) - record.value(1.0)[:-1]).max() > 0.01  # the adapter says something of its own


def test_an_adapter_of_an_adapter_is_merged_twice(tmp_path):
    first = adapt(tmp_path / "sft", save("llama", tmp_path / "base"))
    whole = Checkpoint.find(first).directory
    second = adapt(tmp_path / "dpo", whole)
    config = json.loads((second / "adapter_config.json").read_text())
    (second / "adapter_config.json").write_text(json.dumps(config | {"base_model_name_or_path": str(first)}))
    again = adapt(tmp_path / "same", whole)
    assert load(second).info.id == load(again).info.id


def test_it_is_merged_once_and_again_when_something_changed(tmp_path):
    adapter = adapt(tmp_path / "tuned", save("llama", tmp_path / "base"))
    first = Checkpoint.find(adapter)
    made = (first.directory / "model.safetensors").stat().st_mtime_ns
    assert Checkpoint.find(adapter).directory == first.directory
    assert (first.directory / "model.safetensors").stat().st_mtime_ns == made
    (adapter / "README.md").write_text("words about it")
    assert Checkpoint.find(adapter).directory == first.directory
    adapt(tmp_path / "tuned", tmp_path / "base", lora(r=2))
    second = Checkpoint.find(adapter)
    assert second.weights_digest() != first.weights_digest()
    base = tmp_path / "base" / "model.safetensors"
    save_file({name: 2 * weight for name, weight in load_file(base).items()}, base, {"format": "pt"})
    assert Checkpoint.find(adapter).directory != second.directory
    assert not list(first.directory.parent.glob("draft-*"))


def test_the_tokenizer_is_the_adapter_s_own_and_else_the_base_s(tiny_teacher, tmp_path):
    adapter = adapt(tmp_path / "tuned", tiny_teacher)
    base = load(tiny_teacher).info
    assert load(adapter).info.tokenizer_digest == base.tokenizer_digest
    for file in tiny_teacher.glob("tokenizer*"):
        (adapter / file.name).write_bytes(file.read_bytes())
    (adapter / "chat_template.jinja").write_text("{{ messages[0]['content'] }}")
    assert load(adapter).info.chat_template_digest not in (None, base.chat_template_digest)


@pytest.mark.parametrize("named", ["generation_config.json", "config.json"])
def test_a_completion_ends_where_one_of_the_base_ends(named, tiny_teacher, tmp_path):
    base = Path(shutil.copytree(tiny_teacher, tmp_path / "base"))
    (base / "generation_config.json").unlink(missing_ok=True)
    settings = json.loads((base / named).read_text()) if (base / named).exists() else {}
    (base / named).write_text(json.dumps(settings | {"eos_token_id": [2, 7]}))
    assert declared_eos(Checkpoint.find(adapt(tmp_path / "tuned", base)).directory) == [2, 7]


def changed(adapter: Path, **settings) -> None:
    path = adapter / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


def without_weights(adapter: Path, base: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def without_a_base(adapter: Path, base: Path) -> None:
    changed(adapter, base_model_name_or_path=None)


def with_a_base_elsewhere(adapter: Path, base: Path) -> None:
    changed(adapter, base_model_name_or_path="/gone/base")


def with_a_base_on_the_hub(adapter: Path, base: Path) -> None:
    changed(adapter, base_model_name_or_path="some-team/their-base")


def for_classes(adapter: Path, base: Path) -> None:
    changed(adapter, task_type="SEQ_CLS")


def with_broken_settings(adapter: Path, base: Path) -> None:
    (adapter / "adapter_config.json").write_text("{")


def with_a_quantised_base(adapter: Path, base: Path) -> None:
    path = base / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"quantization_config": {"quant_method": "gptq"}}))


def with_a_wider_base(adapter: Path, base: Path) -> None:
    save("llama", base, hidden_size=128)


def with_a_shallower_base(adapter: Path, base: Path) -> None:
    save("llama", base, num_hidden_layers=1)


def with_a_deeper_base(adapter: Path, base: Path) -> None:
    save("llama", base, num_hidden_layers=3)


def with_numbers_that_are_none(adapter: Path, base: Path) -> None:
    path = adapter / "adapter_model.safetensors"
    save_file({name: weight * float("nan") for name, weight in load_file(path).items()}, path)


def of_prompts(adapter: Path, base: Path) -> None:
    adapt(adapter, base, PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (without_weights, "no weights of the adapter"),
        (without_a_base, "does not name the base model"),
        (with_a_base_elsewhere, "belongs to base model /gone/base, which is no folder here"),
        (with_a_base_on_the_hub, "belongs to base model some-team/their-base, which is no folder here"),
        (for_classes, "is for SEQ_CLS, not for a causal LM"),
        (with_broken_settings, "adapter_config.json is not JSON"),
        (with_a_quantised_base, "which is quantised"),
        (with_a_wider_base, "cannot be merged into .*base: "),
        (with_a_shallower_base, "does not fit .*base: 4 of its weights"),
        (with_a_deeper_base, "does not fit .*base: 4 of its weights"),
        (with_numbers_that_are_none, "cannot be merged into .*base: "),
        (of_prompts, "is of type PROMPT_TUNING, which is no change of weights"),
    ],
)
def test_an_adapter_that_cannot_be_merged_is_refused_in_one_line(spoil, says, tmp_path):
    base = save("llama", tmp_path / "base")
    adapter = adapt(tmp_path / "tuned", base)
    spoil(adapter, base)
    with pytest.raises(InvalidRequest, match=says) as caught:
        load(adapter)
    assert "\n" not in str(caught.value)


def test_without_peft_one_line_says_what_to_install(tmp_path, monkeypatch):
    adapter = adapt(tmp_path / "tuned", save("llama", tmp_path / "base"))
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(InvalidRequest, match="merging it needs PEFT: pip install peft"):
        load(adapter)
