"""`tvkd train --config x.yaml`: TRL's habit, flat YAML that flags override, for the TVKD trainer.

Run it alone, or under `torchrun` or `accelerate launch` with `-m tvkd.cli train …`.
"""

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml
from datasets import Dataset
from transformers import AutoConfig, set_seed
from transformers.integrations.integration_utils import get_reporting_integration_callbacks
from transformers.trainer_utils import get_last_checkpoint
from trl.scripts.utils import DatasetMixtureConfig
from trl.trainer.model_config import ModelConfig
from trl.trainer.utils import get_peft_config, get_quantization_config

from tvkd_client.adapter import load_adapter
from tvkd_client.config import TVKDConfig
from tvkd_client.dataset import DataArguments, is_hub_id, training_data
from tvkd_client.metrics_file import MetricsFile
from tvkd_client.preference_tokens import load_tokenizer
from tvkd_client.roles import Sources
from tvkd_client.trainer import TVKDTrainer
from tvkd_client.trl_private import SettingsParser
from tvkd_shared.adapter import base_folder, is_adapter
from tvkd_shared.errors import InvalidRequest, TVKDError

_RENAMED = {
    "torch_dtype": "dtype",
    "warmup_ratio": "warmup_steps, which takes a share of the steps too",
    "max_prompt_length": "no setting of TRL any more: max_length alone cuts",
    "max_completion_length": "no setting of TRL any more: max_length alone cuts",
    "max_seq_length": "max_length",
    "cutoff_len": "max_length",
    "sequence_len": "max_length",
    "evaluation_strategy": "eval_strategy",
    "tokenizer": "that of model_name_or_path, and the teacher's is teacher_tokenizer",
    "no_cuda": "use_cpu",
    "model": "model_name_or_path",
    "base_model": "model_name_or_path",
    "dataset": "dataset_name",
    "dataset_split": "dataset_train_split",
    "pref_beta": "beta",
    "dpo_beta": "beta",
    "rl_beta": "beta",
    "micro_batch_size": "per_device_train_batch_size",
    "num_epochs": "num_train_epochs",
    "lora_rank": "lora_r",
    "lora_target": "lora_target_modules",
    "use_lora": "use_peft",
}
"""What settings of earlier TRL, transformers, LLaMA-Factory and axolotl are called here."""

_REFUSALS = (ValueError, TypeError, OSError, ImportError, RuntimeError, yaml.YAMLError)


def train(argv: list[str]) -> int:
    """Train as the file and flags say, and save. Returns 0.

    Raises the errors of `tvkd_shared.errors`, and whatever TRL does not raise on purpose.
    """
    # TRL 1.16 sets what transformers 5.23 renamed; nobody who reads the warning can act on it.
    warnings.filterwarnings("ignore", r".*gradient_checkpointing.* is deprecated", FutureWarning)
    script, training, model, mixture = parse(argv)
    _check_resumption(training)
    with _refusals_in_one_line():
        # What these report to may not be installed. TRL finds that out after minutes.
        for reporter in get_reporting_integration_callbacks(training.report_to):  # type: ignore[no-untyped-call]
            reporter()
    _run(build(pairs_of(script, training, mixture), training, model), script)
    return 0


@contextmanager
def _refusals_in_one_line(what: str = "", only: tuple[type[Exception], ...] = _REFUSALS) -> Iterator[None]:
    """Turns a refusal of what the user wrote into InvalidRequest; TRL and its libraries raise all of these types."""
    try:
        yield
    except TVKDError:
        raise
    except only as error:
        raise InvalidRequest(" ".join(f"{what}{error}".split()) or type(error).__name__) from error


def parse(argv: list[str]) -> tuple[DataArguments, TVKDConfig, ModelConfig, DatasetMixtureConfig]:
    """The settings of a training file and of flags. Raises InvalidRequest, one line, for what is wrong in them."""
    words = [word for flag in argv for word in (flag.split("=", 1) if flag.startswith("--config=") else [flag])]
    if words[-1:] == ["--config"]:
        raise InvalidRequest("--config needs the path of a YAML file")
    settings: Any = (DataArguments, TVKDConfig, ModelConfig, DatasetMixtureConfig)
    parser = SettingsParser(settings, prog="tvkd train")
    with _refusals_in_one_line():
        *parsed, unknown = parser.parse_args_and_config(words, return_remaining_strings=True)
    if unknown:
        named = ", ".join(word for word in unknown if word.startswith("--")) or " ".join(unknown)
        hints = "".join(f"; {name} is {new}" for name, new in _RENAMED.items() if f"--{name}" in unknown)
        raise InvalidRequest(f"unknown settings: {named}; `tvkd train --help` lists them all{hints}")
    script, training, model, mixture = parsed
    if not model.model_name_or_path:
        raise InvalidRequest("model_name_or_path is not set: the student's folder or hub id")
    if not Path(model.model_name_or_path).is_dir() and not is_hub_id(model.model_name_or_path):
        raise InvalidRequest(f"model_name_or_path {model.model_name_or_path} is neither a folder nor a hub id")
    return script, training, model, mixture


def _check_resumption(training: TVKDConfig) -> None:
    """Turns "true" and "false", as the command line has them, into truth values, and looks for the checkpoint."""
    settings: Any = training
    given = settings.resume_from_checkpoint
    if isinstance(given, str) and given.lower() in ("true", "false"):
        given = given.lower() == "true"
        settings.resume_from_checkpoint = given
    if not given:
        return
    output = Path(str(training.output_dir))
    last = get_last_checkpoint(output) if output.is_dir() else None  # type: ignore[no-untyped-call]
    if given is True and last is None:
        raise InvalidRequest(f"resume_from_checkpoint is true, and {output} has no checkpoint")
    if given is not True and not (Path(given) / "trainer_state.json").is_file():
        raise InvalidRequest(f"resume_from_checkpoint {given} is no checkpoint; the last one of {output} is {last}")


def build(
    pairs: Mapping[str, Dataset], training: TVKDConfig, model: ModelConfig, sources: Sources | None = None
) -> TVKDTrainer:
    """The trainer of these settings on the pairs that `pairs_of` gives. `sources` are those of TVKDTrainer.

    Raises InvalidRequest for a student that cannot be read, and as TVKDTrainer does.
    """
    with _refusals_in_one_line():
        quantization, peft = get_quantization_config(model), get_peft_config(model)
    student = str(model.model_name_or_path)
    adapter = is_adapter(student)
    if adapter and peft is not None:
        raise InvalidRequest(
            f"model_name_or_path {student} is an adapter, which trains on, and use_peft asks for a new one; leave "
            "use_peft out, or merge the adapter into its base first"
        )
    with _refusals_in_one_line(f"model {student} cannot be read: "):
        whole = str(base_folder(student)) if adapter else student
        AutoConfig.from_pretrained(whole, revision=model.model_revision, trust_remote_code=training.trust_remote_code)
    given: Any = training.model_init_kwargs or {}
    options = {"attn_implementation": model.attn_implementation, "dtype": model.dtype, **given}
    if not adapter:
        training.model_init_kwargs = {"revision": model.model_revision, **options}
    with _refusals_in_one_line(only=(ValueError, OSError, ImportError)):
        return TVKDTrainer(
            _adapter(student, options, training, quantization) if adapter else student,
            args=training,
            train_dataset=pairs["train"],
            eval_dataset=pairs.get("eval"),
            sources=sources,
            quantization_config=None if adapter else quantization,
            peft_config=peft,
            processing_class=load_tokenizer(student) if adapter else None,
            callbacks=[MetricsFile()],
        )


def _adapter(student: str, options: dict[str, Any], training: TVKDConfig, quantization: Any) -> Any:
    """A student that is an adapter, loaded as TRL loads a whole one, which takes the settings from `training`."""
    training.model_init_kwargs = None
    if quantization is not None:
        options["quantization_config"] = quantization
    if training.distributed_state.distributed_type in ("MULTI_GPU", "DEEPSPEED"):
        options["device_map"] = None
    options.setdefault("trust_remote_code", training.trust_remote_code)
    with _refusals_in_one_line(f"adapter {student} cannot be read: "):
        return load_adapter(student, load_tokenizer(student), **options)


def pairs_of(script: DataArguments, training: TVKDConfig, mixture: DatasetMixtureConfig) -> dict[str, Dataset]:
    """The pairs to train on under "train", and under "eval" those to evaluate with, where the settings ask for that."""
    # TRL cuts a mixture into two by this state. The same seed makes the same two in each process and when resuming.
    set_seed(training.seed)
    return training_data(script, mixture, evaluation=training.eval_strategy != "no")


def _run(trainer: Any, script: DataArguments) -> None:
    args = trainer.args
    # An optimizer's package that is missing is found out here.
    with _refusals_in_one_line(only=(ImportError,)):
        trainer.train(resume_from_checkpoint=args.resume_from_checkpoint)
    trainer.create_model_card(model_name=Path(args.output_dir).name)
    trainer.save_model(args.output_dir)
    trainer.accelerator.print(f"tvkd train: model saved to {args.output_dir}")
    if args.push_to_hub:
        trainer.push_to_hub(dataset_name=script.dataset_name)
    # DDP's reducer must go before the process group: as its last holder it would join gloo's threads under the GIL,
    # which they may be waiting for.
    trainer.model_wrapped = trainer.model
    trainer.accelerator.free_memory()
    trainer.end()
