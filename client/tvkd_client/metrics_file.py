"""`metrics.jsonl` in the output folder: every number that a run logged, whatever else it reports to."""

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class MetricsFile(TrainerCallback):
    """Appends each log to `metrics.jsonl`, one JSON object a line with its step.

    A run that starts anew starts the file anew; one that resumes keeps what was logged up to its checkpoint.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if not state.is_world_process_zero:
            return
        path = self._path(args)
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
        kept = [line for line in lines if line.endswith("\n") and json.loads(line)["step"] <= state.global_step]
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(kept if state.global_step else []), encoding="utf-8")

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if state.is_world_process_zero:
            with self._path(args).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"step": state.global_step} | (logs or {})) + "\n")

    def _path(self, args: TrainingArguments) -> Path:
        return Path(str(args.output_dir)) / "metrics.jsonl"
