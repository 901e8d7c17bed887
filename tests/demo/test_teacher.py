"""The demo's teacher: converted once, with the tokenizer its weights were trained with."""

import multiprocessing
import os
import time
from pathlib import Path

import pytest

from tvkd.demo.teacher import made_once

TEXTS = [
    "2024",
    "The price is 12.50 in 2024!",
    "I'll go  there\n\nnow",
    "café 日本",
    'x1y22  z\t\n  q " leading',
    '<|im_start|>user\nDefine the noun "dog".<|im_end|>\n<|im_start|>assistant\na dog has 9 lives<|im_end|>',
]


def make(target: Path, attempts: Path) -> None:
    with made_once(target) as making:
        if making is not None:
            (attempts / str(os.getpid())).touch()
            time.sleep(0.2)
            (making / "weights").write_text("whole")


def test_processes_that_start_at_once_make_a_folder_once(tmp_path):
    target, attempts = tmp_path / "cache" / "teacher", tmp_path / "attempts"
    attempts.mkdir()
    processes = [multiprocessing.get_context("spawn").Process(target=make, args=(target, attempts)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(attempts.iterdir())) == 1
    assert (target / "weights").read_text() == "whole"


def test_a_folder_that_failed_half_way_is_not_there(tmp_path):
    target = tmp_path / "teacher"
    with pytest.raises(OSError, match="disk full"), made_once(target) as making:
        (making / "weights").write_text("half")
        raise OSError("disk full")
    assert not target.exists()
    assert not list(tmp_path.glob(".teacher.making-*"))


def test_what_a_killed_process_left_is_removed(tmp_path):
    (tmp_path / ".teacher.making-dead").mkdir()
    with made_once(tmp_path / "teacher") as making:
        (making / "weights").write_text("whole")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == ["teacher"]


@pytest.fixture(scope="module")
def teacher():
    from tvkd.demo.teacher import teacher_directory

    return teacher_directory()


@pytest.fixture(scope="module")
def tokenizer(teacher):
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(teacher)


@pytest.mark.real
def test_digits_are_split_one_by_one(tokenizer):
    assert tokenizer.convert_ids_to_tokens(tokenizer("2024").input_ids) == list("2024")


@pytest.mark.real
@pytest.mark.parametrize("text", TEXTS)
def test_text_is_tokenised_as_llama_cpp_tokenises_it_from_the_same_file(tokenizer, text):
    llama_cpp = pytest.importorskip("llama_cpp")
    from tvkd.demo.teacher import gguf_file

    model = llama_cpp.Llama(str(gguf_file()), vocab_only=True, verbose=False)
    assert tokenizer(text).input_ids == model.tokenize(text.encode(), add_bos=False, special=True)
    assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.mark.real
def test_the_turn_ends_with_the_end_of_sequence_token_and_the_chat_template_is_kept(tokenizer):
    assert tokenizer.eos_token == "<|im_end|>"
    chat = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hello"}], tokenize=False, add_generation_prompt=True
    )
    assert chat.endswith("<|im_start|>user\nHello<|im_end|>\n<|im_start|>assistant\n")


@pytest.mark.real
def test_the_teacher_answers_a_question(teacher, tokenizer):
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    prompt = tokenizer(
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n", return_tensors="pt"
    )
    answer = model.generate(**prompt, max_new_tokens=12, do_sample=False)
    assert "Paris" in tokenizer.decode(answer[0])
