"""TRL's DPOTrainer with the teacher's shaping in its loss. TRL's loss code is called, not copied.

    β·(Δ log π_θ − Δ log π_ref) + α·(S_c − S_r)  =  β·(Δ log π_θ − Δ log π_ref'),    log π_ref' = log π_ref − (α/β)·S

so shaping goes into the reference log-probs of the batch. Only the difference of the two S enters the loss, so their
mean is left out there: what remains is no larger than the margin, and float32 holds it.
"""

import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import closing
from typing import Any

import numpy as np
import torch
from datasets import Dataset, IterableDataset
from trl.trainer.dpo_trainer import DPOTrainer

from tvkd_client import trl_private
from tvkd_client.collator import SHAPING, ShapingCollator
from tvkd_client.config import TVKDConfig
from tvkd_client.preference_tokens import check_vocabulary
from tvkd_client.source import ServerSource, StoreSource, ValueSource
from tvkd_shared.errors import InvalidRequest, TeacherMismatch
from tvkd_shared.store import StoreReader
from tvkd_shared.wire import TeacherInfo

PAIRS_A_BARRIER = 64
"""Pairs that are filled between two barriers: far less work than the process group's timeout allows."""


class TVKDTrainer(DPOTrainer):
    """DPOTrainer whose loss adds α·[S(chosen) − S(rejected)], S from the teacher's values.

    `source` overrides the value source that `args` names: any object with a `teacher_id` and a `fetch`, picklable.
    With args.alpha = 0 nothing is fetched and every step is DPOTrainer's.

    Raises InvalidRequest for settings or data that do not go together, TeacherMismatch when the source's teacher is
    not `args.teacher_id`.
    """

    _tag_names = ["trl", "dpo", "tvkd"]  # noqa: RUF012 - TRL's own form
    _name = "TVKD"
    _paper = {  # noqa: RUF012
        "title": "Preference Distillation via Value based Reinforcement Learning",
        "id": "2509.16965",
        "citation": """\
@inproceedings{kwon2025preference,
    title        = {{Preference Distillation via Value based Reinforcement Learning}},
    author       = {Minchan Kwon and Junwon Ko and Kangil Kim and Junmo Kim},
    year         = 2025,
    booktitle    = {Advances in Neural Information Processing Systems 38, NeurIPS 2025},
    eprint       = {2509.16965},
}""",
    }

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
        trl_private.check()
        if not isinstance(args, TVKDConfig):
            raise InvalidRequest(f"args is {type(args).__name__}, not TVKDConfig")
        if args.alpha != 0:
            _check_data(train_dataset, args)
            source = source or source_of(args)
            # Asked before a model is loaded: a server that is not there is known in a second.
            answering = source.teacher_id
            if args.teacher_id not in (None, answering):
                raise TeacherMismatch(f"values come from teacher {answering}, not from {args.teacher_id}")
        self.alpha = args.alpha
        super().__init__(model, ref_model, args, train_dataset=train_dataset, **dpo)
        if args.alpha != 0 and source is not None:
            if not args.other_vocabulary and (teacher := _teacher_of(source)) is not None:
                check_vocabulary(self._tokenizer, teacher)
            if args.value_source == "bulk":
                self._fill(source)
            self.data_collator = ShapingCollator(
                self.data_collator,
                source,
                args.reading,
                tokenizer=self._tokenizer,
                eos=self._eos(),
                concurrency=args.value_concurrency,
            )

    def compute_loss(
        self, model: Any, inputs: dict[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        dpo_loss: Callable[..., Any] = super().compute_loss
        if SHAPING not in inputs:
            return dpo_loss(model, inputs, return_outputs, num_items_in_batch)
        inputs = dict(inputs)
        shaping, waited = _resolved(inputs.pop(SHAPING))
        if self.precompute_ref_logps:
            references = inputs["ref_chosen_logps"], inputs["ref_rejected_logps"]
        else:
            reference_log_probs: Callable[..., Any] = self.compute_ref_log_probs
            references = reference_log_probs(self.ref_model or self.model, inputs)

        reward_B2 = self.alpha * np.stack(np.split(shaping, 2), 1)
        shift_B2 = (reward_B2 - reward_B2.mean(1, keepdims=True)) / self.beta
        inputs["ref_chosen_logps"], inputs["ref_rejected_logps"] = (
            reference - torch.from_numpy(shift).to(reference)
            for reference, shift in zip(references, shift_B2.T, strict=True)
        )
        policy = trl_private.Recorded(model)
        with trl_private.reference_from_batch(self):
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
        metrics = trl_private.metrics(self)
        for name, mean in means.items():
            metrics[name].append(mean)
        # The loss was computed without the pair's mean; the rewards that are shown have it.
        common = (means["shaping/chosen"] + means["shaping/rejected"]) / 2
        for side in ("rewards/chosen", "rewards/rejected"):
            metrics[side][-1] += common

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        shaped = self.data_collator
        # Reference log-probs need no values, and the model would be given the batch's extra key.
        self.data_collator = getattr(shaped, "unshaped", shaped)
        try:
            return super()._precompute_ref_logps(dataset, name, batch_size)
        finally:
            self.data_collator = shaped

    def _send_telemetry(self) -> None:
        """TRL reports each trainer to the hub; nobody asked for that here."""

    def _eos(self) -> frozenset[int]:
        model: Any = self.model
        declared = model.generation_config.eos_token_id
        several = declared if isinstance(declared, list) else [declared]
        return frozenset(token for token in [*several, self._tokenizer.eos_token_id] if token is not None)

    def _fill(self, source: ValueSource) -> None:
        """Puts the values of every row into the server's store. Rank 0 alone asks; the others wait for it."""
        if not isinstance(source, ServerSource):
            raise InvalidRequest(f"value_source bulk fills a server's store, and {type(source).__name__} is no server")
        evaluation = self.eval_dataset if isinstance(self.eval_dataset, dict) else {"eval": self.eval_dataset}
        datasets: list[Any] = [self.train_dataset, *evaluation.values()]
        for rows in [dataset for dataset in datasets if dataset is not None]:
            for start in range(0, len(rows), PAIRS_A_BARRIER):
                if self.accelerator.is_main_process:
                    chunk = rows[start : start + PAIRS_A_BARRIER]
                    source.fill(chunk["prompt_ids"] * 2, chunk["chosen_ids"] + chunk["rejected_ids"])
                self.accelerator.wait_for_everyone()


def source_of(args: TVKDConfig) -> ValueSource:
    """The value source that the settings name. Raises InvalidRequest when they name none."""
    temperatures = args.reading.temperatures
    if args.value_source == "store" and args.store is not None:
        return StoreSource(args.store, temperatures, teacher_id=args.teacher_id)
    if args.value_source in ("server", "bulk") and args.teacher_url is not None:
        return ServerSource(args.teacher_url, temperatures, teacher_id=args.teacher_id)
    raise InvalidRequest(
        f"alpha is {args.alpha} and no value source is set; set value_source to server, bulk or store, or alpha to 0"
    )


def _teacher_of(source: ValueSource) -> TeacherInfo | None:
    """What is known of a source's teacher; None for a source that is not ours."""
    if isinstance(source, ServerSource):
        return source.client.teacher()
    if isinstance(source, StoreSource):
        with closing(StoreReader(source.path)) as reader:
            return TeacherInfo.model_validate(reader.teachers()[source.teacher_id])
    return None


def _check_data(dataset: Dataset | IterableDataset, args: TVKDConfig) -> None:
    if isinstance(dataset, IterableDataset) and args.value_source == "bulk":
        raise InvalidRequest("value_source bulk needs a data set of known rows, and this one streams; use server")
    if {"image", "images"} & set(next(iter(dataset))):
        raise InvalidRequest("the data set has images, and values are kept for text tokens only")


def _resolved(shaping: "np.ndarray | Future[np.ndarray]") -> tuple[np.ndarray, float]:
    """The numbers, and the seconds spent waiting for them."""
    if not isinstance(shaping, Future):
        return shaping, 0.0
    start = time.perf_counter()
    return shaping.result(), time.perf_counter() - start
