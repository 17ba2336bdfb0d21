"""The report of a preflight: plain tables on stdout."""

from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

from opd.config.schema import RunConfig
from opd.config.steps import steps
from opd.errors import UserError
from opd.model.memory import PHASES, MemoryEstimate, Models
from opd.model.shapes import published, published_ends
from opd.model.texts import Reading, rendered
from opd.printable import printable_text

# The problem that is rendered to compare chat templates, and the characters that are printed of a prompt.
PROBLEM = "17+26="
PRINTED = 2000


class Report:
    """Prints each part of a preflight."""

    def __init__(self, *, quiet: bool):
        self.console = Console(width=120, highlight=False, quiet=quiet, soft_wrap=False)

    def line(self, text: str) -> None:
        self.console.print(printable_text(text), markup=False, soft_wrap=True)

    def unchecked(self, what: str, error: UserError) -> None:
        self.line(f"not checked: {what}: {error}")

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], numbers: int = 0) -> None:
        """Prints a table whose last `numbers` columns are numbers."""
        table = Table(*[], title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD, pad_edge=False)
        for index, column in enumerate(columns):
            right = index >= len(columns) - numbers
            table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=right)
        for row in rows:
            table.add_row(*(printable_text(cell).replace("[", r"\[") for cell in row))
        self.console.print(table)

    def texts(self, config: RunConfig, readings: Sequence[Reading]) -> None:
        """Vocabulary, special tokens, end tokens and chat template of each model."""
        first, rows = readings[0], []
        text = config.prompts.prefix + PROBLEM + config.prompts.suffix
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
        columns = ("", "model", "vocabulary", "stops at", "special tokens", "chat template")
        self.table("Texts", columns, rows)

    def prompt(self, title: str, num_tokens: int, text: str) -> None:
        """A prompt as Python writes a text, so that spaces and invisible characters show; a line for each of its."""
        self.line(f"{title}, in {num_tokens:,} tokens:")
        for line in text[:PRINTED].splitlines(keepends=True):
            self.line(f"  {line!r}")
        if len(text) > PRINTED:
            self.line(f"  … and {len(text) - PRINTED:,} characters more")
        self.line("")

    def published_ends(self, config: RunConfig) -> None:
        """The end tokens of the models whose published configs are known."""
        for key, model in (("student.model", config.student.model), *(("teacher", m) for m in config.teacher.models)):
            if published(model) is not None:
                ends = " ".join(f"{token} {index}" for token, index in published_ends(model).items())
                self.line(f"{key}={model} ends a text with {ends}, as published")
        self.line(f"student.stop_tokens={config.student.stop_tokens}")

    def work(self, config: RunConfig, models: Models, prompts: int | None, benchmarks: dict[str, int | None]) -> None:
        """Steps, prompts, tokens and evaluations; numbers of tokens are upper bounds."""
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
        rows: list[tuple[str, int | None, int | None]] = [
            (name, number, None if num_steps is None else number * num_steps) for name, number in each
        ]
        count = None if num_steps is None else _evaluations(config, num_steps)
        problems = None if None in benchmarks.values() else sum(filter(None, benchmarks.values()))
        answers = None if problems is None else problems * config.evaluate.k
        title = "Work" if num_steps is None else f"Work of {num_steps:,} steps"
        if prompts is not None:
            title += f" over {prompts:,} prompts"
        rows.append(("evaluations", None, count))
        total = None if answers is None or count is None else answers * count
        rows.append(("answers of an evaluation", answers, total))
        self.table(title, ("", "a step", "the run"), [(n, _count(a), _count(b)) for n, a, b in rows], numbers=2)

    def checks(self, rows: Sequence[tuple[str, str, str]]) -> None:
        """What was measured, its value, and the value from which a run is refused."""
        self.table("Checks", ("", "measured", "refused from"), rows, numbers=2)

    def memory(self, estimate: MemoryEstimate) -> None:
        """The memory of a rank, item by item and phase by phase."""
        unit, name = (2**30, "GiB") if estimate.total(estimate.worst) >= 2**30 else (2**20, "MiB")
        rows = []
        for item in estimate.items:
            where = " (in the CPU's memory)" if item.host and estimate.machine.kind == "cuda" else ""
            cells = [f"{item.size / unit:,.2f}" if phase in item.phases else "" for phase in PHASES]
            rows.append((item.name + where, *cells))
        rows.append(("total", *(f"{estimate.total(phase) / unit:,.2f}" for phase in PHASES)))
        rows.append(("the device has", *([f"{estimate.machine.usable / unit:,.2f}"] * len(PHASES))))
        title = f"Memory of each of {estimate.machine.ranks} ranks, {name}, on a {estimate.machine.kind} device of "
        self.table(f"{title}{estimate.machine.memory / unit:,.1f}", ("", *PHASES), rows, numbers=len(PHASES))


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
