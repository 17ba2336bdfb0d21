"""Progress of a run for the person watching it: a live bar in a terminal, a line a step everywhere else."""

import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from opd.printable import printable_text, say

RECENT = 3600.0  # seconds whose steps and evaluations the time left is estimated from
# Seconds between two lines about one evaluation: in a terminal, and in a log.
ON_TERMINAL, IN_LOG = 10.0, 60.0


class Answers:
    """A line now and then about an evaluation, on stdout; none about a short one."""

    def __init__(self):
        self.interval, self.said = ON_TERMINAL if sys.stdout.isatty() else IN_LOG, time.monotonic()

    def answered(self, benchmark: str, answered: int, problems: int) -> None:
        """Reports how many of a benchmark's problems are answered."""
        if time.monotonic() - self.said >= self.interval:
            self.said = time.monotonic()
            say(f"{benchmark}: {answered} of {problems} problems answered")


class Lines(Answers):
    """A line a step, on stdout."""

    def report(self, run: Any, number: int, metrics: Mapping[str, Any]) -> None:
        """Reports that step `number` is done (0: the evaluation before the first)."""
        say(line(run, number, metrics))

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Surrounds a stage of a step."""
        if name == "evaluate":
            self.said = time.monotonic()
        yield


class Live(Lines):
    """A live progress bar, below the lines of the steps that were evaluated."""

    def __init__(self, num_steps: int):
        from rich.console import Console
        from rich.progress import BarColumn, Progress as Bars, TextColumn, TimeRemainingColumn

        super().__init__()
        self.num_steps, self.stages, self.metrics = num_steps, ["starting"], {}
        self.bars = Bars(
            BarColumn(16),
            TextColumn("step {task.completed}/{task.total}  {task.description}"),
            TimeRemainingColumn(),
            TextColumn("left  {task.fields[stage]}"),
            console=Console(),
            refresh_per_second=4,
            speed_estimate_period=RECENT,
        )
        self.task = self.bars.add_task("", total=num_steps, stage=self.stages[-1])

    def report(self, run: Any, number: int, metrics: Mapping[str, Any]) -> None:
        self.metrics |= metrics
        self.stages[0] = "done" if number == self.num_steps else "saving"
        if any(name.startswith("evaluate/") for name in metrics):
            self.bars.console.print(
                printable_text(line(run, number, metrics)), highlight=False, markup=False, soft_wrap=True
            )
        self.bars.update(
            self.task, completed=number, description=self._description(), stage=self.stages[-1], refresh=True
        )

    def answered(self, benchmark: str, answered: int, problems: int) -> None:
        self.stages[-1] = f"evaluate {benchmark} {answered}/{problems}"
        self._show_stage()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        self.stages.append(name)
        self._show_stage()
        yield
        self.stages.pop()
        self._show_stage()

    def _show_stage(self) -> None:
        self.bars.update(self.task, stage="  ".join(self.stages[1:]) or self.stages[0])

    def _description(self) -> str:
        metrics, parts = self.metrics, []
        if "divergence/reverse_kl" in metrics:
            parts.append(f"reverse_kl {metrics['divergence/reverse_kl']:.4f}")
        parts += [
            f"{name.removeprefix('evaluate/')} {100 * value:.1f} %"
            for name, value in metrics.items()
            if name.startswith("evaluate/mean@")
        ]
        if "throughput/tokens_per_second" in metrics:
            parts.append(f"{metrics['throughput/tokens_per_second']:,.0f} tokens/s")
        return "  ".join(parts)


@contextmanager
def show_progress(num_steps: int) -> Iterator[Lines]:
    """A live bar where stdout is a terminal that can move its cursor, else lines."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield Lines()
        return
    live = Live(num_steps)
    with live.bars:
        yield live


def line(run: Any, number: int, metrics: Mapping[str, Any]) -> str:
    """Step `number` in one line."""
    parts = [f"step {number:>{len(str(run.num_steps))}}/{run.num_steps}"]
    if number:
        parts += [
            f"reverse_kl {metrics['divergence/reverse_kl']:8.4f}",
            f"grad_norm {metrics['grad_norm']:7.3f}",
            f"entropy {metrics['entropy/student']:.3f}",
            f"kept {metrics['filter/kept']:.3f}",
            f"length {metrics['response/length']:5.1f}",
            f"{metrics['time/step']:5.2f} s",
            f"{metrics['throughput/tokens_per_second']:,.0f} tokens/s",
        ]
    k = run.config.evaluate.k
    parts += [
        f"{score} {100 * metrics[f'evaluate/{score}']:.1f} %"
        for score in (f"mean@{k}", f"best@{k}")
        if f"evaluate/{score}" in metrics
    ]
    return "  ".join(parts)
