"""A tiny student and pairs for it."""

from pathlib import Path

import pytest
import torch
from datasets import Dataset
from runs import SMALL, rows
from teacher_source import TeacherSource
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from tvkd_client import TVKDConfig, TVKDTrainer


@pytest.fixture(scope="session")
def student(tiny_teacher, tmp_path_factory) -> Path:
    """A random Llama smaller than the teacher, with the teacher's tokenizer."""
    directory = tmp_path_factory.mktemp("student") / "tiny-student"
    torch.manual_seed(1)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=128,
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


@pytest.fixture
def pairs() -> Dataset:
    return Dataset.from_list(rows(8))


@pytest.fixture
def source(tiny_teacher) -> TeacherSource:
    return TeacherSource(tiny_teacher, (1.0, 2.0))


@pytest.fixture
def make_trainer(student, pairs, tmp_path):
    """A TVKDTrainer of the tiny student; settings by name, those of SMALL by default."""

    def make(*, source=None, train_dataset=None, trainer=TVKDTrainer, config=TVKDConfig, model=None, **settings):
        extra = {"source": source} if issubclass(trainer, TVKDTrainer) else {}
        dpo = {name: settings.pop(name) for name in ("eval_dataset", "peft_config") if name in settings}
        return trainer(
            str(model or student),
            args=config(str(settings.pop("output_dir", tmp_path / "out")), **{**SMALL, **settings}),
            train_dataset=pairs if train_dataset is None else train_dataset,
            **dpo,
            **extra,
        )

    return make
