"""Real parts for every test: a small random teacher and a smaller student on disk, and a real server process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from running_server import WORDS, RunningServer, start_server

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

CHAT_TEMPLATE = (
    "{% for message in messages %}<{{ message['role'] }}> {{ message['content'] }} <eos>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant> {% endif %}"
)


@pytest.fixture(scope="session")
def tiny_teacher(tmp_path_factory) -> Path:
    """A random Llama of two layers over 128 words, float32, with a word tokenizer and a chat template."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    directory = tmp_path_factory.mktemp("teacher") / "tiny-llama"
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    )
    model.save_pretrained(directory)
    special = ["<unk>", "<bos>", "<eos>", "<pad>", "<user>", "<assistant>", "<system>", "\n"]
    vocabulary = {word: index for index, word in enumerate([*special, *(f"w{i}" for i in range(len(special), WORDS))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<bos>", eos_token="<eos>", pad_token="<pad>",
        additional_special_tokens=["<user>", "<assistant>", "<system>", "\n"], chat_template=CHAT_TEMPLATE,
        model_max_length=256,
    ).save_pretrained(directory)  # fmt: skip
    return directory


@pytest.fixture(scope="session")
def student(tiny_teacher, tmp_path_factory) -> Path:
    """A random Llama smaller than the teacher, with the teacher's tokenizer."""
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    directory = tmp_path_factory.mktemp("student") / "tiny-student"
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=WORDS,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=256,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
        )
    ).save_pretrained(directory)
    AutoTokenizer.from_pretrained(tiny_teacher).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def server(tiny_teacher, tmp_path_factory) -> Iterator[RunningServer]:
    """One real server for the session. Tests share its store: use sequences of your own when you count."""
    running = start_server(tiny_teacher, tmp_path_factory.mktemp("store") / "values")
    yield running
    running.kill()


@pytest.fixture(scope="session")
def byte_teacher(tmp_path_factory) -> Path:
    """A random Llama with a byte-level tokenizer, which divides text otherwise than the other models' tokenizers."""
    from text_tokenizers import byte_level

    return _save_with(byte_level(), tmp_path_factory.mktemp("teacher") / "byte-llama", hidden_size=64)


@pytest.fixture(scope="session")
def merged_student(tmp_path_factory) -> Path:
    """A random Llama whose tokenizer merges characters, with bytes for unknown ones."""
    from text_tokenizers import merged

    return _save_with(merged(), tmp_path_factory.mktemp("student") / "merged-student", hidden_size=32)


def _save_with(tokenizer, directory: Path, hidden_size: int) -> Path:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(hidden_size)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=256,
        initializer_range=0.3,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=[tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|end|>")],
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory
