"""Tasks of lm-evaluation-harness, where it is installed."""

from collections.abc import Sequence
from typing import Any

from tvkd_shared.errors import InvalidRequest

_ERROR = "_stderr"


def task_manager(tasks: Sequence[str], include: str | None) -> Any:
    """What finds the tasks, with those of the folder `include` beside its own.

    Raises InvalidRequest when lm-evaluation-harness is not installed or a task is unknown.
    """
    try:
        from lm_eval.tasks import TaskManager  # noqa: PLC0415
    except ImportError as error:
        raise InvalidRequest(f"tasks need lm-evaluation-harness: pip install 'tvkd[harness]' ({error})") from error
    manager = TaskManager(include_path=include)
    if unknown := [task for task in tasks if task not in manager.all_tasks]:
        raise InvalidRequest(f"lm-evaluation-harness has no task {', '.join(unknown)}; `lm_eval ls tasks` lists them")
    return manager


def task_means(
    model: Any, tokenizer: Any, tasks: Sequence[str], *, include: str | None, limit: int | None, seed: int
) -> dict[str, float]:
    """Each task's metrics as `task/metric`, as lm-evaluation-harness computes them with its own defaults.

    `limit` is the number of examples of each task, None for all. Raises as `task_manager` does.
    """
    manager = task_manager(tasks, include)
    from lm_eval import simple_evaluate  # noqa: PLC0415
    from lm_eval.models.huggingface import HFLM  # noqa: PLC0415

    found: Any = simple_evaluate(
        model=HFLM(pretrained=model, tokenizer=tokenizer),
        tasks=list(tasks), task_manager=manager, limit=limit, bootstrap_iters=0,
        random_seed=seed, numpy_random_seed=seed, torch_random_seed=seed, fewshot_random_seed=seed,
    )  # fmt: skip
    return {
        f"{task}/{metric.partition(',')[0]}": float(number)
        for task, metrics in found["results"].items()
        for metric, number in metrics.items()
        if isinstance(number, int | float) and "," in metric and _ERROR not in metric
    }
