"""The demo's student: the teacher's first layers, fine-tuned on chosen completions, and what it says of a pair.

The tied embedding stays the teacher's and is not trained: two thirds of so small a student would be embedding. The loop
is our own because TRL's trainers score prompt positions too on a CPU, which here is most of the work.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.progress import track
from torch.nn.functional import log_softmax
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tvkd.demo.teacher import cache_folder, made_once

LAYERS = 4
EPOCHS = 1
BATCH = 16
LEARNING_RATE = 6e-4
WARMUP_STEPS = 10
SEED = 0

TokenIds = Sequence[int]


def student_directory(
    teacher: Path, teacher_id: str, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> Path:
    """The fine-tuned student as a directory of transformers, made on the first call and kept in the cache folder.

    Its name holds a digest of teacher, settings and data: whatever changes one of them makes another student.
    """
    settings = [teacher_id, LAYERS, EPOCHS, BATCH, LEARNING_RATE, WARMUP_STEPS, SEED, prompts, completions]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=8).hexdigest()
    target = cache_folder() / f"student-{LAYERS}-layers-{digest}"
    with made_once(target) as making:
        if making is not None:
            student = cut(teacher)
            fine_tune(student, prompts, completions)
            student.save_pretrained(making)
            AutoTokenizer.from_pretrained(teacher).save_pretrained(making)
    return target


def load(directory: Path) -> PreTrainedModel:
    """A float32 student whose embedding is frozen."""
    student = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    student.get_input_embeddings().weight.requires_grad_(False)
    return student


def cut(teacher: Path) -> PreTrainedModel:
    """The teacher's embedding, first layers, last norm and head."""
    student = load(teacher)
    student.model.layers = student.model.layers[:LAYERS]
    student.config.num_hidden_layers = LAYERS
    return student


def fine_tune(student: PreTrainedModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> None:
    """Maximise the completions' mean log-prob a token; the learning rate rises, then falls linearly to a tenth."""
    rows = list(zip(prompts, completions, strict=True)) * EPOCHS
    random.Random(SEED).shuffle(rows)  # noqa: S311 - an order of rows, not a secret
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    steps = len(rows) // BATCH
    student.train()
    for step in track(range(steps), "Fine-tuning the student, once"):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - 0.9 * step / steps)
        optimizer.param_groups[0]["lr"] = rate
        batch = rows[step * BATCH : (step + 1) * BATCH]
        tokens = sum(len(completion) for _, completion in batch)
        loss = -log_probs(student, *zip(*batch, strict=True)).sum() / tokens
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()


def log_probs(student: PreTrainedModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> torch.Tensor:
    """log π(completion | prompt) of each row, in nats, float32 [N]. The head runs on completion positions only."""
    rows = [torch.tensor([*prompt, *completion]) for prompt, completion in zip(prompts, completions, strict=True)]
    ids_NL = pad_sequence(rows, batch_first=True)
    length_N = torch.tensor([len(row) for row in rows])
    start_N = torch.tensor([len(prompt) for prompt in prompts])
    place_L = torch.arange(ids_NL.size(1))
    completion_NL = (place_L >= start_N[:, None]) & (place_L < length_N[:, None])
    hidden_NLD = student.model(ids_NL, attention_mask=(place_L < length_N[:, None]).long()).last_hidden_state
    logits_CV = student.lm_head(hidden_NLD[:, :-1][completion_NL[:, 1:]])
    picked_C = log_softmax(logits_CV, -1).gather(1, ids_NL[completion_NL][:, None]).squeeze(1)
    row_C = completion_NL.nonzero()[:, 0]
    return torch.zeros(len(rows)).index_add(0, row_C, picked_C)


def batched_log_probs(
    student: PreTrainedModel, prompts: Sequence[TokenIds], completions: Sequence[TokenIds], batch: int = 32
) -> torch.Tensor:
    """`log_probs` without gradient, a batch at a time."""
    student.train(False)
    starts = range(0, len(prompts), batch)
    with torch.no_grad():
        return torch.cat([log_probs(student, prompts[i : i + batch], completions[i : i + batch]) for i in starts])
