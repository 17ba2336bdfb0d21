"""The typed schema of a run's config: types and ranges here, values in `conf/` alone. Nothing here imports torch.

A method node (`divergence`, `filter`, `responses` and the other groups of `opd.check.config.MODULES`) is a mapping with
a `_target_`; its knobs are that function's keyword-only parameters, which `opd.check.config` checks.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.config.models import (
    Lora as Lora,
    Student as Student,
    Teacher as Teacher,
    TeacherServer as TeacherServer,
    TeacherVllm as TeacherVllm,
)
from opd.config.places import CONF as CONF
from opd.config.problems import (
    AnySource as AnySource,
    Called as Called,
    DataMixture as DataMixture,
    Dataset as Dataset,
    Evaluate as Evaluate,
    Generated as Generated,
    Prompts as Prompts,
    Source as Source,
)
from opd.config.recipe import STRICT, Count, NonNegative, Positive, Recipe, Text
from opd.config.running import (
    Checkpoint as Checkpoint,
    Compute as Compute,
    Hub as Hub,
    MachinePlan as MachinePlan,
    Memory as Memory,
    MLflow as MLflow,
    NoTracker as NoTracker,
    Paths as Paths,
    Rollouts as Rollouts,
    TensorBoard as TensorBoard,
    Trackio as Trackio,
    Wandb as Wandb,
)
from opd.config.values import (
    Choice as Choice,
    Fraction as Fraction,
    Moment as Moment,
    Name as Name,
    Node as Node,
    Probability as Probability,
    Wanted as Wanted,
    Weight as Weight,
)

# Ensembles without a distribution that is none of their teachers': one teacher a token, or each teacher's advantages.
UNMIXED = ("single", "hard_switch", "random", "control_token", "by_domain", "best_of", "advantage_mean")


@dataclass(config=STRICT, frozen=True)
class Optim:
    """AdamW, its learning rate (with linear warm-up over `warmup_steps`) and gradient clipping by norm."""

    lr: Positive
    schedule: Literal["constant", "linear", "cosine"]
    warmup_steps: Annotated[int, Field(ge=0)]
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    eps: Positive
    weight_decay: NonNegative
    grad_clip: Positive


@dataclass(config=STRICT, frozen=True)
class Clip:
    """PPO's clip range of the ratio to the sampling policy, [1 - low, 1 + high], for several updates per batch."""

    low: Fraction | None
    high: NonNegative | None


@dataclass(config=STRICT, frozen=True)
class Shaping:
    """Changes to the signal between divergence and loss; see `opd.objective.shaping`.

    `anchor` (a model, or `self` for the student's own starting weights) is the model that `signal.near_start` keeps the
    student near and that `extrapolation` leads away from.
    """

    log_ratio_clamp: Positive | None
    baseline: Literal["none", "group", "batch"]
    advantage_clip: Positive | None
    prefix_strength: NonNegative
    anchor: Text
    extrapolation: Positive
    reward_baseline: Literal["none", "group"]
    pass_rate_power: NonNegative


@dataclass(config=STRICT, frozen=True)
class Scale:
    """Values of a scale that the config refers to. `num_prompts` limits the training prompts (null: all)."""

    name: Name
    ladder: list[Text]
    teacher: Text
    lr: Positive
    max_response_length: Count
    num_prompts: Count | None
    support_k: Count


@dataclass(config=STRICT, frozen=True)
class RunConfig:
    """One run. `num_steps` stops it before the end of `epochs`; null runs them all.

    `signal` gives each term of the objective its weight; see `opd.step.terms`. A batch is learned in updates of
    `mini_batch_size` prompts. `credit` decides which tokens get a token's signal: it and, discounted by `gamma`, those
    before it (reward_to_go), or the entire response (sequence). `allow_heuristic` allows, with a warning, what is not
    the gradient of any objective.

    `preflight` checks the run, reports what it needs, and exits before it trains.

    `threads` limits CPU threads: small models are faster on one, and then give the same numbers on any number of cores;
    null leaves it to torch. `profile` traces a few steps; see `opd.watch.profile`. `plugins` are the packages that the
    command line named; see `opd.config.plugins`.
    """

    recipes: dict[Name, Recipe]  # first: other keys refer to it, and an error in it should be reported here
    name: Name
    study: Name
    seed: Annotated[int, Field(ge=0)]
    num_steps: Count | None
    epochs: Count
    batch_size: Count
    mini_batch_size: Count
    samples_per_prompt: Count
    max_response_length: Count
    credit: Literal["reward_to_go", "sequence"]
    gamma: Annotated[float, Field(ge=0, le=1)]
    allow_heuristic: bool
    whitening: Literal["none", "sample", "group", "batch"]
    threads: Count | None
    clip: Clip
    signal: dict[Text, Weight]
    shaping: Shaping
    divergence: Node
    support: Node
    responses: Node
    environment: Node
    context: Node
    alignment: Node
    ensemble: Node
    filter: Node
    rollout_correction: Node
    loss: Node
    rollout: Node
    teacher: Teacher
    student: Student
    prompts: Prompts
    evaluate: Evaluate
    optim: Optim
    memory: Memory
    compute: Compute
    checkpoint: Checkpoint
    scale: Scale
    paths: Paths
    tracker: Annotated[NoTracker | Wandb | TensorBoard | Trackio | MLflow, Field(discriminator="kind")]
    hub: Hub
    rollouts: Rollouts
    profile: bool
    preflight: bool
    plan: MachinePlan
    plugins: list[Text]

    @property
    def longest_text(self) -> int:
        """The most tokens that a prompt and its response may have, in training or an evaluation."""
        return self.prompts.max_prompt_length + max(self.max_response_length, self.evaluate.max_response_length)

    @property
    def uses_vocabulary(self) -> bool:
        """Whether something besides the support needs full distributions of student and teachers: the exact KL, a
        normalised ensemble, or the entropy of a mixture, where it acts or the distributions are there anyway.
        """
        if self.filter.get("score") == "exact_kl" or self.ensemble.get("normalize"):
            return True
        acts = self.filter.get("score") == "teacher_entropy" or "entropy_aware" in method_names(self.divergence)
        at_hand = self.teacher.engine == "local" and (acts or self.method("support") != "sampled")
        return self.mixes_distributions and at_hand

    @property
    def mixes_distributions(self) -> bool:
        """Whether the ensemble may make one distribution of several teachers'; a plug-in's is taken to."""
        return self.method("ensemble") not in UNMIXED

    def method(self, group: str) -> str:
        """The name of the function that a method node names."""
        return str(getattr(self, group).get("_target_")).rpartition(".")[2]


def method_names(node: Node) -> Iterator[str]:
    """The names of the functions that a method node and the nodes among its knobs name."""
    yield str(node.get("_target_")).rpartition(".")[2]
    for value in node.values():
        if isinstance(value, dict):
            yield from method_names(value)
