"""`python -m opd.train … preflight=true`: what a run consists of, what it needs, and whether it can start.

On this machine everything is loaded and tried. For another one (`plan.ranks`, `plan.gpu_gib`) no weights are loaded,
and what is not available here is reported as unchecked.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from transformers import PreTrainedConfig

from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.model.load import load_config
from opd.model.memory import Machine, estimate_memory
from opd.model.shapes import published
from opd.preflight.checks import check_models
from opd.preflight.prompt import show_prompt
from opd.preflight.report import Report
from opd.printable import warn
from opd.ranks import dist
from opd.recipes.make import make_models
from opd.records.run_dir import RunDir
from opd.step import startup_checks
from opd.step.assemble import assemble, load_problems


def preflight(config: RunConfig, folder: RunDir) -> None:
    """Checks the run and prints a report; trains and records nothing.

    Raises:
        UserError: for the first problem that would keep it from running, or from learning.
    """
    if config.plan.ranks is None:
        _here(config, folder)
    else:
        _elsewhere(config)


def _here(config: RunConfig, folder: RunDir) -> None:
    ranks = dist.start(timeout=config.compute.rank_timeout, group=config.compute.grouped)
    try:
        report = Report(quiet=not ranks.main)
        ranks.on_main(lambda: make_models(config))
        readings = startup_checks.load_readings(config)
        report.texts(config, readings)
        startup_checks.compare_tokenizers(config, *readings)
        (models, _), machine = startup_checks.model_configs(config), startup_checks.this_machine(ranks)
        estimate = estimate_memory(config, models, machine, config.prompts.max_prompt_length)
        report.memory(estimate)
        startup_checks.check_memory(config, models, estimate)
        with closing(assemble(config, folder, ranks, readings)) as run:
            show_prompt(run, report)
            report.work(config, models, len(run.prompts), {name: len(each) for name, each in run.benchmarks.items()})
            report.checks(check_models(run))
        report.line("preflight: this run can start")
    finally:
        dist.stop()


def _elsewhere(config: RunConfig) -> None:
    """Checks for another machine, from models' configs alone; published ones where the hub cannot be reached."""
    assert config.plan.ranks is not None and config.plan.gpu_gib is not None
    report = Report(quiet=False)
    make_models(config)
    try:
        readings = startup_checks.load_readings(config)
    except UserError as error:
        report.unchecked("tokenizers", error)
        report.published_ends(config)
        readings = []
    models, vocabulary = startup_checks.model_configs(config, load_or_published)
    said = vocabulary.said()
    if readings:
        report.texts(config, readings)
        said = startup_checks.compare_tokenizers(config, *readings)
        said += startup_checks.check_vocabulary(config, vocabulary, readings[0])
    for sentence in said:
        warn(sentence)
    report.work(config, models, *_problems(config, report))
    machine = Machine("cuda", config.plan.ranks, int(config.plan.gpu_gib * 2**30))
    estimate = estimate_memory(config, models, machine, config.prompts.max_prompt_length)
    report.memory(estimate)
    startup_checks.check_memory(config, models, estimate)
    report.line("preflight: this run fits into memory; its weights were not loaded")


def load_or_published(model: str, *, revision: str | None, key: str) -> PreTrainedConfig:
    """The model's config; where it cannot be loaded, the one in `published.yaml`."""
    try:
        return load_config(model, revision=revision, key=key)
    except UserError:
        known = published(model)
        if known is None:
            raise
        return known


def _problems(config: RunConfig, report: Report) -> tuple[int | None, dict[str, int | None]]:
    """The numbers of training prompts and of problems by benchmark; None where they are not available here."""

    def count(what: str, load: Callable[[], Sequence[Any]]) -> int | None:
        try:
            return len(load())
        except UserError as error:
            report.unchecked(what, error)
            return None

    return count("prompts", lambda: load_problems(config.prompts.source, config, key="prompts.source")), {
        name: count(
            f"evaluate.sources.{name}",
            lambda name=name, source=source: load_problems(source, config, key=f"evaluate.sources.{name}"),
        )
        for name, source in config.evaluate.sources.items()
    }
