"""Tiny random models of every family that transformers knows, and what an engine makes of each: `docs/families.md`.

    python tests/families.py [--engine vllm] [FAMILY …]

An engine's numbers are compared with full logits of the sequence alone, from the checkpoint's own class in float32.
Each outcome is written into the page's table as soon as it is known; what was not run stays as it was.
"""

import argparse
import multiprocessing
import tempfile
import warnings
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from transformers import PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)

from small_models import LONGEST, VOCABULARY, Expected, ask_once, save_with_biases, tokens
from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.loading import load_teacher
from tvkd_shared.errors import TVKDError
from tvkd_shared.record import Record

IMAGES = ("gemma3", "gemma4", "idefics3", "internvl", "llama4", "llava", "mistral3", "mllama", "qwen2_5_vl", "qwen2_vl",
          "qwen3_5", "qwen3_5_moe", "qwen3_vl", "smolvlm")  # fmt: skip
"""Families whose checkpoints read images too; only their language model is served."""

MOST_PARAMETERS = 30_000_000

# By the many names that configurations have for the same thing; each takes those that it knows.
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "initializer_range": 0.3, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "hidden_size": 64, "n_embd": 64, "d_model": 64, "dim": 64, "num_hidden_layers": 2, "n_layer": 2, "n_layers": 2,
    "num_layers": 2, "decoder_layers": 2, "num_attention_heads": 2, "n_head": 2, "n_heads": 2,
    "decoder_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32, "intermediate_size": 96, "ffn_dim": 96,
    "decoder_ffn_dim": 96, "max_position_embeddings": LONGEST, "n_positions": LONGEST, "max_seq_len": LONGEST,
    "max_sequence_length": LONGEST, "sliding_window": 8, "attention_window": 8, "word_embed_proj_dim": 64,
    "num_experts": 4, "num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1,
    "moe_intermediate_size": 32, "shared_expert_intermediate_size": 32, "intermediate_size_mlp": 96, "n_group": 1,
    "topk_group": 1, "first_k_dense_replace": 1, "kv_lora_rank": 512, "q_lora_rank": 32, "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 16, "v_head_dim": 32, "state_size": 8, "mamba_d_state": 8, "mamba_d_head": 32,
    "mamba_n_heads": 4, "mamba_d_ssm": 128, "mamba_num_heads": 4, "mamba_head_dim": 32, "mamba_chunk_size": 8,
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    "attention_chunk_size": 128, "global_head_dim": 32, "num_global_key_value_heads": 1, "num_kv_shared_layers": 0,
    "hidden_size_per_layer_input": 0, "vocab_size_per_layer_input": VOCABULARY,
}  # fmt: skip
IMAGE_SIZES: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "attention_heads": 2,
    "image_size": 28, "patch_size": 14, "depth": 1, "num_heads": 2, "out_hidden_size": 64, "embed_dim": 32,
    "hidden_dim": 32, "num_global_layers": 1, "intermediate_layers_indices": [0], "deepstack_visual_indexes": [0],
    "projector_input_dim": 32, "projector_output_dim": 32,
}  # fmt: skip
_MROPE = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 6, 6]}
OTHERWISE: dict[str, dict[str, Any]] = {
    "bamba": {"attn_layer_indices": [1]},
    "codegen": {"n_head": 4, "num_attention_heads": 4, "rotary_dim": 8},
    "gpt_neo": {"attention_types": [[["global"], 2]]},
    "deepseek_v3": {"topk_method": "noaux_tc"},  # which checkpoints have, and transformers' own class does not
    "dbrx": {
        "attn_config": {"kv_n_heads": 1, "clip_qkv": 8, "rope_theta": 1e4},
        "ffn_config": {"ffn_hidden_size": 96, "hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2},
    },
    # These are in published files too, and not in transformers' own classes.
    "glm4_moe": {"head_dim": 32},
    "glm4_moe_lite": {"first_k_dense_replace": 1},
    "lfm2": {"block_dim": 64},
    "longcat_flash": {"mla_scale_q_lora": True, "mla_scale_kv_lora": True},
    "minimax_m2": {"rotary_dim": 16},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "nemotron_h": {"n_groups": 1},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2},
    "mamba2": {"num_heads": 4, "head_dim": 32, "n_groups": 1},
    "diffllama": {"num_key_value_heads": 2},
    "gptj": {"rotary_dim": 16},
    "granitemoehybrid": {"layer_types": ["mamba", "attention"]},
    "falcon_h1": {"mamba_n_heads": 2, "mamba_d_ssm": 64},
    "gemma4": {"layer_types": ["sliding_attention", "full_attention"], "num_experts": None},
    "gemma4_text": {"num_experts": None},
    "mllama": {"num_hidden_layers": 3, "cross_attention_layers": [1], "vision_config": {"vision_output_dim": 64}},
    "llama4": {"num_experts_per_tok": 1, "vision_config": {"vision_output_dim": 32}},
    "llama4_text": {"num_experts_per_tok": 1},
    "qwen2_vl": {"rope_parameters": _MROPE},
    "qwen2_5_vl": {"rope_parameters": _MROPE},
    "qwen3_vl": {"rope_parameters": _MROPE},
    "qwen3_5": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_5_moe": {"layer_types": ["linear_attention", "full_attention"]},
    "zamba": {"layers_block_type": ["mamba", "hybrid", "hybrid"], "num_hidden_layers": 3},
    "zamba2": {"layers_block_type": ["mamba", "hybrid"], "hybrid_layer_ids": [1]},
    "zaya": {"num_experts_per_tok": 1},
}


def tiny_config(family: str) -> PreTrainedConfig:
    """The family's configuration with small sizes. A vision tower stays, as small, because checkpoints have one."""
    default, more = CONFIG_MAPPING[family](), OTHERWISE.get(family, {})
    text = getattr(default, "text_config", None)
    if text is None:
        return CONFIG_MAPPING[family](**_picked(default, SIZES | more) | more)
    images = getattr(default, "vision_config", None)
    if images is None and family in IMAGES:
        images = default.sub_configs["vision_config"]()
    changes: dict[str, Any] = {"text_config": type(text)(**_picked(text, SIZES | more)).to_dict()}
    if images is not None:
        changes["vision_config"] = images.to_dict() | _picked(images, IMAGE_SIZES | more.get("vision_config", {}))
    if hasattr(default, "audio_config"):
        changes["audio_config"] = None
    # Places of images in a text have ids too, which have to lie in the vocabulary.
    places = [name for name, value in default.to_dict().items() if "token_i" in name and isinstance(value, int)]
    return CONFIG_MAPPING[family](**changes, **dict.fromkeys(places, VOCABULARY - 3))


def _picked(default: PreTrainedConfig, sizes: dict[str, Any]) -> dict[str, Any]:
    known = default.to_dict()
    picked = {name: size for name, size in sizes.items() if name in known or name in default.attribute_map}
    if "kv_lora_rank" in known:  # latent attention: as many key heads as heads, and positions in a part of each
        picked |= {"head_dim": SIZES["qk_rope_head_dim"], "num_key_value_heads": 2}
    kinds = known.get("layer_types")
    if kinds and "layer_types" not in picked:
        picked["layer_types"] = sorted(set(kinds), key=kinds.index)[:2] * 2
        picked["layer_types"] = picked["layer_types"][: picked.get("num_hidden_layers", 2)]
    return picked


def save_tiny(family: str, directory: Path) -> Path:
    """Save a random float32 model of the family whose logits are spread. Raises ValueError when it would be large."""
    tables = (MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
    names = next(table[family] for table in (tables if family in IMAGES else tables[::-1]) if family in table)
    model_class = getattr(transformers, names if isinstance(names, str) else names[0])
    config = tiny_config(family)
    with torch.device("meta"):
        size = sum(weight.numel() for weight in model_class(config).parameters())
    if size > MOST_PARAMETERS:
        raise ValueError(f"{size / 1e6:,.0f} million parameters")
    torch.manual_seed(0)
    return save_with_biases(model_class(config), directory)


QUESTIONS = [
    (tokens(prompt, seed), [tokens(length, 50 + seed + length) for length in lengths], [1.0])
    for seed, (prompt, lengths) in enumerate([(5, (7, 1)), (30, (40, 3)), (1, (2,)), (50, (20,)), (9, (9,))] * 2)
]


def worst_error(directory: Path, records: list[list[Record]]) -> float:
    """The largest difference of any number from that of the checkpoint's own class, one sequence a forward pass."""
    config = transformers.AutoConfig.from_pretrained(directory)
    # transformers' other ways of attention drop the cap that Gemma 2 puts on its logits.
    capped = getattr(config.get_text_config(decoder=True), "attn_logit_softcapping", None)
    model = getattr(transformers, config.architectures[0]).from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager" if capped else None
    )
    model.eval()
    worst = 0.0
    for (prompt, completions, _), answers in zip(QUESTIONS, records, strict=True):
        for completion, record in zip(completions, answers, strict=True):
            with torch.no_grad():
                logits_LV = model(input_ids=torch.tensor([[*prompt, *completion]]), use_cache=False).logits[0]
            expected = Expected(logits_LV[len(prompt) - 1 :, :VOCABULARY].double().numpy(), completion)
            for ours, theirs in (
                (record.value(1.0), expected.values(1.0)),
                (record.action_logits, expected.action_logits),
                (record.entropies, expected.entropies),
            ):
                worst = max(worst, float(np.abs(ours - theirs).max()))
    return worst


def outcome(family: str, engine: str) -> str:
    """What the engine makes of the family: the worst error, or the line that refuses it."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            directory = save_tiny(family, Path(folder) / family)
        except Exception as error:
            return f"no tiny model: {str(error).strip().partition(chr(10))[0] or type(error).__name__}"
        settings = ServeSettings(model=str(directory), engine=engine, **({"device": "cpu"} if engine != "vllm" else {}))
        try:
            teacher = load_teacher(settings)
        except TVKDError as error:
            return f"refused: {error}".replace(str(directory), family)

        return f"{worst_error(directory, ask_once(teacher, QUESTIONS)):.0e}"


def outcome_in_its_own_process(family: str, engine: str) -> str:
    """The same of an engine that may take its process with it."""
    results, sends = _FORKS.Pipe(duplex=False)
    process = _FORKS.Process(target=_send_outcome, args=(sends, family, engine))
    process.start()
    sends.close()
    try:
        return results.recv() if results.poll(600) else "no answer in 600 s"
    except EOFError:
        process.join()
        return f"exit code {process.exitcode}"
    finally:
        process.kill()


def _send_outcome(sends: Connection, family: str, engine: str) -> None:
    quietly()
    sends.send(outcome(family, engine))


def quietly() -> None:
    transformers.logging.set_verbosity_error()
    warnings.simplefilter("ignore")


_FORKS = multiprocessing.get_context("forkserver")

PAGE = Path(__file__).parent.parent / "docs" / "families.md"
COLUMNS = ("transformers", "vllm")


def write_into_page(page: Path, family: str, engine: str, line: str) -> None:
    """Set one cell of the table that the page ends with. Other cells stay, because a whole run takes hours."""
    text, rule, table = page.read_text().rpartition("|---|---|---|\n")
    rows = {
        name.strip(" `"): [cell.strip() for cell in cells]
        for _, name, *cells, _ in (row.split("|") for row in table.splitlines())
    }
    rows.setdefault(family, ["", ""])[COLUMNS.index(engine)] = line
    page.write_text(text + rule + "".join(f"| `{name}` | {' | '.join(rows[name])} |\n" for name in sorted(rows)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("families", nargs="*", help="default: every causal LM, and some that read images")
    parser.add_argument("--engine", default="transformers", choices=COLUMNS)
    arguments = parser.parse_args()
    # Processes are forked from one that has made the imports, which take longer than a tiny model.
    _FORKS.set_forkserver_preload(["tvkd_server.teachers.vllm_teacher", "vllm.v1.engine.async_llm"])
    for family in arguments.families or sorted({*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *IMAGES}):
        one = outcome_in_its_own_process if arguments.engine == "vllm" else outcome
        line = one(family, arguments.engine).replace("|", "/")
        print(f"| {family} | {line} |", flush=True)
        write_into_page(PAGE, family, arguments.engine, line)


if __name__ == "__main__":
    quietly()
    main()
