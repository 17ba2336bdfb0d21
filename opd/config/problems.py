"""Where problems come from, and how they are asked: `prompts` and `evaluate`."""

from typing import Annotated, Literal

from pydantic import Field
from pydantic.dataclasses import dataclass

from opd.config.recipe import STRICT, Count, NonNegative, Positive, Text
from opd.config.values import Choice, Moment, Name, Node, Probability, Wanted
from opd.config.worlds import Domain, World


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
