"""The typed schema of a run's config: types and ranges here, values in `conf/` alone. Nothing here imports torch.

A method node (`divergence`, `filter`, `responses` and the other groups of `opd.check.config.MODULES`) is a mapping with
a `_target_`; its knobs are that function's keyword-only parameters, which `opd.check.config` checks.
"""

import json
from collections.abc import Iterator
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator
from pydantic.dataclasses import dataclass

from opd.config.places import CONF as CONF
from opd.config.recipe import STRICT, Count, NonNegative, Positive, Recipe, Text
from opd.config.worlds import Domain, World

Probability = Annotated[float, Field(gt=0, le=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]


def _weight(value: Any) -> float | list[float]:
    numbers: list[Any] = value if isinstance(value, list) and len(value) == 2 else [value]
    if not all(type(each) in (int, float) and 0 <= each < float("inf") for each in numbers):
        raise ValueError("should be a number that is at least 0, or [first, last] along training")
    return [float(each) for each in numbers] if isinstance(value, list) else float(value)


def _moment(value: Any) -> str:
    try:
        return datetime.fromisoformat(value).isoformat() and value
    except (TypeError, ValueError):
        raise ValueError("should be a date (YYYY-MM-DD), or one with a time (YYYY-MM-DDTHH:MM)") from None


def _wanted(value: Any) -> list[str]:
    values: list[Any] = value if isinstance(value, list) else [value]
    if not values or not all(each is None or isinstance(each, str | int | float) for each in values):
        raise ValueError("should be a text, a number, true, false or null, or a list of them")
    return [each if isinstance(each, str) else json.dumps(each) for each in values]


# The values that a field may have, as JSON writes them, texts without quotes: 4 and '4' are alike.
Wanted = Annotated[list[str], PlainValidator(_wanted)]


Moment = Annotated[str, PlainValidator(_moment)]

# The weight of a term of `signal`.
Weight = Annotated[float | list[float], PlainValidator(_weight)]

# A method node: `_target_` and that function's knobs.
Node = dict[str, Any]

# Ensembles without a distribution that is none of their teachers': one teacher a token, or each teacher's advantages.
UNMIXED = ("single", "hard_switch", "random", "control_token", "by_domain", "best_of", "advantage_mean")

# A method that is not a group of its own: the name of one of the group's files, or a node.
Choice = Text | Node


@dataclass(config=STRICT, frozen=True)
class Generated:
    """Problems of a world of generated ones; see `opd.data.tasks`."""

    kind: World
    split: Literal["train", "test"]
    num: Count
    seed: int
    mix: dict[Domain, Annotated[list[int], Field(min_length=1)]]
    grader: Choice


@dataclass(config=STRICT, frozen=True)
class Dataset:
    """Problems of a dataset: of `file` (JSONL, JSON, CSV or Parquet; as given, or under `paths.data`) where that
    exists, else the hub's `hub`.

    A problem is the text in `problem_field`, or the conversation (a list of roles and contents), or `problem` with the
    row's fields in the place of their names in braces. `where` takes the rows whose fields have one of these values;
    `limit` the first of them. `streaming` reads the hub's rows one by one instead of downloading them all.
    """

    kind: Literal["dataset"]
    hub: Text | None
    config: Text | None
    split: Text
    revision: Text | None
    streaming: bool
    file: Text | None
    problem: Text | None
    problem_field: Text
    answer_field: Text | None
    id_field: Text | None
    where: dict[Text, Wanted]
    domain: Text
    limit: Count | None
    grader: Choice


@dataclass(config=STRICT, frozen=True)
class Called:
    """Problems from a plug-in: `function` is the node of a function that returns `opd.data.problem.Problem`s."""

    kind: Literal["function"]
    function: Node
    grader: Choice


Source = Annotated[Generated | Dataset | Called, Field(discriminator="kind")]


@dataclass(config=STRICT, frozen=True)
class DataMixture:
    """Several sets mixed in proportion to `weights` (null: all of each); see `opd.data.mixture`.

    `num` problems in total; null: as many as the sets give.
    """

    kind: Literal["mixture"]
    sources: Annotated[dict[Name, Source], Field(min_length=2)]
    weights: dict[Name, Positive] | None
    num: Count | None
    seed: Annotated[int, Field(ge=0)]


AnySource = Generated | Dataset | Called | DataMixture


@dataclass(config=STRICT, frozen=True)
class Prompts:
    """Training prompts, and how any problem is presented to the models (benchmarks too).

    `date` is what a chat template that writes the date gets (YYYY-MM-DD, or with a time); null: when the run started,
    which its manifest records and a resumed run keeps.
    """

    source: Annotated[AnySource, Field(discriminator="kind")]
    template: Literal["raw", "chat"]
    system: str | None
    prefix: str
    suffix: str
    max_prompt_length: Count
    date: Moment | None


@dataclass(config=STRICT, frozen=True)
class Lora:
    """Low-rank adapters, trained in place of the weights; see `opd.model.lora`.

    `target_modules` names linear layers by the last part of their names, or is all-linear: all but the output head.
    """

    rank: Count
    alpha: Positive
    target_modules: Literal["all-linear"] | Annotated[list[Text], Field(min_length=1)]


@dataclass(config=STRICT, frozen=True)
class Student:
    """The model that is trained: a directory, a hub id, or `sft:NAME` for the model of `recipes.NAME`.

    `stop_tokens` (texts) end a response, as the tokenizer's end of text does; null: those of the model's generation
    config, and then a teacher that ends its texts with another is refused.
    """

    model: Text
    revision: Text | None
    lora: Lora | None
    stop_tokens: Annotated[list[Text], Field(min_length=1)] | None


@dataclass(config=STRICT, frozen=True)
class TeacherServer:
    """Access to teachers on vLLM's OpenAI-compatible servers; it changes no number. Times are in seconds.

    `urls` lists for each teacher one or several servers of it. Each rank has `concurrency` requests per teacher in
    flight, of `responses_per_request` responses each. A failed request is retried, on any of its servers, for
    `patience`. `api_key_env` names the environment variable with the key.
    """

    urls: list[Annotated[list[Text], Field(min_length=1)]]
    responses_per_request: Count
    concurrency: Count
    timeout: Positive
    patience: NonNegative
    api_key_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None


@dataclass(config=STRICT, frozen=True)
class TeacherVllm:
    """A vLLM engine for each teacher that a step needs, in this process.

    `max_model_len` bounds prompt and response together (null: the model's positions), `max_num_batched_tokens` those
    whose logits exist at once. The engine's cache has `kv_cache_bytes` or, on a GPU, what `gpu_memory_utilization` of
    it leaves.
    """

    max_model_len: Count | None
    max_num_batched_tokens: Count
    max_num_seqs: Count
    kv_cache_bytes: Count | None
    gpu_memory_utilization: Probability | None
    enforce_eager: bool


@dataclass(config=STRICT, frozen=True)
class Teacher:
    """The models that score, smallest first: as `student.model`, or `self` for the student's own starting weights.

    `dtype` applies to models that this process loads; `int8` stores the weights of their layers in 8 bits, unsharded on
    every rank, and computes products in bfloat16. `server` and `vllm` are settings of these engines, null for others.
    """

    models: Annotated[list[Text], Field(min_length=1)]
    engine: Literal["local", "server", "vllm"]
    dtype: Literal["float32", "bfloat16", "int8"]
    temperature: Positive
    server: TeacherServer | None
    vllm: TeacherVllm | None


@dataclass(config=STRICT, frozen=True)
class Evaluate:
    """When and how the student is evaluated: every `every` steps (0: only at the end), `k` answers per problem.

    `texts`: number of answers per problem whose text is saved, the first ones; null for all. `batch_answers`: how many
    answers are sampled together on a rank, and kept together where an evaluation is interrupted; null: a benchmark's.
    """

    k: Count
    texts: Annotated[int, Field(ge=0)] | None
    batch_answers: Count | None
    every: Annotated[int, Field(ge=0)]
    at_start: bool
    temperature: NonNegative
    top_p: Probability
    top_k: Annotated[int, Field(ge=0)]
    max_response_length: Count
    benchmarks: list[Name]
    sources: dict[Name, Source]
    grading_timeout: Positive


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
class Memory:
    """Bounds on memory, exact: padded tokens per micro-batch, tokens whose logits exist at once."""

    micro_batch_tokens: Count
    logit_chunk: Count


@dataclass(config=STRICT, frozen=True)
class Compute:
    """How the models compute. Of precision: `dtype`, of products (weights and sums of gradients stay in float32), and
    `compile`. Exact: activation checkpointing and offloading of weights to the CPU. `rank_timeout` is how many seconds
    a rank waits for another.
    """

    dtype: Literal["float32", "bfloat16"]
    activation_checkpointing: bool
    offload: bool
    compile: bool
    rank_timeout: Positive

    @property
    def grouped(self) -> bool:
        """Whether even a single process uses FSDP, for its precision or its offloading."""
        return self.dtype != "float32" or self.offload


@dataclass(config=STRICT, frozen=True)
class Checkpoint:
    """A checkpoint every `every` steps (0: only at the end); the newest `keep` and the best by evaluation stay.

    `asynchronous`: it is copied to host memory and written while training continues.
    """

    every: Annotated[int, Field(ge=0)]
    keep: Count
    asynchronous: bool


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
class NoTracker:
    """The run's own records alone."""

    kind: Literal["none"]


@dataclass(config=STRICT, frozen=True)
class Wandb:
    """Weights & Biases too; see `opd.watch.wandb_tracker`. Not part of a run's identity."""

    kind: Literal["wandb"]
    project: Text
    entity: Text | None
    tags: list[Text]
    mode: Literal["online", "offline", "disabled"]


@dataclass(config=STRICT, frozen=True)
class TensorBoard:
    """TensorBoard's event files too; see `opd.watch.tensorboard_tracker`."""

    kind: Literal["tensorboard"]


@dataclass(config=STRICT, frozen=True)
class Trackio:
    """trackio's store too; see `opd.watch.trackio_tracker`."""

    kind: Literal["trackio"]
    project: Text


@dataclass(config=STRICT, frozen=True)
class MLflow:
    """MLflow too; see `opd.watch.mlflow_tracker`."""

    kind: Literal["mlflow"]
    experiment: Text


@dataclass(config=STRICT, frozen=True)
class Hub:
    """Where on the Hugging Face Hub the final model goes (null: nowhere). Not part of a run's identity."""

    push: Text | None
    private: bool


@dataclass(config=STRICT, frozen=True)
class Rollouts:
    """A page of the first `num` responses of every `every`-th step (0: none). Not part of a run's identity."""

    every: Annotated[int, Field(ge=0)]
    num: Count


@dataclass(config=STRICT, frozen=True)
class Paths:
    """Folders on this machine. Not part of a run's identity."""

    outputs: Text
    models: Text
    data: Text | None


@dataclass(config=STRICT, frozen=True)
class MachinePlan:
    """The machine that a preflight plans for: `ranks` processes, each on a GPU of `gpu_gib` GiB; null: this one."""

    ranks: Count | None
    gpu_gib: Positive | None


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
