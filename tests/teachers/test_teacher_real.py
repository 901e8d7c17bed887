"""The same agreement on a real teacher, over real text."""

import pytest

from small_models import Reference, ask, assert_agrees, load
from tvkd_shared.wire import Message, TextItem

QUESTIONS = {
    "Name the capital of France.": ["Paris.", "The capital of France is Paris, a city on the Seine."],
    'Define the noun "harbour".': ["A sheltered place where ships lie at anchor."],
    "Why is the sky blue? Answer for a child of six, in no more than three short sentences, and name the effect.": [
        "Sunlight is made of many colours. Air scatters blue light most. This is called Rayleigh scattering.",
        "Because it is.",
        "No.",
    ],
}


@pytest.mark.real
def test_values_of_a_real_teacher_agree_with_its_full_float32_logits():
    from tvkd.demo.teacher import teacher_directory

    directory = teacher_directory()
    teacher, reference = load(directory), Reference(directory, "sdpa")
    items = [
        teacher.tokenize(TextItem(prompt=[Message(role="user", content=prompt)], completions=completions), 10**6)
        for prompt, completions in QUESTIONS.items()
    ]

    answers = ask(teacher, *((item.prompt_token_ids, item.completions, [0.5, 2.0]) for item in items))
    for item, answer in zip(items, answers, strict=True):
        for record, completion in zip(answer, item.completions, strict=True):
            assert_agrees(record, reference(item.prompt_token_ids, completion))
