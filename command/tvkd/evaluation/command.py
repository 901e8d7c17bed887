"""`tvkd eval`: outcomes of one trained student beside its reference, on any held-out set."""

import json
from pathlib import Path
from typing import Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from rich.console import Console

from tvkd_client.dataset_flags import DatasetFlags
from tvkd_client.preview_tables import titled_table
from tvkd_shared.errors import InvalidRequest

RESULT = "outcome.json"


class Eval(DatasetFlags, cli_prog_name="tvkd eval"):
    """Measure a trained student beside what it began as: on held-out pairs, and on completions that it writes.

    Writes outcome.json and samples.jsonl into the output folder, and prints the means.
    """

    model: str = Field(description="the trained student: a folder, an adapter's folder or a hub id")
    reference: str | None = Field(
        None, description="what it began as; by default what tvkd.json beside the model says, or an adapter's base"
    )
    dtype: str = Field("auto", description="dtype of both models: auto (that of the files), float32, bfloat16, float16")
    beta: PositiveFloat = Field(0.1, description="β of the implicit reward")
    samples: NonNegativeInt = Field(128, description="different prompts that a completion is drawn for; 0 draws none")
    max_new_tokens: PositiveInt = Field(256, description="tokens after which a completion without EOS is cut")
    seed: int = Field(0, description="seed of the completions")
    reward: str | None = Field(
        None, description="a reward of the completions, module:function, called as TRL calls its reward functions"
    )
    tasks: list[str] = Field([], description="tasks of lm-evaluation-harness, such as arc_easy,gsm8k")
    tasks_folder: str | None = Field(None, description="folder with tasks of your own, as lm_eval --include_path")
    tasks_limit: PositiveInt | None = Field(None, description="examples of each task; by default all")
    mt_bench: str | None = Field(
        None, description="MT-bench's question.jsonl, to answer into mt_bench.jsonl for FastChat's judge"
    )
    output: Path = Field(Path("eval-output"), description="folder that is written to")

    def run(self) -> int:
        """Measure, write and print. Raises the errors of `tvkd_shared.errors`."""
        if self.dtype not in ("auto", "float32", "bfloat16", "float16"):
            raise InvalidRequest(f"--dtype {self.dtype} is not auto, float32, bfloat16 or float16")
        rows = self.pairs() if self.dataset is not None else None
        if rows is None and not (self.tasks or self.mt_bench):
            raise InvalidRequest("there is nothing to measure on: name --dataset, --tasks or --mt-bench")
        # TRL and transformers take seconds to import, and a wrong flag is known before.
        from tvkd.evaluation.harness import task_means  # noqa: PLC0415
        from tvkd.evaluation.loading import load_function, load_model, reference_of  # noqa: PLC0415
        from tvkd.evaluation.mt_bench import answer  # noqa: PLC0415
        from tvkd.evaluation.outcome import HeldOut, Outcome, measure, summary_of  # noqa: PLC0415
        from tvkd_client.preference_tokens import load_tokenizer  # noqa: PLC0415

        reward = load_function(self.reward) if self.reward else None
        tokenizer = load_tokenizer(self.model)
        before = (self.reference or reference_of(self.model)) if rows is not None else None
        student = load_model(self.model, self.dtype)
        outcome = Outcome({}, [])
        if rows is not None:
            how = HeldOut(rows, tokenizer, self.beta, self.samples, self.max_new_tokens, self.seed, reward)
            outcome = measure(student, load_model(str(before), self.dtype), how)
        if self.tasks:
            outcome.benchmarks = task_means(
                student, tokenizer, self.tasks, include=self.tasks_folder, limit=self.tasks_limit, seed=self.seed
            )
        self.output.mkdir(parents=True, exist_ok=True)
        if self.mt_bench:
            answer(
                student, tokenizer, self.mt_bench, self.output / "mt_bench.jsonl",
                name=Path(self.model).name, max_new_tokens=self.max_new_tokens, seed=self.seed,
            )  # fmt: skip
        result = {"model": self.model, "reference": before, **summary_of(outcome)}
        write_outcome(self.output, result, outcome.texts)
        _show(result, Console())
        print(f"written to {self.output}")
        return 0


def write_outcome(folder: Path, result: dict[str, Any], texts: list[dict[str, Any]]) -> None:
    """outcome.json last, so that where it is, all is."""
    lines = (json.dumps(text, ensure_ascii=False) + "\n" for text in texts)
    (folder / "samples.jsonl").write_text("".join(lines), encoding="utf-8")
    written = folder / f"{RESULT}.part"
    written.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    written.rename(folder / RESULT)


def _show(result: dict[str, Any], console: Console) -> None:
    table = titled_table(f"{result['model']} beside {result['reference']}", "outcome", "mean", "± standard error")
    for name, mean in result["means"].items():
        error = result["standard_errors"].get(name)
        table.add_row(name, f"{mean:.4f}", "" if error is None else f"{error:.4f}")
    console.print(table)
