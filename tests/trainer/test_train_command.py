"""`tvkd train`: a YAML file that flags override, one line for a mistake, and the same run in one process or two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset
from runs import rows
from safetensors.torch import load_file

from tvkd.cli import main as tvkd
from tvkd_shared.errors import InvalidRequest


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "disk"])
def test_a_local_data_set_trains_and_the_model_is_saved(config, server, tmp_path, kind):
    data = tmp_path / f"data.{kind}"
    pairs = Dataset.from_list(rows(4))
    {"jsonl": pairs.to_json, "parquet": pairs.to_parquet, "disk": pairs.save_to_disk}[kind](data)
    path = config(dataset_name=str(data), teacher=server.url)
    assert tvkd(["train", "--config", path]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_flags_override_the_file_and_lora_is_a_setting(config, tmp_path):
    lora = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    assert tvkd(["train", f"--config={config()}", "--alpha", "0", "--output_dir", str(tmp_path / "flag"), *lora]) == 0
    assert (tmp_path / "flag" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "no teacher is set"),
        (["--alpha", "many"], "invalid float value"),
        (["--gamma", "2"], "gamma 2.0 is not in 0 … 1"),
        (["--potential", "q"], "invalid choice"),
        (["--num_processes", "2"], "unknown settings: --num_processes"),
        (["--torch_dtype", "float32"], "torch_dtype is dtype"),
        (["--warmup_ratio", "0.1"], "warmup_ratio is warmup_steps"),
        (["--max_prompt_length", "512"], "max_length alone cuts"),
        (["--tokenizer", "teacher"], "the teacher's is teacher_tokenizer"),
        (["--dataset_name", "none.jsonl"], "no data set at none.jsonl"),
        (["--alpha", "0", "--model_name_or_path", "/none"], "/none is neither a folder"),
        (["--alpha", "0", "--model_name_or_path", "tests"], "model tests cannot be read"),
        (["--teacher", "/none"], "/none is no server's URL and no folder"),
        (["--teacher", "localhost:8077"], "localhost:8077 is no server's URL and no folder"),
        (["--teacher", "http://"], "is not a URL"),
        (["--dataset_streaming"], "streaming is not served here"),
        (["--config"], "needs the path"),
        (["--alpha", "0", "--resume_from_checkpoint", "true"], "out has no checkpoint"),
        (["--alpha", "0", "--resume_from_checkpoint", "gone/checkpoint-3"], "gone/checkpoint-3 is no checkpoint"),
        (["--alpha", "0", "--report_to", "wandb"], "wandb"),
        (["--alpha", "0", "--report_to", "paper"], "paper is not supported"),
        (["--alpha", "0", "--use_peft", "--lora_target_modules", "no_proj"], "no_proj"),
        (["--alpha", "0", "--attn_implementation", "flash_attention_2"], "FlashAttention2"),
        (["--alpha", "0", "--load_in_4bit"], "bitsandbytes"),
        (["--alpha", "0", "--optim", "adamw_bnb_8bit"], "bitsandbytes"),
        (["--alpha", "0", "--optim", "adam_of_mine"], "adam_of_mine"),
        (["--alpha", "0", "--chosen_column", "better"], "has no column better"),
        (["--alpha", "0", "--dataset_config", "other"], "no configurations"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(config, capsys, flags, line):
    code = tvkd(["train", *(["--config", config()] if flags != ["--config"] else []), *flags])
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("tvkd train: ")]
    assert (code, len(said)) == (2, 1)
    assert line in said[0]


def write(path: Path, *pairs: dict) -> str:
    path.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    return str(path)


PAIR = rows(1)[0]


@pytest.mark.parametrize(
    ("wrong", "line"),
    [({"chosen": None}, "row 1: chosen is None, not text"), ({"rejected": ""}, "row 1: rejected is empty")],
)
@pytest.mark.parametrize("mixture", [True, False])
def test_one_wrong_row_is_found_in_a_data_set_and_in_a_mixture(config, tmp_path, capsys, wrong, line, mixture):
    data = write(tmp_path / "wrong.jsonl", PAIR, PAIR | wrong)
    named = {"datasets": [{"path": data}], "dataset_name": None} if mixture else {"dataset_name": data}
    assert tvkd(["train", "--config", config(alpha=0.0, **named)]) == 2
    assert line in capsys.readouterr().err


def test_a_mixture_trains_on_files_with_columns_of_other_names(config, server, tmp_path, capsys):
    asked = [{"question": pair.pop("prompt"), **pair} for pair in rows(6)]
    data = write(tmp_path / "asked.jsonl", *asked)
    mixture = {"datasets": [{"path": data, "split": "train[:4]"}, {"path": data}], "test_split_size": 0.2}
    named = mixture | {"dataset_name": None, "eval_strategy": "epoch", "teacher": server.url}
    assert tvkd(["train", "--config", config(**named)]) == 2
    assert "question looks like it" in capsys.readouterr().err
    assert tvkd(["train", "--config", config(**named), "--prompt-column", "question"]) == 0
    assert "the first of 8 pairs of train is\n  prompt   '" in capsys.readouterr().err


def test_max_length_says_how_many_pairs_it_drops_and_cuts(config, tmp_path, capsys):
    lengths = [(2, 2), (4, 9), (20, 2)]
    pairs = [{"prompt": "w8 " * prompt, "chosen": "w9 " * answer, "rejected": "w10"} for prompt, answer in lengths]
    path = config(alpha=0.0, dataset_name=write(tmp_path / "long.jsonl", *pairs), quiet=True)
    assert tvkd(["train", "--config", path, "--max_length", "10"]) == 0
    said = capsys.readouterr().err
    assert "tvkd: max_length 10 drops 1 of 3 pairs of train: " in said
    assert "tvkd: max_length 10 cuts completions of 1 of 3 pairs of train\n" in said
    assert tvkd(["train", "--config", path, "--max_length", "2"]) == 2
    assert "max_length 2 leaves none of the 3 pairs of train" in capsys.readouterr().err


def test_dpo_s_own_loss_stands_in_the_log_of_every_alpha(config, server, tmp_path):
    """So that runs with different α can be compared: α = 0 has it too, and there it is the loss."""
    (tmp_path / "both").mkdir()
    pairs = rows(8, seed=76)
    for split, some in (("train", pairs[:4]), ("test", pairs[4:])):
        write(tmp_path / "both" / f"{split}.jsonl", *some)
    path = config(dataset_name=str(tmp_path / "both"), teacher=server.url, eval_strategy="epoch", max_steps=2)
    logged = {}
    for alpha in ("0", "0.7"):
        assert tvkd(["train", "--config", path, "--alpha", alpha, "--output_dir", str(tmp_path / alpha)]) == 0
        lines = [json.loads(line) for line in (tmp_path / alpha / "metrics.jsonl").read_text().splitlines()]
        logged[alpha] = next(line for line in lines if "eval_loss" in line)
    assert logged["0"]["eval_dpo_loss"] == pytest.approx(logged["0"]["eval_loss"])
    assert logged["0.7"]["eval_dpo_loss"] != pytest.approx(logged["0.7"]["eval_loss"], abs=1e-3)
    assert logged["0.7"]["eval_dpo_loss"] == pytest.approx(logged["0"]["eval_dpo_loss"], abs=0.05)


def test_what_is_logged_is_kept_in_the_output_folder_and_goes_on_with_the_run(config, tmp_path):
    def steps() -> list[int]:
        return [json.loads(line)["step"] for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]

    path = config(alpha=0.0, save_strategy="steps", save_steps=2, quiet=True)
    assert tvkd(["train", "--config", path]) == 0
    assert steps() == [1, 2, 3, 4, 4]
    (tmp_path / "out" / "checkpoint-4").rename(tmp_path / "out" / "kept")
    assert tvkd(["train", "--config", path, "--resume_from_checkpoint", "true"]) == 0
    assert steps() == [1, 2, 3, 4, 4]
    logged = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert logged[0]["loss"] == pytest.approx(0.6931, abs=1e-4)
    assert tvkd(["train", "--config", path, "--max_steps", "1"]) == 0
    assert steps() == [1, 1]


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ("alpha: [", "line 1"),
        ("- a list", "must contain a YAML mapping"),
        ("what_is_this: 1", "unknown settings: --what_is_this"),
        ("potential: q", "potential 'q' is unknown"),
        ("warmup_ratio: 0.1", "warmup_ratio is warmup_steps, which takes a share of the steps too"),
    ],
)
def test_a_bad_file_is_one_line_and_exit_2(config, capsys, content, line):
    path = Path(config(alpha=0.0))
    path.write_text(path.read_text() + content if content != "- a list" else content)
    assert tvkd(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("tvkd train: ") == 1 and line in err and "Traceback" not in err


def test_a_fault_of_trl_is_no_mistake_of_the_user(config, monkeypatch):
    def broken(*_, **__):
        raise TypeError("a bug of TRL")

    monkeypatch.setattr("tvkd_client.trl_private.DPOTrainer.__init__", broken)
    with pytest.raises(TypeError, match="a bug of TRL"):
        tvkd(["train", "--config", config(alpha=0.0)])


def test_a_traceback_is_there_for_who_asks(config, monkeypatch):
    monkeypatch.setenv("TVKD_TRACEBACK", "1")
    with pytest.raises(InvalidRequest, match="gamma"):
        tvkd(["train", "--config", config(), "--gamma", "2"])


def test_two_processes_train_with_each_source_alike(config, server, tmp_path):
    sources = {
        "server": {"teacher": server.url},
        "bulk": {"teacher": server.url, "bulk": True},
        "store": {"teacher": str(server.store_path)},
    }
    states, weights = [], []
    for name, source in sources.items():
        output = tmp_path / name
        path = config(**source, output_dir=str(output), save_strategy="epoch", ddp_backend="gloo")
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        torchrun = subprocess.Popen(
            [*launch, "-m", "tvkd.cli", "train", "--config", path],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, said = torchrun.communicate(timeout=90)
        finally:
            # SIGTERM, not SIGKILL: torchrun ends its workers before itself.
            torchrun.terminate()
        assert torchrun.returncode == 0, said[-3000:]
        # 8 pairs, 2 a process and step: two steps an epoch are two processes, four would be one.
        (state,) = output.glob("checkpoint-*/trainer_state.json")
        assert json.loads(state.read_text())["global_step"] == 2
        history = json.loads(state.read_text())["log_history"]
        states.append([{key: log[key] for key in log if key != "values/seconds_waited"} for log in history])
        weights.append(load_file(output / "model.safetensors"))
    assert states[0] == states[1] == states[2]
    assert all((weights[0][name] == other[name]).all() for other in weights[1:] for name in weights[0])
