"""`python -m opd.train … preflight=true`: what the run is made of, what it will take, and whether that can be had.

Here everything is loaded and tried. For a machine that is meant (`plan.ranks`, `plan.gpu_gib`) no weights are, and what
cannot be had here is said to be unchecked.
"""

from collections.abc import Callable, Sequence
from contextlib import closing
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from transformers import PreTrainedConfig

from opd.config.schema import RunConfig
from opd.config.steps import steps
from opd.errors import UserError
from opd.model.load import load_config
from opd.model.memory import PHASES, Machine, Models, Plan, plan
from opd.model.shapes import published, published_ends
from opd.model.texts import Reading, rendered
from opd.plan.probes import probe
from opd.ranks import dist
from opd.recipes.make import make_models
from opd.records.run_dir import RunDir
from opd.step import ready
from opd.step.assemble import assemble, load_problems

# What is rendered to compare templates, and how much of it is shown.
PROBLEM = "17+26="
SHOWN = 300


def preflight(config: RunConfig, folder: RunDir) -> None:
    """Checks and shows the run; nothing is trained or recorded.

    Raises:
        UserError: for the first thing that would keep it from running, or learning.
    """
    if config.plan.ranks is None:
        _here(config, folder)
    else:
        _elsewhere(config)


def _here(config: RunConfig, folder: RunDir) -> None:
    ranks = dist.start(timeout=config.compute.rank_timeout, group=config.compute.grouped)
    try:
        show = Show(quiet=not ranks.main)
        ranks.lead(lambda: make_models(config))
        readings = ready.readings(config)
        show.texts(config, readings)
        ready.compare(config, *readings)
        models, machine = ready.model_configs(config), ready.this_machine(ranks)
        made = plan(config, models, machine, config.prompts.max_prompt_length)
        show.memory(made)
        ready.memory_suffices(config, models, made)
        with closing(assemble(config, folder, ranks, readings)) as run:
            show.work(config, models, len(run.prompts), {name: len(each) for name, each in run.benchmarks.items()})
            show.probes(probe(run))
        show.line("preflight: this run can start")
    finally:
        dist.stop()


def _elsewhere(config: RunConfig) -> None:
    """For another machine: from configs alone, published ones where the hub has none to give."""
    assert config.plan.ranks is not None and config.plan.gpu_gib is not None
    show = Show(quiet=False)
    make_models(config)
    try:
        readings = ready.readings(config)
    except UserError as error:
        show.unchecked("tokenizers", error)
        show.published_ends(config)
        readings = []
    if readings:
        show.texts(config, readings)
        ready.compare(config, *readings)
    models = ready.model_configs(config, load_or_published)
    show.work(config, models, *_problems(config, readings, show))
    machine = Machine("cuda", config.plan.ranks, int(config.plan.gpu_gib * 2**30))
    made = plan(config, models, machine, config.prompts.max_prompt_length)
    show.memory(made)
    ready.memory_suffices(config, models, made)
    show.line("preflight: this run has room; its weights were not loaded")


def load_or_published(model: str, *, revision: str | None, key: str) -> PreTrainedConfig:
    """The model's config; where it cannot be loaded, the published one that this project knows by heart."""
    try:
        return load_config(model, revision=revision, key=key)
    except UserError:
        known = published(model)
        if known is None:
            raise
        return known


def _problems(config: RunConfig, readings: Sequence[Reading], show: "Show") -> tuple[int | None, dict[str, int | None]]:
    """How many training prompts and benchmark problems there are; None where they cannot be had here."""

    def count(what: str, load: Callable[[], Sequence[Any]]) -> int | None:
        try:
            return len(load())
        except UserError as error:
            show.unchecked(what, error)
            return None

    return count("prompts", lambda: load_problems(config.prompts.source, config, key="prompts.source")), {
        name: count(
            f"evaluate.sources.{name}", lambda name=name, source=source: load_problems(source, config, key=name)
        )
        for name, source in config.evaluate.sources.items()
    }


class Show:
    """Prints the parts of a preflight as plain tables."""

    def __init__(self, *, quiet: bool):
        self.console = Console(width=120, highlight=False, quiet=quiet, soft_wrap=False)

    def line(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def unchecked(self, what: str, error: UserError) -> None:
        self.line(f"not checked: {what}: {error}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> None:
        """A table whose last `numbers` columns are numbers."""
        table = Table(*[], title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            right = index >= len(columns) - numbers
            table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
        for row in rows:
            table.add_row(*(cell.replace("[", r"\[") for cell in row))
        self.console.print(table)

    def texts(self, config: RunConfig, readings: Sequence[Reading]) -> None:
        """Vocabulary, special tokens, ends and chat template of each model, and a prompt as each would show it."""
        first, rows = readings[0], []
        text = config.prompts.prefix + PROBLEM + config.prompts.suffix
        shown: dict[str, list[str]] = {}
        for reading in readings:
            same = reading.special == first.special
            template = rendered(reading.tokenizer, config.prompts.system, text)
            ours = rendered(first.tokenizer, config.prompts.system, text)
            rows.append(
                (
                    reading.key,
                    reading.model,
                    str(len(reading.tokenizer.get_vocab())),
                    " ".join(
                        f"{token} {index}"
                        for token, index in zip(reading.named(reading.ends), reading.ends, strict=True)
                    ),
                    "as the student's" if same and reading is not first else _special(reading),
                    "none"
                    if template is None
                    else "as the student's"
                    if reading is not first and template == ours
                    else "its own",
                )
            )
            shown.setdefault(text if config.prompts.template == "raw" or template is None else template, []).append(
                reading.key
            )
        columns = ("", "model", "vocabulary", "stops at", "special tokens", "chat template")
        self.table("Texts", columns, rows)
        for prompt, keys in shown.items():
            self.line(f"a prompt, as by {', '.join(keys)}:")
            self.line(f"  {prompt[:SHOWN]!r}")

    def published_ends(self, config: RunConfig) -> None:
        """What ends a text of the models whose published configs are known."""
        for key, model in (("student.model", config.student.model), *(("teacher", m) for m in config.teacher.models)):
            if published(model) is not None:
                ends = " ".join(f"{token} {index}" for token, index in published_ends(model).items())
                self.line(f"{key}={model} is published to end a text with {ends}")
        self.line(f"student.stop_tokens={config.student.stop_tokens}")

    def work(self, config: RunConfig, models: Models, prompts: int | None, benchmarks: dict[str, int | None]) -> None:
        """Steps, prompts, tokens and evaluations: counts of tokens are the most there may be."""
        num_steps = steps(config, prompts) if prompts is not None else config.num_steps
        a_step = config.batch_size * config.samples_per_prompt
        asked = max(map(len, models.together))
        longest = config.prompts.max_prompt_length + config.max_response_length
        each: list[tuple[str, int]] = [
            ("prompts", config.batch_size),
            ("responses sampled", a_step),
            ("tokens sampled, at most", a_step * config.max_response_length),
            ("tokens scored by teachers, at most", a_step * longest * asked),
            ("tokens that the student learns from, at most", a_step * config.max_response_length),
            ("optimizer updates", config.batch_size // config.mini_batch_size),
        ]
        whole: list[tuple[str, int | None, int | None]] = [
            (name, number, None if num_steps is None else number * num_steps) for name, number in each
        ]
        count = None if num_steps is None else _evaluations(config, num_steps)
        problems = None if None in benchmarks.values() else sum(filter(None, benchmarks.values()))
        answers = None if problems is None else problems * config.evaluate.k
        title = "Work" if num_steps is None else f"Work of {num_steps:,} steps"
        if prompts is not None:
            title += f" over {prompts:,} prompts"
        whole.append(("evaluations", None, count))
        in_all = None if answers is None or count is None else answers * count
        whole.append(("answers of an evaluation", answers, in_all))
        self.table(title, ("", "a step", "the run"), [(n, _count(a), _count(b)) for n, a, b in whole], numbers=2)

    def probes(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """What was tried, what came of it, and what it must not pass."""
        self.table("Probes", ("", "found", "refused from"), rows, numbers=2)

    def memory(self, made: Plan) -> None:
        """What a rank holds, item by item and phase by phase."""
        unit, name = (2**30, "GiB") if made.total(made.worst) >= 2**30 else (2**20, "MiB")
        rows = []
        for item in made.items:
            where = " (in the CPU's memory)" if item.host and made.machine.kind == "cuda" else ""
            cells = [f"{item.size / unit:,.2f}" if phase in item.phases else "" for phase in PHASES]
            rows.append((item.name + where, *cells))
        rows.append(("in all", *(f"{made.total(phase) / unit:,.2f}" for phase in PHASES)))
        rows.append(("the device has", *([f"{made.machine.usable / unit:,.2f}"] * len(PHASES))))
        title = f"Memory of each of {made.machine.ranks} ranks, {name}, on a {made.machine.kind} device of "
        self.table(f"{title}{made.machine.memory / unit:,.1f}", ("", *PHASES), rows, numbers=len(PHASES))


def _special(reading: Reading) -> str:
    tokens = [f"{role} {token}" for role, token in reading.special.items() if isinstance(token, str)]
    return ", ".join(tokens) or "none"


def _evaluations(config: RunConfig, num_steps: int) -> int:
    if not config.evaluate.benchmarks:
        return 0
    every = config.evaluate.every
    regular = num_steps // every if every else 0
    return regular + (not every or num_steps % every != 0) + config.evaluate.at_start


def _count(number: int | None) -> str:
    return "" if number is None else f"{number:,}"
