"""Answers to MT-bench's questions, in the file format of FastChat's own judge."""

import json
import time
import uuid
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from transformers import GenerationConfig, set_seed

from tvkd_shared.errors import InvalidRequest

TEMPERATURES = {"writing": 0.7, "roleplay": 0.7, "stem": 0.1, "humanities": 0.1}
"""Those of FastChat (Zheng et al. 2023); the categories not named here are answered greedily."""


def answer(
    model: Any, tokenizer: Any, questions: str, output: Path, *, name: str, max_new_tokens: int, seed: int
) -> int:
    """Write an answer of all turns for each line of a `question.jsonl`. Returns how many questions there were.

    Raises InvalidRequest for a file of another form, and for a tokenizer without a chat template.
    """
    if tokenizer.chat_template is None:
        raise InvalidRequest("MT-bench asks in turns, and the student's tokenizer has no chat template")
    try:
        asked = [json.loads(line) for line in Path(questions).read_text(encoding="utf-8").splitlines() if line.strip()]
        wanted = [(one["question_id"], str(one["category"]), list(map(str, one["turns"]))) for one in asked]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise InvalidRequest(f"{questions} is not MT-bench's question.jsonl: {error}") from error
    lines = []
    for question, category, turns in track(wanted, "MT-bench", transient=True):
        set_seed(seed)
        how = _how(TEMPERATURES.get(category, 0.0), max_new_tokens, model, tokenizer)
        said = _conversation(model, tokenizer, turns, how)
        lines.append(
            {
                "question_id": question,
                "answer_id": str(uuid.uuid4()),
                "model_id": name,
                "choices": [{"index": 0, "turns": said}],
                "tstamp": time.time(),
            }
        )
    output.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8")
    return len(lines)


def _how(temperature: float, max_new_tokens: int, model: Any, tokenizer: Any) -> GenerationConfig:
    declared = model.generation_config.eos_token_id
    ends = [*(declared if isinstance(declared, list) else [declared]), tokenizer.eos_token_id]
    chances = {"do_sample": True, "temperature": temperature, "top_k": 0} if temperature else {"do_sample": False}
    return GenerationConfig(  # type: ignore[no-untyped-call]
        **chances, max_new_tokens=max_new_tokens, eos_token_id=sorted({end for end in ends if end is not None}),
        pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
    )  # fmt: skip


def _conversation(model: Any, tokenizer: Any, turns: list[str], how: GenerationConfig) -> list[str]:
    messages, said = list[dict[str, str]](), list[str]()
    for turn in turns:
        messages.append({"role": "user", "content": turn})
        given = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_tensors="pt", return_dict=True
        ).to(model.device)
        with torch.no_grad():
            whole = model.generate(**given, generation_config=how)[0]
        said.append(str(tokenizer.decode(whole[given["input_ids"].size(1) :], skip_special_tokens=True)).strip())
        messages.append({"role": "assistant", "content": said[-1]})
    return said
