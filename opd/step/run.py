"""What a run is made of: everything that a step uses."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from opd.checkpoint.background import Background
from opd.checkpoint.store import Learned
from opd.config.schema import RunConfig
from opd.data.batch import Prompt, Rollout, Sampling, TeacherScores
from opd.data.control import Control
from opd.model.optim import Optimizer
from opd.model.policy import Policy, Scorer
from opd.objective.divergence import Divergence, Mixed
from opd.objective.mixture import BoundEnsemble, Mixture
from opd.ranks.dist import Ranks
from opd.records.run_dir import RunDir
from opd.rollout.protocol import Responses, Sampler, StudentSampler
from opd.step.learn import Learner
from opd.teacher.context import Context, Grades
from opd.teacher.local import Teachers
from opd.watch.pages import Pages
from opd.watch.throughput import Meter


@dataclass
class Run:
    """Everything that a step uses. The method's stages carry the names of their config groups.

    `sampler` is the student's engine, `evaluation_sampler` the same with the environment, `responses` what a step
    learns from. `anchor` is the model that the student is kept near or extrapolated from, `reward` gives the rewards of
    a rollout, `reference` the ensemble's log-probs, entropies and exact KL; each is or gives None where no knob needs
    it. `entropy_metric` names the entropies that `reference` gives: its own, or the mean of its teachers'. `unused_ids`
    are those of the vocabulary that are no token. `background` runs in parallel with training, and communicates over
    `background_ranks`. Each of `stage_hooks` is called with a stage's name for a context manager around that stage,
    each of `listeners` with how far an evaluation is: a benchmark, and how many of how many of its problems are
    answered.
    """

    config: RunConfig
    folder: RunDir
    num_steps: int
    prompts: Sequence[Prompt]
    benchmarks: dict[str, list[Prompt]]
    learned: Learned
    policy: Policy
    teachers: Teachers
    sampler: StudentSampler
    evaluation_sampler: Sampler
    responses: Responses
    context: Context
    rollout: Sampling
    control: Control
    unused_ids: Tensor
    divergence: Divergence | Mixed
    ensemble: BoundEnsemble
    reference: Callable[[Rollout, TeacherScores, Mixture], tuple[Tensor, Tensor, Tensor | None]]
    entropy_metric: str
    eligible: Callable[[Tensor, Tensor], Tensor]
    filter: Callable
    rollout_correction: Callable
    anchor: Scorer | None
    reward: Callable[[Rollout, Grades], tuple[Tensor | None, Tensor, dict[str, float]]]
    divisor: Callable[..., Tensor]
    learner: Learner
    ranks: Ranks
    meter: Meter
    pages: Pages
    background: Background
    background_ranks: Ranks
    seconds: dict[str, float] = field(default_factory=dict)
    stage_hooks: list[Callable[[str], AbstractContextManager[Any]]] = field(default_factory=list)
    listeners: list[Callable[[str, int, int], None]] = field(default_factory=list)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        return self.learned.tokenizer

    @property
    def optimizer(self) -> Optimizer:
        return self.learned.optimizer

    @property
    def num_updates(self) -> int:
        """Optimizer updates of a step."""
        return self.config.batch_size // self.config.mini_batch_size

    def asked(self, benchmark: str, answered: int, problems: int) -> None:
        """Tells the `listeners`."""
        for listener in self.listeners:
            listener(benchmark, answered, problems)

    def close(self) -> None:
        """Frees what sampler and teachers have loaded: an engine in this process would outlive the run."""
        self.sampler.close()
        self.teachers.close()

    @contextmanager
    def clock(self, stage: str) -> Iterator[None]:
        """Adds the wall time of the block to `time/<stage>` of this step."""
        start = time.perf_counter()
        with ExitStack() as stack:
            for hook in self.stage_hooks:
                stack.enter_context(hook(stage))
            yield
        self.seconds[f"time/{stage}"] = self.seconds.get(f"time/{stage}", 0.0) + time.perf_counter() - start
