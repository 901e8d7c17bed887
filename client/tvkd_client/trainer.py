"""TRL's DPOTrainer with the teacher's shaping in its loss. TRL's loss code is called, not copied.

    β·(Δ log π_θ − Δ log π_ref) + α·(S_c − S_r)  =  β·(Δ log π_θ − Δ log π_ref'),    log π_ref' = log π_ref − (α/β)·S

so shaping goes into the reference log-probs of the batch. Only the difference of the two S enters the loss, so their
mean is left out there: what remains is no larger than the margin, and float32 holds it.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from tqdm.auto import tqdm

from tvkd_client.collator import SHAPING, ShapingCollator
from tvkd_client.config import TVKDConfig
from tvkd_client.ending import Ending
from tvkd_client.preference_tokens import check_vocabulary
from tvkd_client.source import ServerSource, ValueSource, check_certificate, source_of, teacher_of
from tvkd_client.trl_private import ObservedModel, OpenDPOTrainer, check
from tvkd_shared.errors import InvalidRequest, TeacherMismatch

PAIRS_A_BARRIER = 64
"""Pairs that are filled between two barriers: far less work than the process group's timeout allows."""


class TVKDTrainer(OpenDPOTrainer):
    """DPOTrainer whose loss adds α·[S(chosen) − S(rejected)], S from the teacher's values.

    `source` overrides the value source that `args` names: any object with a `teacher_id` and a `fetch`, picklable.
    With args.alpha = 0 nothing is fetched and every step is DPOTrainer's.

    Raises InvalidRequest for settings or data that do not go together, TeacherMismatch when the source's teacher is
    not `args.teacher_id`.
    """

    def __init__(
        self,
        model: Any,
        ref_model: Any = None,
        args: TVKDConfig | None = None,
        *,
        train_dataset: Dataset | IterableDataset,
        source: ValueSource | None = None,
        **dpo: Any,
    ) -> None:
        check()
        if not isinstance(args, TVKDConfig):
            raise InvalidRequest(f"args is {type(args).__name__}, not TVKDConfig")
        if isinstance(train_dataset, Dataset | IterableDataset) and next(iter(train_dataset), None) is None:
            raise InvalidRequest("train_dataset has no rows; give at least one pair")
        if args.alpha != 0:
            _check_data(train_dataset, args)
            _check_data(dpo.get("eval_dataset"), args)
            source = source or source_of(args)
            # This comes before the model is loaded, so that a missing server is reported within a second.
            answering = source.teacher_id
            if args.teacher_id not in (None, answering):
                raise TeacherMismatch(f"values come from teacher {answering}, not from {args.teacher_id}")
        self.alpha = args.alpha
        super().__init__(model, ref_model, args, train_dataset=train_dataset, **dpo)
        if args.alpha != 0 and source is not None:
            if args.max_value_error is not None:
                check_certificate(source, args.max_value_error)
            if not args.other_vocabulary and (teacher := teacher_of(source)) is not None:
                check_vocabulary(self.text_tokenizer, teacher)
            if args.value_source == "bulk":
                self._fill(source)
            self.data_collator = ShapingCollator(
                self.data_collator,
                source,
                args.shaping,
                ending=self._ending(),
                concurrency=args.value_concurrency,
            )

    def train(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().train(*args, **kwargs)
        finally:
            self._close_collator()

    def evaluate(self, eval_dataset: Any = None, *args: Any, **kwargs: Any) -> Any:
        if self.alpha != 0:
            _check_images(eval_dataset)
        return super().evaluate(eval_dataset, *args, **kwargs)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().evaluation_loop(*args, **kwargs)
        # Not after success: in the middle of training, the values of later batches are already requested.
        except BaseException:
            self._close_collator()
            raise

    def _close_collator(self) -> None:
        if isinstance(self.data_collator, ShapingCollator):
            self.data_collator.close()

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        dpo_loss: Callable[..., Any] = super().compute_loss
        if SHAPING not in inputs:
            return dpo_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        pending = inputs.pop(SHAPING)
        # The reference forward pass comes before the wait, because the values arrive meanwhile.
        if self.precompute_ref_logps:
            references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_log_probs: Callable[..., Any] = self.compute_ref_log_probs
            references = reference_log_probs(self.ref_model or self.model, inputs)
        shaping, waited = _resolved(pending)

        reward_B2 = self.alpha * np.stack(np.split(shaping, 2), 1)
        shift_B2 = (reward_B2 - reward_B2.mean(1, keepdims=True)) / self.beta
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = (
            reference - torch.from_numpy(shift).to(reference)
            for reference, shift in zip(references, shift_B2.T, strict=True)
        )
        policy = ObservedModel(model)
        with self.reference_from_batch():
            loss = dpo_loss(policy, inputs, return_outputs, num_items_in_batch)
        dpo = [self.beta * (p - r) for p, r in zip(policy.logps(inputs["completion_mask"]), references, strict=True)]
        self._log_shaping(reward_B2, torch.stack(dpo, 1), waited)
        return loss

    def _log_shaping(self, reward_B2: np.ndarray, dpo_B2: torch.Tensor, waited: float) -> None:
        """α·S as reward, DPO's own reward, and seconds waited: means over the batch of all processes."""
        reward = torch.from_numpy(reward_B2).to(dpo_B2)
        columns = {
            "shaping/chosen": reward[:, 0],
            "shaping/rejected": reward[:, 1],
            "shaping/margin": reward[:, 0] - reward[:, 1],
            "shaping/accuracy": reward[:, 0] > reward[:, 1],
            "rewards/dpo_margins": dpo_B2[:, 0] - dpo_B2[:, 1],
            "rewards/dpo_accuracies": dpo_B2[:, 0] > dpo_B2[:, 1],
            "values/seconds_waited": torch.full_like(reward[:, 0], waited),
        }
        rows = torch.stack([column.float() for column in columns.values()], 1)
        means = dict(zip(columns, self.accelerator.gather(rows).mean(0).tolist(), strict=True))
        metrics = self.metrics_since_log
        for name, mean in means.items():
            metrics[name].append(mean)
        # The loss was computed without the pair's mean; the rewards that are shown have it.
        common = (means["shaping/chosen"] + means["shaping/rejected"]) / 2
        for side in ("rewards/chosen", "rewards/rejected"):
            metrics[side][-1] += common

    def _ending(self) -> Ending:
        model: Any = self.model
        return Ending(self.text_tokenizer, model.generation_config.eos_token_id)

    def _fill(self, source: ValueSource) -> None:
        """Puts the values of every row into the server's store. Rank 0 alone asks; the others wait for it."""
        if not isinstance(source, ServerSource):
            raise InvalidRequest(f"value_source bulk fills a server's store, and {type(source).__name__} is no server")
        data_sets: list[Any] = [self.train_dataset, *_data_sets(self.eval_dataset)]
        first = self.accelerator.is_main_process
        with tqdm(
            total=sum(map(len, data_sets)), desc="Filling the value store", disable=self.args.disable_tqdm or not first
        ) as bar:
            for rows in data_sets:
                for start in range(0, len(rows), PAIRS_A_BARRIER):
                    if first:
                        chunk = rows[start : start + PAIRS_A_BARRIER]
                        source.fill(chunk["prompt_ids"] * 2, chunk["chosen_ids"] + chunk["rejected_ids"])
                        bar.update(len(chunk["prompt_ids"]))
                    self.accelerator.wait_for_everyone()


def _data_sets(given: Any) -> Iterator[Any]:
    """The data sets in an argument that is a data set, a dict of data sets, None, or a name."""
    for candidate in given.values() if isinstance(given, dict) else [given]:
        if isinstance(candidate, Dataset | IterableDataset):
            yield candidate


def _check_data(given: Any, args: TVKDConfig) -> None:
    if args.value_source == "bulk" and any(isinstance(rows, IterableDataset) for rows in _data_sets(given)):
        raise InvalidRequest(
            "value_source bulk needs data sets whose length is known, and a given one streams; use server"
        )
    _check_images(given)


def _check_images(given: Any) -> None:
    if any({"image", "images"} & set(next(iter(rows), {})) for rows in _data_sets(given)):
        raise InvalidRequest("a data set has images, and the teacher has values for text only; leave images out")


def _resolved(shaping: "np.ndarray | Future[np.ndarray]") -> tuple[np.ndarray, float]:
    """The numbers, and the seconds spent waiting for them."""
    if not isinstance(shaping, Future):
        return shaping, 0.0
    start = time.perf_counter()
    return shaping.result(), time.perf_counter() - start
