"""What a person watching a run reads: a live line in a terminal, and a line a step everywhere else."""

import math
import os
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

RECENT = 20  # steps, and evaluations, whose mean is what the next one is expected to take


@runtime_checkable
class Progress(Protocol):
    """Someone who is told of every step, and of every stage within it."""

    def say(self, run: Any, number: int, metrics: Mapping[str, Any]) -> None:
        """Step `number` has been made (0: the evaluation before the first)."""
        ...

    def entering(self, stage: str) -> Any:
        """A stage begins; the context manager that this returns lasts as long."""
        ...


class Lines:
    """A line a step, on stdout."""

    def say(self, run: Any, number: int, metrics: Mapping[str, Any]) -> None:
        print(line(run, number, metrics), flush=True)

    @contextmanager
    def entering(self, stage: str) -> Iterator[None]:
        yield


class Live:
    """A line that keeps up with the run, below the lines of the steps that were evaluated."""

    def __init__(self, num_steps: int, every: int):
        from rich.console import Console
        from rich.live import Live as Display

        self.left, self.num_steps, self.stages = TimeLeft(num_steps, every), num_steps, ["starting"]
        self.number, self.metrics = 0, {}
        self.display = Display(
            get_renderable=self._shown, console=Console(), refresh_per_second=4, redirect_stderr=True, transient=False
        )

    def say(self, run: Any, number: int, metrics: Mapping[str, Any]) -> None:
        self.number = number
        self.metrics |= metrics
        self.stages[0] = "done" if number == self.num_steps else "saving"
        self.left.note(metrics.get("time/step"), run.seconds.get("time/evaluate"))
        if any(name.startswith("evaluate/") for name in metrics):
            self.display.console.print(line(run, number, metrics), highlight=False, markup=False, soft_wrap=True)
        self.display.refresh()

    @contextmanager
    def entering(self, stage: str) -> Iterator[None]:
        self.stages.append(stage)
        yield
        self.stages.pop()

    def _shown(self) -> Any:
        from rich.progress_bar import ProgressBar
        from rich.table import Table

        metrics = self.metrics
        parts = [f"step {self.number}/{self.num_steps}"]
        if "divergence/reverse_kl" in metrics:
            parts.append(f"reverse_kl {metrics['divergence/reverse_kl']:.4f}")
        parts += [
            f"{name.removeprefix('evaluate/')} {100 * value:.1f} %"
            for name, value in metrics.items()
            if name.startswith("evaluate/mean@")
        ]
        if "throughput/tokens_per_second" in metrics:
            parts.append(f"{metrics['throughput/tokens_per_second']:,.0f} tokens/s")
        if (seconds := self.left.seconds(self.number)) is not None:
            parts.append(f"{clock(seconds)} left")
        row = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=self.num_steps, completed=self.number, width=16)
        row.add_row(bar, "  ".join([*parts, self.stages[-1]]))
        return row


class TimeLeft:
    """Seconds to the end of a run: the mean of recent steps for each that is left, and evaluations counted apart."""

    def __init__(self, num_steps: int, every: int):
        self.num_steps, self.every = num_steps, every
        self.steps: deque[float] = deque(maxlen=RECENT)
        self.evaluations: deque[float] = deque(maxlen=RECENT)
        self.noted = 0

    def note(self, step: float | None, evaluation: float | None) -> None:
        """What a step took, and its evaluation, where it had one; the first step, which warms up, counts only until
        there is a second.
        """
        if step is not None:
            if self.noted == 1:
                self.steps.clear()
            self.noted += 1
            self.steps.append(step)
        if evaluation is not None:
            self.evaluations.append(evaluation)

    def seconds(self, number: int) -> float | None:
        """After step `number`; None while no step has been made."""
        if not self.steps:
            return None
        due = range(number + 1, self.num_steps + 1)
        examined = sum(1 for step in due if step == self.num_steps or (self.every and step % self.every == 0))
        mean = sum(self.evaluations) / len(self.evaluations) if self.evaluations else 0.0
        return len(due) * sum(self.steps) / len(self.steps) + examined * mean


@contextmanager
def shown(num_steps: int, every: int) -> Iterator[Progress]:
    """A live line where stdout is a terminal that can move its cursor, else lines."""
    if not sys.stdout.isatty() or os.environ.get("TERM", "dumb") == "dumb":
        yield Lines()
        return
    live = Live(num_steps, every)
    with live.display:
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


def clock(seconds: float) -> str:
    """Hours, minutes and seconds."""
    whole = math.ceil(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02}:{whole % 60:02}"
