"""`tvkd study FILE.yaml`: arms × seeds with their controls, resumable, and what they found."""

import itertools
import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

# The report needs both, hours later: what is missing is said at once.
import matplotlib as mpl  # noqa: F401
import scipy  # noqa: F401
import yaml
from pydantic import Field, PositiveInt
from pydantic_settings import CliPositionalArg

from tvkd.evaluation.command import RESULT
from tvkd.study.plan import Run, Study
from tvkd_shared.errors import InvalidRequest, TVKDError
from tvkd_shared.settings import Command


class StudyCommand(Command, cli_prog_name="tvkd study"):
    """Find out which objective helps a student: train every arm of a file with every seed, beside DPO and controls.

    A study that was stopped goes on where it was. Results go to the file's output folder: results.jsonl, report.html.
    """

    file: CliPositionalArg[str] = Field(description="the study's YAML file")
    jobs: PositiveInt = Field(1, description="runs at once; with several GPUs each run has one")
    report: bool = Field(False, description="train nothing: make the tables and the report of the runs that are there")

    def run(self) -> int:
        """Raises the errors of `tvkd_shared.errors`."""
        study = Study(self.file)
        _check(study)
        lacking = [run for run in study.runs if not (run.folder / RESULT).exists()]
        failed = [] if self.report else _Runs(study, lacking, self.jobs).run()
        from tvkd.study.report import write_report  # noqa: PLC0415 - matplotlib too

        write_report(study)
        if failed:
            raise TVKDError(f"{len(failed)} of {len(lacking)} runs failed; the first: {failed[0]}")
        return 0


def _check(study: Study) -> None:
    """Every arm's settings and models, the held-out pairs and the reward, before the first run takes hours.

    Raises InvalidRequest, also when a run's folder has other settings than the file now has.
    """
    # TRL takes seconds to import, and `--help` does not need it.
    from tvkd.evaluation.harness import task_manager  # noqa: PLC0415
    from tvkd.evaluation.loading import load_function  # noqa: PLC0415
    from tvkd.study.training import held_out_rows  # noqa: PLC0415
    from tvkd_client.roles import open_sources  # noqa: PLC0415

    held_out = study.file.held_out
    if held_out.reward:
        load_function(held_out.reward)
    if held_out.tasks:
        task_manager(held_out.tasks, held_out.tasks_folder)
    _check_outcome(study)
    checked = set()
    for run in study.runs:
        _refuse_changed(study, run)
        if run.arm.name in checked:
            continue
        checked.add(run.arm.name)
        try:
            script, training = _parsed(study.settings_of(run))
            open_sources(training, {})
        except TVKDError as error:
            raise type(error)(f"arm {run.arm.name}: {error.message}") from error
    held_out_rows(held_out, script)


def _check_outcome(study: Study) -> None:
    """Raises InvalidRequest unless verdicts are about something that is measured."""
    from tvkd.evaluation.outcome import OF_PAIRS, OF_SAMPLES  # noqa: PLC0415 - TRL takes seconds to import

    held_out = study.file.held_out
    of_samples = (*OF_SAMPLES, *(["reward"] if held_out.reward else []))
    known = [*OF_PAIRS, *(of_samples if held_out.samples else []), *(f"{task}/METRIC" for task in held_out.tasks)]
    if study.outcome not in known and study.outcome.partition("/")[0] not in held_out.tasks:
        raise InvalidRequest(f"outcome {study.outcome} is not measured; held_out has {', '.join(known)}")


def _parsed(settings: dict[str, Any]) -> Any:
    from tvkd_client.train import parse  # noqa: PLC0415

    with tempfile.NamedTemporaryFile("w", suffix=".yaml", encoding="utf-8") as file:
        yaml.safe_dump(settings, file)
        file.flush()
        return parse(["--config", file.name])[:2]


def _content(study: Study, run: Run) -> dict[str, Any]:
    """What run.json holds: all that decides a run's outcome."""
    return {
        "arm": run.arm.name,
        "control": run.arm.control,
        "seed": run.seed,
        "settings": {name: value for name, value in study.settings_of(run).items() if name != "output_dir"},
        "held_out": study.file.held_out.model_dump(),
        "keep_model": study.file.keep_models,
    }


def _refuse_changed(study: Study, run: Run) -> None:
    if not (run.folder / RESULT).exists():
        return
    before = json.loads((run.folder / "run.json").read_text(encoding="utf-8"))
    now = json.loads(json.dumps(_content(study, run)))
    if changed := [name for name in now if before.get(name) != now[name]]:
        raise InvalidRequest(
            f"{run.folder} has the outcome of other {', '.join(changed)} than {study.path} now has; name another "
            "output, or remove that folder"
        )


def prepare(study: Study, run: Run) -> None:
    """Make a run's folder anew, with what its process reads."""
    shutil.rmtree(run.folder, ignore_errors=True)  # what a stopped run left
    run.folder.mkdir(parents=True)
    (run.folder / "run.json").write_text(json.dumps(_content(study, run), indent=1) + "\n", encoding="utf-8")
    settings = yaml.safe_dump(study.settings_of(run), allow_unicode=True, sort_keys=False)
    (run.folder / "settings.yaml").write_text(settings, encoding="utf-8")


class _Runs:
    """Runs that are still to be done, each in a process of its own, some at once."""

    def __init__(self, study: Study, lacking: list[Run], jobs: int) -> None:
        self._study, self._lacking, self._jobs = study, lacking, jobs
        self._done = len(study.runs) - len(lacking)
        self._processes: set[subprocess.Popen[str]] = set()
        self._devices: queue.Queue[str | None] = queue.Queue()
        for device, _ in zip(itertools.cycle(_devices()), range(jobs), strict=False):
            self._devices.put(device)

    def run(self) -> list[str]:
        """All of them. Returns what each that failed said last."""
        try:
            with ThreadPoolExecutor(self._jobs) as pool:
                return [said for said in pool.map(self._one, self._lacking) if said]
        finally:
            for process in list(self._processes):
                process.kill()

    def _one(self, run: Run) -> str | None:
        prepare(self._study, run)
        device, began = self._devices.get(), time.monotonic()
        try:
            code = self._process(run.folder, device)
        finally:
            self._devices.put(device)
        self._done += 1
        of = f"{self._done:3} of {len(self._study.runs)}  {run.arm.name}, seed {run.seed}"
        if code == 0:
            means = json.loads((run.folder / RESULT).read_text(encoding="utf-8"))["means"]
            seconds = time.monotonic() - began
            print(f"{of}: {self._study.outcome} {means[self._study.outcome]:.4f}, {seconds:.0f} s", flush=True)
            return None
        log = run.folder / "log.txt"
        last = (log.read_text(encoding="utf-8", errors="replace").strip().splitlines() or ["nothing"])[-1]
        print(f"{of}: failed; {log} says why", flush=True)
        return f"{last} ({log})"

    def _process(self, folder: Path, device: str | None) -> int:
        environment = os.environ | ({} if device is None else {"CUDA_VISIBLE_DEVICES": device})
        with (folder / "log.txt").open("w", encoding="utf-8") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "tvkd.study.training", str(folder)],
                stdin=subprocess.PIPE, stdout=log, stderr=log, env=environment, text=True,
            )  # fmt: skip
            self._processes.add(process)
            try:
                return process.wait()
            finally:
                self._processes.discard(process)


def _devices() -> list[str | None]:
    """The GPUs of this process, one for each run at once; None where there are not several to choose from."""
    import torch  # noqa: PLC0415

    count = torch.cuda.device_count()
    if count < 2:
        return [None]
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return list(named.split(",")) if named else list(map(str, range(count)))
