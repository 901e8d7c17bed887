"""The study from top to bottom: worlds, models, values over HTTP, students, table. See docs/study.md.

python -m studies.known_reward              5 worlds × 2 seeds; goes on where it was stopped
python -m studies.known_reward --quick      one small world in two minutes: it shows that the parts fit, no result
python -m studies.known_reward --tune       the settings that were tried, on another world
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml

from studies.known_reward.models import Size, load, make_models
from studies.known_reward.report import CONTROL, table
from studies.known_reward.students import SHUFFLED, Students, evaluate
from studies.known_reward.world import World
from tvkd_client.prefetch import Prefetch

WORLDS, TUNING_WORLDS, SEEDS, PAIRS = (2, 3, 4, 5, 6), (0,), (0, 1), 500
MODELS = ("S0", "T0", "T1")
FRESH, FRESH_FOR_TUNING = 4243, 4242
"""Seeds of the prompts that students are evaluated on."""

Arms = dict[str, dict[str, Any]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("study-output/known-reward"))
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--quick", action="store_true")
    how.add_argument("--tune", action="store_true")
    asked = parser.parse_args()
    torch.set_num_threads(1)  # more threads do not help models as small as these
    transformers.utils.logging.set_verbosity_error()
    arms = yaml.safe_load((Path(__file__).parent / "settings.yaml").read_text())["arms"]
    if asked.quick:
        chosen = {name: arm["settings"] | {"max_steps": 10} for name, arm in arms.items()}
        size = Size(sft_rows=2000, sft_steps=40, dpo_pairs=640, student_pairs=400)
        return study(asked.output / "quick", (0,), (0,), 64, size, with_controls(chosen), FRESH)
    if asked.tune:
        tried = dict(_tried(arms))
        return study(asked.output / "tune", TUNING_WORLDS, (0,), PAIRS, Size(), tried, FRESH_FOR_TUNING)
    chosen = {name: arm["settings"] for name, arm in arms.items()}
    return study(asked.output, WORLDS, SEEDS, PAIRS, Size(), with_controls(chosen), FRESH)


def with_controls(arms: Arms) -> Arms:
    """Each arm, and behind it the same with its teacher's values shuffled where it reads any."""
    both: Arms = {}
    for name, settings in arms.items():
        both[name] = settings
        if settings.get("alpha") != 0 and "values" not in settings:
            both[name + CONTROL] = settings | {"values": SHUFFLED}
    return both


def study(
    output: Path, worlds: tuple[int, ...], seeds: tuple[int, ...], pairs: int, size: Size, arms: Arms, fresh: int
) -> int:
    """Every arm in every world and seed that results.jsonl lacks, then the table. Returns 0, or 2 for a mistake."""
    results = Results(output / "results.jsonl")
    if changed := [name for name, settings in arms.items() if results.has_other(name, settings)]:
        print(
            f"{output} has results of other settings for {', '.join(changed)}; give another --output", file=sys.stderr
        )
        return 2
    total = len(worlds) * len(seeds) * (len(MODELS) + len(arms))
    for number in worlds:
        world, folder = World(number), output / f"world-{number}"
        began = time.monotonic()
        if make_world(world, folder, size, seeds):
            print(f"world {number}: models and values made in {time.monotonic() - began:.0f} s", flush=True)
        reference = load(folder / "S0")
        for seed in seeds:
            for name in (name for name in MODELS if not results.has(number, seed, name)):
                outcome = evaluate(world, load(folder / name), reference, fresh + 10 * seed)
                results.add(number, seed, name, {}, outcome, 0.0, total)
            lacking = {name: arm for name, arm in arms.items() if not results.has(number, seed, name)}
            students = Students(world, folder, seed, pairs) if lacking else None
            for name, settings in lacking.items():
                student, seconds = students.train(settings)
                outcome = evaluate(world, student, reference, fresh + 10 * seed)
                results.add(number, seed, name, settings, outcome, seconds, total)
    print("\n" + table(results.lines))
    return 0


def make_world(world: World, folder: Path, size: Size, seeds: tuple[int, ...]) -> bool:
    """A world's models and pairs, and what each model says of the pairs, asked over HTTP; False if all is there."""
    if folder.exists():
        return False
    making = folder.with_suffix(".making")
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    make_models(world, making, size, seeds)
    for name in MODELS:
        Prefetch(
            model=str(making / name), store=str(making / "values"), dataset=str(making / "pairs.jsonl"),
            tokenizer=str(making / name), quiet=True,
        ).run()  # fmt: skip
    making.rename(folder)
    return True


class Results:
    """The lines of results.jsonl, one a finished run. A line that a kill cut short is removed, and its run repeated."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        whole, _, _ = path.read_text().rpartition("\n") if path.exists() else ("", "", "")
        path.write_text(whole + "\n" if whole else "")
        self.lines: list[dict[str, Any]] = [json.loads(line) for line in whole.splitlines()]
        self._path = path

    def has(self, world: int, seed: int, arm: str) -> bool:
        return any((line["world"], line["seed"], line["arm"]) == (world, seed, arm) for line in self.lines)

    def has_other(self, arm: str, settings: dict[str, Any]) -> bool:
        return any(line["arm"] == arm and line["settings"] != settings for line in self.lines)

    def add(
        self, world: int, seed: int, arm: str, settings: dict[str, Any], outcome: Any, seconds: float, of: int
    ) -> None:
        numbers = {name: round(number, 4) for name, number in dataclasses.asdict(outcome).items()}
        line = {"world": world, "seed": seed, "arm": arm, **numbers, "seconds": round(seconds, 1), "settings": settings}
        with self._path.open("a") as file:
            file.write(json.dumps(line) + "\n")
        self.lines.append(line)
        print(
            f"{len(self.lines):4} of {of}  world {world} seed {seed}  {arm:24} reward {outcome.reward:5.2f}  "
            f"KL {outcome.kl:5.2f}  length {outcome.length:4.1f}  {seconds:4.0f} s", flush=True
        )  # fmt: skip


def _tried(arms: Arms) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, arm in arms.items():
        for values in itertools.product(*arm["tried"].values()):
            given = dict(zip(arm["tried"], values, strict=True))
            yield f"{name} {json.dumps(given)}", arm["settings"] | given


if __name__ == "__main__":
    raise SystemExit(main())
