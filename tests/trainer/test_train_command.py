"""`tvkd train`: a YAML file that flags override, one line for a mistake, and the same run in one process or two."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from datasets import Dataset
from runs import SMALL, rows
from safetensors.torch import load_file

from tvkd.cli import main as tvkd
from tvkd_shared.errors import InvalidRequest

CONFIG = SMALL | {"alpha": 0.7, "gamma": 0.9, "terminal": "zero", "max_steps": -1, "num_train_epochs": 1}


@pytest.fixture
def config(student, tmp_path):
    """Writes a YAML file of CONFIG and more, and gives its path."""
    data = tmp_path / "pairs.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(8)))

    def write(**settings) -> str:
        output = {"model_name_or_path": str(student), "dataset_name": str(data), "output_dir": str(tmp_path / "out")}
        path = tmp_path / f"{len(list(tmp_path.glob('*.yaml')))}.yaml"
        path.write_text(yaml.safe_dump(CONFIG | output | settings))
        return str(path)

    return write


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "disk"])
def test_a_local_data_set_trains_and_the_model_is_saved(config, server, tmp_path, kind):
    data = tmp_path / f"data.{kind}"
    pairs = Dataset.from_list(rows(4))
    {"jsonl": pairs.to_json, "parquet": pairs.to_parquet, "disk": pairs.save_to_disk}[kind](data)
    path = config(dataset_name=str(data), value_source="server", server=server.url)
    assert tvkd(["train", "--config", path]) == 0
    assert (tmp_path / "out" / "model.safetensors").exists()


def test_flags_override_the_file_and_lora_is_a_setting(config, tmp_path):
    lora = ["--use_peft", "--lora_r", "4", "--lora_target_modules", "q_proj", "v_proj"]
    assert tvkd(["train", f"--config={config()}", "--alpha", "0", "--output_dir", str(tmp_path / "flag"), *lora]) == 0
    assert (tmp_path / "flag" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ([], "no value source is set"),
        (["--alpha", "many"], "invalid float value"),
        (["--gamma", "2"], "gamma 2.0 is not in 0 … 1"),
        (["--potential", "q"], "invalid choice"),
        (["--num_processes", "2"], "unknown settings: --num_processes"),
        (["--dataset_name", "none.jsonl"], "no data set at none.jsonl"),
        (["--alpha", "0", "--model_name_or_path", "/none"], "/none is neither a folder"),
        (["--alpha", "0", "--model_name_or_path", "tests"], "model tests cannot be read"),
        (["--value_source", "store", "--store", "/none"], "/none"),
        (["--value_source", "server", "--server", "localhost"], "is not a URL"),
        (["--dataset_streaming"], "streaming is not served here"),
        (["--config"], "needs the path"),
    ],
)
def test_a_mistake_is_one_line_and_exit_2(config, capsys, flags, line):
    code = tvkd(["train", *(["--config", config()] if flags != ["--config"] else []), *flags])
    said = [text for text in capsys.readouterr().err.splitlines() if text.startswith("tvkd train: ")]
    assert (code, len(said)) == (2, 1)
    assert line in said[0]


@pytest.mark.parametrize("content", ["alpha: [", "- a list", "what_is_this: 1", "potential: q"])
def test_a_bad_file_is_one_line_and_exit_2(config, capsys, content):
    path = Path(config(alpha=0.0))
    path.write_text(path.read_text() + content if content != "- a list" else content)
    assert tvkd(["train", "--config", str(path)]) == 2
    err = capsys.readouterr().err
    assert err.count("tvkd train: ") == 1 and "Traceback" not in err


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
        "server": {"value_source": "server", "server": server.url},
        "bulk": {"value_source": "bulk", "server": server.url},
        "store": {"value_source": "store", "store": str(server.store_path)},
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
