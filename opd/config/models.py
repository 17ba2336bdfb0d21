"""The student and the teachers."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.config.recipe import STRICT, Count, NonNegative, Positive, Text
from opd.config.values import Probability


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
    config, and then a teacher that ends its texts with another is refused. `vocab_size`: the first so many ids are the
    vocabulary; null: as many as the narrowest output head of the run's models has.
    """

    model: Text
    revision: Text | None
    lora: Lora | None
    stop_tokens: Annotated[list[Text], Field(min_length=1)] | None
    vocab_size: Annotated[int, Field(ge=2)] | None


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
