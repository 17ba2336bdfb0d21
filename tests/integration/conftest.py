"""A world small enough to run whole: random models of the tiny world's shape, a few steps, a few problems."""

import os
import shutil
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from opd import cli
from opd.check import config as check
from opd.config.schema import RunConfig
from opd.watch.tracked import Tracker
from opd.watch.wandb_tracker import WandbTracker
from sweeps.compose import Composer, composer
from tests.random_models import save_random

# A process that began under nohup ignores it, and so would the runs of tests that send it.
signal.signal(signal.SIGHUP, signal.SIG_DFL)

RANDOM_MODELS = ("student", "small", "medium", "large")


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """A headless Chromium. Skips where there is none, fails where `CI` is set."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        chromium, sync_playwright = None, None
    if chromium is None or sync_playwright is None:
        missing = "needs Chromium on PATH (apt install chromium) and the package playwright (pip install playwright)"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random student and three random teachers, all of one vocabulary."""
    folder = tmp_path_factory.mktemp("models")
    save_random(folder, {name: {"num_layers": 1 + place // 2} for place, name in enumerate(RANDOM_MODELS)})
    return folder


@pytest.fixture(scope="session")
def small_run(models: Path) -> list[str]:
    """Overrides that make any experiment of scale=tiny a run of four steps on the random models."""
    return [
        f"student.model={models / 'student'}",
        f"scale.teacher={models / 'large'}",
        f"scale.ladder=[{models / 'small'},{models / 'medium'},{models / 'large'}]",
        "num_steps=4",
        "batch_size=4",
        "samples_per_prompt=2",
        "max_response_length=12",
        "evaluate.every=2",
        "evaluate.k=2",
        "evaluate.sources.arithmetic.num=3",
        "checkpoint.every=1",
        "prompts.source.num=32",
    ]


KEPT = Composer(ConfigLoaderImpl)  # each choice of groups is composed once a process


def composed(overrides: list[str]) -> RunConfig:
    """The checked config of `python -m opd.train <overrides>`."""
    with composer():
        return KEPT.config(overrides)


def composed_by_hydra(overrides: list[str]) -> RunConfig:
    """The same by Hydra alone, as the command does it."""
    cli.register_resolvers()
    with initialize_config_dir(str(cli.CONF), version_base="1.3"):
        return check.prepare(cli.resolved(compose("config", overrides=overrides)))


@contextmanager
def once_told(step: int, happens: Callable[[], Any], tracker: type[Tracker] = WandbTracker) -> Iterator[None]:
    """Lets something happen when a tracker has been told of a step."""
    original = tracker.log

    def log(self, line):
        original(self, line)
        if line["step"] == step:
            happens()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tracker, "log", log)
        yield
