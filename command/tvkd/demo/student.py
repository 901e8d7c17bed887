"""The demo's student: half of the teacher's layers, distilled from it until they are a language model again.

With the middle layers taken out, a model writes noise. Some steps towards the teacher's whole distributions, on chosen
completions of the training split, repair it; the tied embedding stays the teacher's and is not trained.
"""

import hashlib
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn.functional import kl_div, log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from tvkd.demo.teacher import cache_folder, made_once
from tvkd.evaluation.log_probs import completion_logits

FIRST, LAST = 8, 7
"""How many of the teacher's first and of its last layers are kept."""

BATCH = 16
LEARNING_RATE = 5e-4
WARMUP_STEPS = 5
SEED = 0

TokenIds = Sequence[int]


def student_directory(
    teacher: Path, teacher_id: str, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]
) -> Path:
    """The student as a directory of transformers, made on the first call and kept in the cache folder.

    Its name holds a digest of teacher, settings and data: whatever changes one of them makes another student.
    """
    settings = [teacher_id, FIRST, LAST, BATCH, LEARNING_RATE, WARMUP_STEPS, SEED, prompts, completions]
    digest = hashlib.blake2b(json.dumps(settings).encode(), digest_size=4).hexdigest()
    target = cache_folder() / f"student-{FIRST + LAST}-layers-{digest}"
    with made_once(target) as making:
        if making is not None:
            whole = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
            student = cut(teacher)
            distil(student, whole, prompts, completions)
            student.save_pretrained(making)
            AutoTokenizer.from_pretrained(teacher).save_pretrained(making)
    return target


def cut(teacher: Path) -> Any:
    """The teacher's embedding, first and last layers, last norm and head, in float32."""
    student = AutoModelForCausalLM.from_pretrained(teacher, dtype=torch.float32)
    layers = student.model.layers
    student.model.layers = layers[:FIRST] + layers[len(layers) - LAST :]
    for place, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = place  # its place in the cache of keys and values
    student.config.num_hidden_layers = len(student.model.layers)
    return student


def distil(student: Any, teacher: Any, prompts: Sequence[TokenIds], completions: Sequence[TokenIds]) -> None:
    """Minimise KL(teacher ‖ student) of completion tokens, in one pass over the rows.

    The learning rate rises, then falls linearly to a tenth.
    """
    rows = list(zip(prompts, completions, strict=True))
    random.Random(SEED).shuffle(rows)  # noqa: S311 - an order of rows, not a secret
    student.get_input_embeddings().weight.requires_grad_(False)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=LEARNING_RATE, weight_decay=0.0)
    steps = len(rows) // BATCH
    student.train()
    teacher.train(False)
    for step in track(range(steps), "Distilling the student, once"):
        rate = LEARNING_RATE * min(1, (step + 1) / WARMUP_STEPS) * (1 - 0.9 * step / steps)
        optimizer.param_groups[0]["lr"] = rate
        batch = list(zip(*rows[step * BATCH : (step + 1) * BATCH], strict=True))
        with torch.no_grad():
            wanted = log_softmax(completion_logits(teacher, *batch)[0], -1)
        said = log_softmax(completion_logits(student, *batch)[0], -1)
        torch.autograd.backward(kl_div(said, wanted, log_target=True, reduction="batchmean"))
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        optimizer.zero_grad()
