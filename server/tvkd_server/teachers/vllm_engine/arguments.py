"""What is refused under vLLM because it would change a value: most of vLLM's own arguments, and some positions.

What is not in the teacher's id must not change a value. Of arguments this is a list of what is allowed, because each
version of vLLM adds some.
"""

from collections.abc import Mapping
from typing import Any

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_shared.errors import InvalidRequest

# Batching, key-value cache, processes and machines, memory and loading, kernels, logs.
ALLOWED = {
    "max_num_seqs", "enable_chunked_prefill", "long_prefill_token_threshold", "async_scheduling", "watermark",
    "scheduler_reserve_full_isl", "block_size", "enable_prefix_caching", "num_gpu_blocks_override",
    "kv_cache_memory_bytes", "disable_hybrid_kv_cache_manager", "disable_sliding_window",
    "distributed_executor_backend", "distributed_timeout_seconds", "nnodes", "node_rank", "master_addr",
    "master_port", "device_ids", "numa_bind", "numa_bind_nodes", "numa_bind_cpus", "enable_expert_parallel",
    "disable_custom_all_reduce", "cpu_offload_gb", "offload_backend", "safetensors_load_strategy",
    "max_parallel_loading_workers", "use_tqdm_on_load", "attention_backend", "moe_backend", "linear_backend",
    "disable_cascade_attn", "enforce_eager", "compilation_config", "cudagraph_capture_sizes",
    "max_cudagraph_capture_size", "optimization_level", "performance_mode", "model_impl", "disable_log_stats",
    "enable_log_requests", "log_level",
}  # fmt: skip

_REASONS = {
    "pipeline_parallel_size": "its values are not tested; split by --tensor-parallel-size, across machines too",
    "data_parallel_size": "one server is one engine; start several servers, each with a store of its own",
    "enable_lora": "give the adapter's folder as --model; it is merged into its base",
    "hf_overrides": "values would no longer be the checkpoint's; edit its config.json, which the teacher's id covers",
    "kv_cache_dtype": "a rounded key-value cache changes values, and the teacher's id does not cover it",
    "speculative_config": "it speeds up generation, and tvkd generates nothing",
    "load_format": "the weights served must be those that the teacher's id was made from",
}


def refuse_what_changes_values(arguments: Mapping[str, Any]) -> None:
    """Raises InvalidRequest for the first argument that is not passed on, with the reason and what to do."""
    for name in arguments:
        if name in ServeSettings.model_fields:
            raise InvalidRequest(f"--engine-args: {name} has a flag of its own; give --{name.replace('_', '-')}")
        if name not in ALLOWED:
            reason = _REASONS.get(name, "it might change values, which the teacher's id would not show")
            raise InvalidRequest(f"--engine-args: {name} is not passed on to vLLM: {reason}")


def refuse_other_positions(checkpoint: Checkpoint, max_model_len: int | None, *, on_cpu: bool) -> None:
    """Raises InvalidRequest where vLLM computes positions in another way than transformers, so with other values.

    The check at the start would find it too, but not for a teacher that is too large to be compared.
    """
    kinds = {rope.get("rope_type") or rope.get("type") for rope in checkpoint.ropes}
    families = {checkpoint.config.get("model_type"), checkpoint.text_config.get("model_type")}
    reason, remedy = None, "serve it with --engine transformers"
    if "dynamic" in kinds:
        reason = "vLLM scales dynamic rotary positions for short sequences too"
    elif families & {"cohere2", "cohere2_moe"}:
        reason = "vLLM's attention window for Cohere 2 is one token longer than the model's"
    elif "hrm_text" in families:
        reason = "vLLM's code for HRM gives other numbers, off by 10 in a tiny model"
    elif "falcon" in families and checkpoint.config.get("alibi"):
        reason = "transformers rounds Falcon's ALiBi to bfloat16, as its makers' own code does, and vLLM does not"
    elif "longrope" in kinds:
        places = (*checkpoint.ropes, checkpoint.text_config)
        original = next(filter(None, (place.get("original_max_position_embeddings") for place in places)), None)
        if original and (max_model_len is None or max_model_len > original):
            reason = f"beyond {original} tokens vLLM scales the positions of short sequences too"
            remedy = f"set --max-model-len {original}, or {remedy}"
    elif on_cpu and (chunk := checkpoint.text_config.get("attention_chunk_size")):
        longest = max_model_len or checkpoint.text_config.get("max_position_embeddings") or chunk
        if longest > chunk:
            reason = f"vLLM's CPU build does not end attention at chunks of {chunk} tokens"
            remedy = f"set --max-model-len {chunk}, or {remedy}"
    if reason:
        raise InvalidRequest(f"{checkpoint.name} would have other values than under transformers: {reason}; {remedy}")
