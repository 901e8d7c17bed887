"""TRL's DPOTrainer with a teacher's values in its loss. TRL's loss code is called, not copied.

Objective tvkd:

    β·(Δ log π_θ − Δ log π_ref) + α·(S_c − S_r)  =  β·(Δ log π_θ − Δ log π_ref'),    log π_ref' = log π_ref − (α/β)·S

so shaping goes into the reference log-probs of the batch. Only the difference of the two S enters the loss, so their
mean is left out there: what remains is no larger than the margin, and float32 holds it. The other objectives add a term
to TRL's loss, made of the log-probs of the same forward pass.
"""

import logging
from collections.abc import Callable
from itertools import islice
from typing import Any

import numpy as np
import torch
from accelerate.utils import broadcast_object_list
from datasets import Dataset, IterableDataset

from tvkd_client.collator import SCORES, SPANS, ScoreCollator, resolved
from tvkd_client.config import TVKDConfig
from tvkd_client.objective import (
    FEW_TOKENS,
    SUMS,
    Batch,
    metrics_of,
    pair_metrics,
    soft_label_term,
    span_ends,
    sums_of,
    token_error,
    warning_of,
)
from tvkd_client.roles import Sources, base_role, check_models, open_sources
from tvkd_client.run_record import RunRecord
from tvkd_client.survey import check_complete, check_data, check_reference, fill, mean_advantage
from tvkd_client.teacher_tokens import add_teacher_tokens, teacher_tokenizer, with_whole_spans
from tvkd_client.token_rows import TOKEN_COLUMNS
from tvkd_client.trl_private import ObservedModel, OpenDPOTrainer, check
from tvkd_shared.ending import Ending
from tvkd_shared.errors import InvalidRequest

logger = logging.getLogger(__name__)


class TVKDTrainer(OpenDPOTrainer):
    """DPOTrainer with the objectives of `tvkd_shared.objective`.

    `sources` overrides the places that `args` names, by role: objects with a `teacher_id` and a `fetch`, picklable.
    With objective tvkd, α = 0 and no `reference`, nothing is fetched and every step is DPOTrainer's.

    Raises InvalidRequest for settings or data that do not go together, TeacherMismatch when a source's model is not the
    one that `args` names, NotCached when a store lacks completions of the data.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: TVKDConfig | None = None,
        *,
        train_dataset: Dataset | IterableDataset,
        sources: Sources | None = None,
        **dpo: Any,
    ) -> None:
        check()
        if not isinstance(args, TVKDConfig):
            raise InvalidRequest(f"args is {type(args).__name__}, not TVKDConfig")
        if isinstance(train_dataset, Dataset | IterableDataset) and next(iter(train_dataset), None) is None:
            raise InvalidRequest("train_dataset has no rows; give at least one pair")
        # This comes before the model is loaded, so that a missing server is reported within a second.
        self.sources = open_sources(args, sources or {})
        self.settings = args
        evals = dpo.get("eval_dataset")
        self.record = RunRecord(
            args, self.sources, {"train": train_dataset} | (evals if isinstance(evals, dict) else {"eval": evals})
        )
        self.record.check(args.resume_from_checkpoint)
        self.teacher_tokenizer = None
        if args.teacher_tokenizer is not None and "teacher" in self.sources:
            self.teacher_tokenizer = teacher_tokenizer(args.teacher_tokenizer, self.sources["teacher"])
        if self.sources:
            for rows in (train_dataset, evals):
                check_data(rows, bulk=args.bulk)
        if "reference" in self.sources:
            if ref_model is not None:
                raise InvalidRequest("ref_model and reference are both given; leave one out")
            args.precompute_ref_log_probs = True  # TRL then loads no reference model, and its loss reads the batch
        super().__init__(model, ref_model, args, train_dataset=train_dataset, **dpo)
        if "reference" in self.sources:
            self.precompute_ref_logps = False  # or TRL refuses to evaluate other pairs once training has begun
        self._tokens_a_micro_batch: float | None = None
        self._first_sums: torch.Tensor | None = torch.zeros(len(SUMS))
        if args.objective == "token" and self.aux_loss_enabled:
            raise InvalidRequest("objective token has no router loss of experts; set router_aux_loss_coef 0")
        if self.sources:
            if "reference" not in self.sources:
                self._check_sources()
            self.center = self._mean_advantage() if args.center else 0.0
            student: Any = self.model
            self.data_collator = ScoreCollator(
                self.data_collator,
                self.sources,
                args.shaping if args.objective == "tvkd" and args.alpha != 0 else None,
                ending=Ending(self.text_tokenizer, student.generation_config.eos_token_id),
                concurrency=args.value_concurrency,
            )
        self.record.complete(model if isinstance(model, str) else model.name_or_path, self._splits())
        self.add_callback(self.record)

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        self.record.check(resume_from_checkpoint)
        try:
            return super().train(resume_from_checkpoint, *args, **kwargs)
        finally:
            self._close_collator()

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        super().create_model_card(*args, **kwargs)
        if self.is_world_process_zero():
            self.record.add_to_card()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.sources:
            check_data(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().evaluation_loop(*args, **kwargs)
        # Not after success: in the middle of training, the values of later batches are already requested.
        except BaseException:
            self._close_collator()
            raise

    def _close_collator(self) -> None:
        if isinstance(self.data_collator, ScoreCollator):
            self.data_collator.close()

    def get_batch_samples(self, epoch_iterator: Any, num_batches: int, device: Any) -> Any:
        samples, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self.settings.objective != "token" or not samples:
            return samples, items
        # A step's token loss is the mean over all its tokens, however they are spread over micro-batches and processes.
        counted = [
            span_ends(sample[SPANS]) if SPANS in sample else sample["completion_mask"][:, 1:] for sample in samples
        ]
        tokens = torch.stack([mask.sum() for mask in counted]).sum()
        processes = self.accelerator.num_processes
        total = self.accelerator.reduce(tokens.to(self.accelerator.device), "sum") if processes > 1 else tokens
        self._tokens_a_micro_batch = float(total) / (len(samples) * processes)
        return samples, items

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        loss_of_trl: Callable[..., Any] = super().compute_loss
        if SCORES not in inputs:
            answer = loss_of_trl(model, inputs, return_outputs, num_items_in_batch)
            if self.settings.loss_type == ["sigmoid"] and not self.aux_loss_enabled:
                # DPO's own loss stands under the same name in the log of every run, so that α can be compared.
                loss = (answer[0] if return_outputs else answer).detach()
                self.metrics_since_log["dpo_loss"].append(self.accelerator.gather(loss).mean().item())
            return answer
        inputs = dict(inputs)
        pending, spans = inputs.pop(SCORES), inputs.pop(SPANS, None)
        # The reference forward pass comes before the wait, because the values arrive meanwhile.
        computed = None if "reference" in self.sources else self._computed_reference(inputs)
        scores, waited = resolved(pending)
        references, reference_NL = computed or scores.reference(inputs["input_ids"].device)

        reward_B2 = None
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = references
        if scores.shaping is not None:
            reward_B2 = self.settings.alpha * np.stack(np.split(scores.shaping, 2), 1)
            shift_B2 = (reward_B2 - reward_B2.mean(1, keepdims=True)) / self.beta
            inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = (
                reference - torch.from_numpy(shift).to(reference)
                for reference, shift in zip(references, shift_B2.T, strict=True)
            )
        policy = ObservedModel(model)
        with self.reference_from_batch():
            answer = loss_of_trl(policy, inputs, return_outputs, num_items_in_batch)
        loss, *outputs = answer if return_outputs else (answer,)
        policy_NL = policy.log_probs(inputs["completion_mask"])
        sides = zip(policy_NL.detach().sum(1).chunk(2), references, strict=True)
        dpo_B2 = self.beta * torch.stack([log_prob - reference for log_prob, reference in sides], 1)
        if self.settings.objective != "tvkd":
            kept_NL, base = inputs["completion_mask"][:, 1:], base_role(self.sources)
            batch = Batch.of(policy_NL, reference_NL, kept_NL, scores, base=base, spans_NL=spans)
            loss = self._objective(batch, loss)
            self._log_tokens(batch)
        self._log_pairs(dpo_B2, reward_B2, waited)
        return (loss, *outputs) if return_outputs else loss

    def _objective(self, batch: Batch, dpo: torch.Tensor) -> torch.Tensor:
        """The loss of objective token or soft-label, from the batch and from TRL's own loss of the same pass."""
        args = self.settings
        if args.objective == "soft-label":
            return dpo + soft_label_term(batch, self.beta, args.strength)
        model: Any = self.model
        tokens = self._tokens_a_micro_batch if model.training else None
        error = token_error(batch, args.strength, self.center).sum() / (tokens or batch.kept.sum())
        return error + args.dpo_weight * dpo if args.dpo_weight else error

    def _computed_reference(self, inputs: dict[str, Any]) -> tuple[tuple[Any, Any], Any]:
        """Reference log-probs of chosen and rejected, [B] each, and of each token unless they were precomputed."""
        if self.precompute_ref_logps:
            return (inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]), None
        reference = ObservedModel(self.ref_model or self.model)
        of_pairs: Callable[..., Any] = self.compute_ref_log_probs
        sums = of_pairs(reference, inputs)
        return sums, reference.log_probs(inputs["completion_mask"])

    def _log_pairs(self, dpo_B2: torch.Tensor, reward_B2: np.ndarray | None, waited: float) -> None:
        """Means over the pairs of all processes, and the seconds waited for values."""
        columns = pair_metrics(dpo_B2, reward_B2)
        columns["values/seconds_waited"] = torch.full_like(dpo_B2[:, 0], waited)
        rows = torch.stack([column.float() for column in columns.values()], 1)
        means = dict(zip(columns, self.accelerator.gather(rows).mean(0).tolist(), strict=True))
        metrics = self.metrics_since_log
        for name, mean in means.items():
            metrics[name].append(mean)
        if reward_B2 is not None:
            # The loss was computed without the pair's mean; the rewards that are shown have it.
            common = (means["shaping/chosen"] + means["shaping/rejected"]) / 2
            for side in ("rewards/chosen", "rewards/rejected"):
                metrics[side][-1] += common

    def _log_tokens(self, batch: Batch) -> None:
        """The metrics of an objective, over the batch of all processes, and a warning of what it would teach beside."""
        sums = self.accelerator.gather(sums_of(batch, self.settings.strength, self.center)[None]).sum(0)
        for name, number in metrics_of(sums).items():
            self.metrics_since_log[name].append(number)
        if self._first_sums is None or self.settings.objective != "token":
            return
        self._first_sums = self._first_sums.to(sums) + sums
        if self._first_sums[0] >= FEW_TOKENS:
            one_teacher = "teacher_reference" not in self.sources
            unit = "token" if self.teacher_tokenizer is None else "span"
            warning = warning_of(self._first_sums, one_teacher=one_teacher, center=self.settings.center, unit=unit)
            if warning and self.accelerator.is_main_process:
                logger.warning(warning)
            self._first_sums = None

    def _check_sources(self) -> None:
        """Checks models and stores against the tokenised data, and fills the servers' stores for `bulk`."""
        given = [rows for rows in self._data_sets().values() if rows is not None]
        check_models(self.sources, self.settings, self.text_tokenizer, given, self.teacher_tokenizer)
        if self.settings.bulk:
            fill(self.sources, self._splits(), self.accelerator, quiet=bool(self.args.disable_tqdm))
        check_complete(self.sources, self._splits())

    def _data_sets(self) -> dict[str, Any]:
        """The tokenised data sets by the name of their split; None where there is nothing to evaluate on."""
        evals = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        return {"train": self.train_dataset, **evals}

    def _splits(self) -> dict[str, Any]:
        """The tokenised data sets whose length is known, by the name of their split."""
        return {name: rows for name, rows in self._data_sets().items() if isinstance(rows, Dataset)}

    def _mean_advantage(self) -> float:
        """c: the mean of A_t over the training data. Rank 0 alone reads it."""
        if not isinstance(self.train_dataset, Dataset):
            raise InvalidRequest("center needs a data set whose length is known, and the training data set streams")
        mean = [0.0]
        if self.accelerator.is_main_process:
            mean = [mean_advantage(self.sources, self.train_dataset, self.settings.max_length)]
        return float(broadcast_object_list(mean)[0])

    def complete_rows(self, rows: Any, name: str, say: Callable[[str], None]) -> Any:
        if self.teacher_tokenizer is None:
            return rows
        longest = self.settings.max_length
        counted = name if longest is None else f"{name} (of the pairs that max_length keeps)"
        rows = add_teacher_tokens(
            rows, counted, self.text_tokenizer, self.teacher_tokenizer, processes=self.settings.dataset_num_proc
        )
        return rows if longest is None else with_whole_spans(rows, name, longest, say)

    def reference_rows(self, dataset: Dataset | IterableDataset) -> Dataset | None:
        if "reference" not in self.sources:
            return None
        count = self.settings.per_device_train_batch_size * self.accelerator.num_processes
        return Dataset.from_list([{name: row[name] for name in TOKEN_COLUMNS} for row in islice(dataset, count)])

    def check_reference(self, rows: Dataset | None) -> None:
        """Raises WrongAnswer when stored reference log-probs differ from those that TRL computed on the first batch."""
        self._check_sources()  # TRL calls this in the constructor, before anything else is read
        if rows is None:
            return
        args = self.settings
        model: Any = self.model
        half = model.dtype != torch.float32 or args.bf16 or args.fp16
        check_reference(
            self.sources["reference"], rows, args.max_length, tolerance=args.reference_tolerance, half=bool(half)
        )
