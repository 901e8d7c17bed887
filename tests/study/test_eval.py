"""`tvkd eval`: its numbers are those of a plain computation, and what it cannot measure it refuses in a line."""

import json

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer

from tvkd.cli import main as tvkd
from tvkd.evaluation.log_probs import log_probs
from tvkd.evaluation.outcome import HeldOut, measure, rewards_of
from tvkd.evaluation.sampling import sample
from tvkd_client.preference_tokens import tokenize_preferences
from tvkd_shared.errors import InvalidRequest, NotCached
from tvkd_shared.record import Record

CHANCE = np.random.default_rng(0)


def words(count: int) -> str:
    return " ".join(f"w{word}" for word in CHANCE.integers(8, 128, count))


PAIRS = [{"prompt": words(5), "chosen": " " + words(n), "rejected": " " + words(8 - n)} for n in (1, 3, 5, 7, 4, 2)]
PAIRS.append({"prompt": PAIRS[0]["prompt"], "chosen": " w9", "rejected": " w10 w11"})


@pytest.fixture(scope="module")
def models(tmp_path_factory, student):
    """The student moved away from itself, as a folder, and both loaded."""
    reference = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    moved = AutoModelForCausalLM.from_pretrained(student, dtype=torch.float32)
    torch.manual_seed(3)
    for weight in moved.parameters():
        weight.data.add_(0.02 * torch.randn_like(weight))
    folder = tmp_path_factory.mktemp("trained") / "trained"
    moved.save_pretrained(folder)
    AutoTokenizer.from_pretrained(student).save_pretrained(folder)
    return folder, moved, reference


def plain_log_prob(model, prompt, completion) -> float:
    with torch.no_grad():
        logits = model(torch.tensor([[*prompt, *completion]])).logits[0].double()
    rows = logits[len(prompt) - 1 : -1].log_softmax(-1)
    return sum(float(row[token]) for row, token in zip(rows, completion, strict=True))


def test_log_probs_are_those_of_one_row_at_a_time(models):
    _, model, _ = models
    prompts = [list(map(int, CHANCE.integers(8, 128, n))) for n in (1, 9, 4)]
    completions = [list(map(int, CHANCE.integers(8, 128, n))) for n in (7, 1, 3)]
    expected = [plain_log_prob(model, *row) for row in zip(prompts, completions, strict=True)]
    np.testing.assert_allclose(log_probs(model, prompts, completions), expected, atol=1e-4)


def test_outcomes_are_those_of_a_plain_computation(models, student):
    _, model, reference = models
    tokenizer = AutoTokenizer.from_pretrained(student)
    rows = Dataset.from_list(PAIRS)
    found = measure(
        model,
        reference,
        HeldOut(rows, tokenizer, 0.5, 99, 6, seed=1, reward=lambda completions, **_: [len(c) for c in completions]),
    )
    tokens = tokenize_preferences(rows, tokenizer)
    for index, row in enumerate(tokens):
        sides = [row["chosen_ids"], row["rejected_ids"]]
        ratio = [
            plain_log_prob(model, row["prompt_ids"], s) - plain_log_prob(reference, row["prompt_ids"], s) for s in sides
        ]
        margin = 0.5 * (ratio[0] - ratio[1])
        assert found.items["reward_margin"][index] == pytest.approx(margin, abs=1e-4)
        assert found.items["reward_accuracy"][index] == (margin > 0)
        assert found.items["dpo_loss"][index] == pytest.approx(np.log1p(np.exp(-margin)), abs=1e-4)
        entropy = -plain_log_prob(model, row["prompt_ids"], sides[0]) / len(sides[0])
        assert found.items["cross_entropy"][index] == pytest.approx(entropy, abs=1e-4)
    assert len(found.texts) == 6, "a prompt that comes twice is sampled once"
    assert found.items["reward"].tolist() == [len(text["completion"]) for text in found.texts]
    assert found.texts[0]["prompt"] == PAIRS[0]["prompt"]


def test_the_reference_against_itself_is_no_different(models, student):
    _, _, reference = models
    found = measure(
        reference, reference, HeldOut(Dataset.from_list(PAIRS), AutoTokenizer.from_pretrained(student), 0.1, 4, 5, 0)
    ).means()
    assert (found["reward_accuracy"], found["reward_margin"], found["kl"]) == (0, 0, 0)
    assert found["dpo_loss"] == pytest.approx(np.log(2))


def test_a_store_of_the_references_log_probs_stands_for_its_pass_where_it_has_all_of_them(models, student):
    _, model, reference = models

    class Stored:
        """As a store that has one completion of the reference, or all of them."""

        def __init__(self, most: float) -> None:
            self.most = most

        def fetch(self, prompts, completions) -> list[Record]:
            if len(completions) > self.most:
                raise NotCached("some are missing")
            return [
                scored(plain_log_prob(reference, *row), len(row[1])) for row in zip(prompts, completions, strict=True)
            ]

    def scored(log_prob: float, T: int) -> Record:
        zeros = np.zeros(T + 1, np.float32)
        return Record.of({1.0: zeros}, np.full(T, log_prob / T, np.float32), zeros)

    def margins(before, stored) -> list[float]:
        tokenizer, rows = AutoTokenizer.from_pretrained(student), Dataset.from_list(PAIRS)
        return measure(model, before, HeldOut(rows, tokenizer, 0.5, 0, 5, 0, stored=stored)).items["reward_margin"]

    computed = margins(reference, None)
    np.testing.assert_allclose(margins(None, Stored(np.inf)), computed, atol=1e-4)
    np.testing.assert_array_equal(margins(reference, Stored(1)), computed)


def test_samples_follow_the_models_own_distribution_and_the_seed(models):
    _, model, _ = models
    # A model's own generation config bends what `generate` draws; here it must not.
    model.generation_config.repetition_penalty, model.generation_config.top_k = 5.0, 1
    prompt = [9, 10, 11]
    drawn = [one[0] for one in sample(model, [prompt] * 4000, [2], max_new_tokens=1, seed=0)]
    with torch.no_grad():
        chances = model(torch.tensor([prompt])).logits[0, -1].softmax(-1).numpy()
    model.generation_config.repetition_penalty, model.generation_config.top_k = 1.0, 50
    shares = np.bincount(drawn, minlength=len(chances)) / 4000
    assert np.abs(shares - chances).max() < 0.03
    again = sample(model, [prompt, [9]], [2], max_new_tokens=5, seed=7)
    assert again == sample(model, [prompt, [9]], [2], max_new_tokens=5, seed=7)
    assert all(2 not in completion[:-1] for completion in again)


def test_a_reward_must_answer_one_finite_number_for_each_completion():
    with pytest.raises(InvalidRequest, match="1 numbers for 2 completions"):
        rewards_of(lambda **_: [1.0], ["a", "b"], ["c", "d"])
    with pytest.raises(InvalidRequest, match="1 of them finite"):
        rewards_of(lambda **_: [1.0, float("nan")], ["a", "b"], ["c", "d"])
    chats = rewards_of(
        lambda prompts, completions: [len(c[0]["content"]) for c in completions],
        [[{"role": "user", "content": "x"}]],
        ["four"],
    )
    assert chats.tolist() == [4]


def test_the_command_writes_and_prints_them_and_knows_what_the_student_began_as(
    models, student, tmp_path, monkeypatch, capsys
):
    folder, model, reference = models
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards.py").write_text(
        "def short(prompts, completions):\n    return [-len(c) for c in completions]\n"
    )
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in PAIRS))
    flags = ["eval", "--model", str(folder), "--dataset", "pairs.jsonl", "--samples", "3", "--max-new-tokens", "4"]
    assert tvkd(flags) == 2
    assert "name the model before its training with --reference" in capsys.readouterr().err
    (folder / "tvkd.json").write_text(json.dumps({"student": str(student)}))
    assert tvkd([*flags, "--reward", "rewards:short"]) == 0
    assert "reward_accuracy" in capsys.readouterr().out
    written = json.loads((tmp_path / "eval-output" / "outcome.json").read_text())
    how = HeldOut(Dataset.from_list(PAIRS), AutoTokenizer.from_pretrained(student), 0.1, 3, 4, 0)
    expected = measure(model, reference, how).means()
    assert {name: written["means"][name] for name in expected} == pytest.approx(expected, abs=1e-5)
    lines = (tmp_path / "eval-output" / "samples.jsonl").read_text().splitlines()
    assert len(lines) == 3 and json.loads(lines[0])["reward"] == -len(json.loads(lines[0])["completion"])
    for wrong, said in (
        (["--reward", "rewards:long"], "rewards:long cannot be read"),
        (["--reward", "rewards"], "not module:function"),
        (["--dtype", "float8"], "--dtype float8 is not"),
        (
            ["--mt-bench", "nowhere.jsonl", "--reference", str(student)],
            "nowhere.jsonl is not MT-bench's question.jsonl",
        ),
    ):
        assert tvkd([*flags, *wrong]) == 2
        assert said in capsys.readouterr().err


def test_mt_bench_is_answered_in_turns_in_its_own_format(models, student, tmp_path, monkeypatch):
    folder, _, _ = models
    monkeypatch.chdir(tmp_path)
    question = {"question_id": 81, "category": "writing", "turns": ["w9 w10", "w11"]}
    (tmp_path / "question.jsonl").write_text(json.dumps(question) + "\n")
    assert tvkd(["eval", "--model", str(folder), "--mt-bench", "question.jsonl", "--max-new-tokens", "5"]) == 0
    (line,) = (tmp_path / "eval-output" / "mt_bench.jsonl").read_text().splitlines()
    answer = json.loads(line)
    assert answer.keys() == {"question_id", "answer_id", "model_id", "choices", "tstamp"}
    assert answer["question_id"] == 81 and answer["model_id"] == "trained"
    assert [len(choice["turns"]) for choice in answer["choices"]] == [2]


def test_a_local_task_of_lm_evaluation_harness_is_run(models, tmp_path, monkeypatch, capsys):
    pytest.importorskip("lm_eval")
    folder, _, _ = models
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tasks").mkdir()
    rows = [{"question": f"w{i} w9", "choices": [" w20", " w21"], "answer": i % 2} for i in range(6)]
    (tmp_path / "tasks" / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "tasks" / "words.yaml").write_text(
        "task: words\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {tmp_path}/tasks/rows.jsonl}}}}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{question}}'\n"
        "doc_to_choice: choices\ndoc_to_target: answer\nmetric_list: [{metric: acc}]\n"
    )
    assert tvkd(["eval", "--model", str(folder), "--tasks", '["words"]', "--tasks-folder", "tasks"]) == 0
    means = json.loads((tmp_path / "eval-output" / "outcome.json").read_text())["means"]
    assert set(means) == {"words/acc"} and 0 <= means["words/acc"] <= 1
    assert tvkd(["eval", "--model", str(folder), "--tasks", '["no_such_task"]']) == 2
    assert "has no task no_such_task" in capsys.readouterr().err
