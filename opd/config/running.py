"""How and where a run computes, what it keeps, and who is told of it: none of it is method."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.config.recipe import STRICT, Count, Positive, Text


@dataclass(config=STRICT, frozen=True)
class Memory:
    """Bounds on memory, exact: padded tokens per micro-batch, tokens whose logits exist at once."""

    micro_batch_tokens: Count
    logit_chunk: Count


@dataclass(config=STRICT, frozen=True)
class Compute:
    """How the models compute. Of precision: `dtype`, of products (weights and sums of gradients stay in float32),
    `attention`, transformers' name of an implementation (null: what transformers takes for the family), and `compile`.
    Exact: activation checkpointing and offloading of weights to the CPU. `rank_timeout` is how many seconds a rank
    waits for another.
    """

    dtype: Literal["float32", "bfloat16"]
    attention: Literal["eager", "sdpa", "flash_attention_2", "flash_attention_3"] | None
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
