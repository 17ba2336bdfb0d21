"""Train the models of recipes, each in a single-threaded process, one per core, the longest first."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from filelock import FileLock

from opd.config.places import ROOT
from opd.config.recipe import Recipe, model_path
from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.printable import printable_text
from opd.records.files import make_folder

# Models that come with the package, by the names that they get under `paths.models`.
TRAINED = Path(__file__).parent / "trained"

# Where models may be copied from instead of being trained: a checkout's own are found from any working folder.
MADE = (TRAINED, *([ROOT / "models"] if (ROOT / "pyproject.toml").is_file() else []))


def ensure_models(recipes: Mapping[str, Recipe], models_dir: Path) -> dict[str, Path]:
    """Copy or train missing models; return recipe name → model directory, in Hugging Face format.

    Raises:
        UserError: where a model cannot be trained; the others in progress are then terminated.
        OSError: where `models_dir` cannot be created.
    """
    paths = {name: model_path(name, recipe, models_dir) for name, recipe in recipes.items()}
    for path in paths.values():
        made = [folder / path.name for folder in MADE if (folder / path.name).is_dir()]
        if made and not path.is_dir():
            make_model(path, partial(shutil.copytree, made[0], dirs_exist_ok=True))
    missing = sorted((name for name in recipes if not paths[name].is_dir()), key=lambda name: -_cost(recipes[name]))
    if missing:
        make_folder(models_dir)
        _train_all({name: (recipes[name], paths[name]) for name in missing})
    return paths


def make_model(target: Path, fill: Callable[[Path], object]) -> None:
    """Make the folder `target` by `fill`, atomically and unless it exists; of several processes one does so and the
    others wait.
    """
    make_folder(target.parent)
    with FileLock(target.parent / f".{target.name}.lock"):
        if target.is_dir():
            return
        for abandoned in target.parent.glob(f".{target.name}.*.part"):
            shutil.rmtree(abandoned)
        part = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        try:
            fill(part)
            part.chmod(0o755)
            os.rename(part, target)
        finally:
            shutil.rmtree(part, ignore_errors=True)


def _cost(recipe: Recipe) -> float:
    """An estimate of the training's multiplications, to sort by."""
    size = recipe.architecture
    if size is None:
        return float("inf")
    attention = 2 * size.head_dim * (size.num_heads + size.num_kv_heads)
    layer = size.hidden_size * (attention + 3 * size.intermediate_size)
    return float(recipe.steps * recipe.batch_size * size.num_layers * layer)


def _train_all(missing: dict[str, tuple[Recipe, Path]]) -> None:
    workers: list[subprocess.Popen[str]] = []
    stopping, guard = threading.Event(), threading.Lock()
    folder = next(iter(missing.values()))[1].parent
    progress = ProgressLog({name: recipe.steps for name, (recipe, _) in missing.items()}, folder)

    def build(name: str) -> None:
        recipe, target = missing[name]
        with tempfile.TemporaryFile("w+") as errors:
            with guard:
                if stopping.is_set():
                    return
                worker = _start(recipe, target, errors)
                workers.append(worker)
            failure = _relay(worker, lambda message: progress.advance(name, message))
            if stopping.is_set():
                return
            if worker.returncode:
                errors.seek(0)
                lines = errors.read().strip().splitlines()
                failure = failure or (lines[-1] if lines else f"its process ended with status {worker.returncode}")
                raise UserError(f"recipes.{name}: the model could not be made: {failure}")
            progress.finish(name)

    slots = min(len(missing), os.cpu_count() or 1)
    with ThreadPoolExecutor(slots) as pool:
        jobs = [pool.submit(build, name) for name in missing]
        try:
            for job in jobs:
                job.result()
        finally:
            with guard:
                stopping.set()
            for worker in workers:
                if worker.poll() is None:
                    worker.terminate()


def _start(recipe: Recipe, target: Path, errors: Any) -> subprocess.Popen[str]:
    worker = subprocess.Popen(
        [sys.executable, "-m", "opd.recipes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert worker.stdin is not None
    with suppress(BrokenPipeError), worker.stdin:  # a worker that died at once is reported by its exit status
        worker.stdin.write(json.dumps({"recipe": asdict(recipe), "target": str(target)}) + "\n")
    return worker


def _relay(worker: subprocess.Popen[str], report: Callable[[dict[str, Any]], None]) -> str | None:
    """Forward a worker's messages until it ends; return its error message, if any."""
    failure = None
    assert worker.stdout is not None
    for line in worker.stdout:
        message = json.loads(line)
        if "error" in message:
            failure = message["error"]
        elif "step" in message:
            report(message)
    worker.wait()
    return failure


def locate(model: str, config: RunConfig) -> tuple[str, str | None]:
    """Return path or hub id, and revision, of `model` (`self`: the student); a recipe's is trained if missing."""
    revision = config.student.revision if model == "self" else None
    model = config.student.model if model == "self" else model
    if model.startswith("sft:"):
        model = str(ensure_models(config.recipes, Path(config.paths.models))[model.removeprefix("sft:")])
    return model, revision


def make_models(config: RunConfig) -> None:
    """Train the missing models of the config's recipes."""
    if config.recipes:
        ensure_models(config.recipes, Path(config.paths.models))


class ProgressLog:
    """Prints a line to stderr at every tenth of a model's steps."""

    def __init__(self, steps: dict[str, int], folder: Path):
        self._steps, self._start = steps, time.monotonic()
        self._next = {name: total / 10 for name, total in steps.items()}
        named = ", ".join(f"{name} ({total} steps)" for name, total in steps.items())
        self._say(f"training {named}, kept in {folder.resolve()} (paths.models) for later runs")

    def advance(self, name: str, message: Mapping[str, Any]) -> None:
        if message["step"] >= self._next[name]:
            self._next[name] = message["step"] + self._steps[name] / 10
            self._say(f"{name} {message['step']}/{self._steps[name]} loss {message['loss']:.3f}")

    def finish(self, name: str) -> None:
        self._say(f"{name} is ready")

    def _say(self, text: str) -> None:
        print(printable_text(f"sft {time.monotonic() - self._start:.0f} s: {text}"), file=sys.stderr, flush=True)
