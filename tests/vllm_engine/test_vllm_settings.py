"""What the vLLM engine is asked for: flags of one engine, refusals in one line, and a server without vLLM."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tvkd_server.settings import ServeSettings
from tvkd_server.teachers.checkpoint import Checkpoint
from tvkd_server.teachers.vllm_engine.arguments import refuse_other_positions, refuse_what_changes_values
from tvkd_shared.errors import InvalidRequest
from tvkd_shared.settings import from_command_line


@pytest.mark.parametrize(
    ("engine", "flags"),
    [
        ("vllm", ["--device", "cpu"]),
        ("vllm", ["--max-batch-tokens", "10"]),
        ("transformers", ["--tensor-parallel-size", "2"]),
        ("transformers", ["--gpu-memory-utilization", "0.5"]),
        ("transformers", ["--max-model-len", "10"]),
        ("transformers", ["--quantization", "fp8"]),
        ("transformers", ["--max-num-batched-tokens", "10"]),
        ("transformers", ["--engine-args", "{}"]),
    ],
)
def test_a_flag_of_the_other_engine_is_refused_and_both_are_named(engine, flags):
    from_command_line(
        ServeSettings, ["--model", "m", "--engine", "vllm" if engine == "transformers" else "transformers", *flags]
    )
    with pytest.raises(InvalidRequest, match=rf"{flags[0]} belongs to .* and this is --engine {engine}$"):
        from_command_line(ServeSettings, ["--model", "m", "--engine", engine, *flags])


@pytest.mark.parametrize(
    ("name", "words"),
    {
        "hf_overrides": "config.json",
        "enable_lora": "merge",
        "pipeline_parallel_size": "--tensor-parallel-size",
        "kv_cache_dtype": "changes values",
        "load_format": "weights",
        "dtype": "--dtype",
        "max_model_len": "--max-model-len",
        "tomorrow": "might change values",
    }.items(),
)
def test_an_engine_argument_that_could_change_a_value_is_refused_with_what_to_do(name, words):
    with pytest.raises(InvalidRequest, match=words) as refusal:
        refuse_what_changes_values({"enforce_eager": True, name: 1})
    assert name in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("config", "max_model_len", "words"),
    [
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
            96,
            "short sequences too; serve it with --engine",
        ),
        ({"rope_scaling": {"type": "dynamic", "factor": 4.0}}, None, "dynamic"),
        ({"text_config": {"rope_parameters": {"rope_type": "dynamic"}}}, None, "dynamic"),
        ({"rope_parameters": {"full_attention": {"rope_type": "dynamic"}, "sliding_attention": {}}}, None, "dynamic"),
        ({"model_type": "cohere2", "sliding_window": 8}, None, "window for Cohere 2 is one token longer"),
        ({"model_type": "cohere2_vision", "text_config": {"model_type": "cohere2"}}, None, "window for Cohere 2"),
        ({"model_type": "cohere2_moe"}, None, "window for Cohere 2"),
        ({"model_type": "hrm_text"}, None, "off by 10"),
        ({"model_type": "falcon", "alibi": True}, None, "ALiBi to bfloat16"),
        ({"rope_scaling": {"type": "longrope"}, "original_max_position_embeddings": 24}, None, "--max-model-len 24"),
        (
            {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 24}},
            25,
            "beyond 24 tokens",
        ),
        ({"attention_chunk_size": 8192, "max_position_embeddings": 131072}, None, "--max-model-len 8192"),
        ({"attention_chunk_size": 8192, "max_position_embeddings": 131072}, 8193, "chunks of 8192 tokens"),
    ],
)
def test_positions_that_vllm_computes_otherwise_are_refused(config, max_model_len, words):
    with pytest.raises(InvalidRequest, match=words) as refusal:
        refuse_other_positions(Checkpoint(Path("teacher"), "teacher", config), max_model_len, on_cpu=True)
    assert "\n" not in str(refusal.value)


def test_positions_within_the_original_length_are_served():
    longrope = {"rope_parameters": {"rope_type": "longrope", "original_max_position_embeddings": 24}}
    refuse_other_positions(Checkpoint(Path("teacher"), "teacher", longrope), 24, on_cpu=True)
    yarn = {"rope_parameters": {"rope_type": "yarn"}}
    refuse_other_positions(Checkpoint(Path("teacher"), "teacher", yarn), None, on_cpu=True)
    chunked = Checkpoint(Path("teacher"), "teacher", {"attention_chunk_size": 8192, "max_position_embeddings": 131072})
    refuse_other_positions(chunked, 8192, on_cpu=True)
    refuse_other_positions(chunked, None, on_cpu=False)


PRETEND = """
import importlib.metadata
real = importlib.metadata.version
def version(name):
    if name.startswith("vllm"):
        {outcome}
    return real(name)
importlib.metadata.version = version
"""


def serve(tmp_path, *flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "tvkd.cli", "serve", "--port", "0", "--store", tmp_path / "values", *flags],
        capture_output=True, text=True, timeout=250, env=os.environ | environment,
    )  # fmt: skip


@pytest.mark.parametrize(
    ("outcome", "message"),
    [
        ("raise importlib.metadata.PackageNotFoundError(name)", "vLLM is not installed; run: pip install"),
        ("return '0.99.0'", "vllm 0.99.0 is not supported, its private interface moves; install vllm<"),
    ],
)
def test_a_server_without_a_supported_vllm_says_in_one_line_what_to_install(outcome, message, tiny_teacher, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(PRETEND.format(outcome=outcome))
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = serve(tmp_path, "--model", tiny_teacher, "--engine", "vllm", PYTHONPATH=path)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 2 and last.startswith(f"tvkd serve: {message}")


def test_serving_with_transformers_imports_no_vllm(tiny_teacher, tmp_path):
    code = f"""
import sys
from tvkd_server.settings import ServeSettings
from tvkd_server import serve
from tvkd_server.teachers.loading import load_teacher
load_teacher(ServeSettings(model={str(tiny_teacher)!r}, device="cpu"))
assert not [name for name in sys.modules if name == "vllm" or name.startswith("vllm.")]
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
