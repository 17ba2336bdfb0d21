"""Recipes of supervised models, and where those models are. Types; the values are in `conf/recipe`."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, field_validator, model_validator
from pydantic.dataclasses import dataclass
from pydantic_core import PydanticCustomError

from opd.config import worlds
from opd.config.identity import as_first
from opd.errors import UserError

# Increase this when a recipe trains to another model (tokenizer, initial weights, loss, optimizer): cached models are
# then trained again.
VERSION = 1

STRICT = ConfigDict(strict=True, extra="forbid")

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Text = Annotated[str, Field(min_length=1)]


@dataclass(config=STRICT, frozen=True)
class Architecture:
    """A fresh Qwen3 model with its world's tokenizer; `init_std` is the spread of its random weights."""

    hidden_size: Count
    num_layers: Count
    num_heads: Count
    num_kv_heads: Count
    head_dim: Annotated[int, Field(ge=2, multiple_of=2)]
    intermediate_size: Count
    max_position_embeddings: Count
    rope_theta: Positive
    tie_embeddings: bool
    init_std: Positive

    @model_validator(mode="after")
    def _heads_share_keys(self) -> "Architecture":
        if self.num_heads % self.num_kv_heads:
            raise _refused(f"num_heads={self.num_heads} should be a multiple of num_kv_heads={self.num_kv_heads}")
        return self


@dataclass(config=STRICT, frozen=True)
class Recipe:
    """How one model is made by supervised training.

    It begins as `architecture` (fresh) or `start` (a directory or hub id), and learns from `mix` (problems of a world,
    domain → difficulties, worked by a solver whose error rate goes linearly from `slip[0]` to `slip[1]` over the
    training; a share `hints` of puzzles comes with a hint) or from `file` (JSONL with "problem" and "response").
    Examples longer than `max_length` tokens are left out. `lr` rises linearly over `warmup_steps`, then follows
    `schedule` down to `lr * final_lr`.
    """

    architecture: Architecture | None
    start: Text | None
    mix: dict[worlds.Domain, Annotated[list[int], Field(min_length=1)]] | None
    hints: Annotated[float, Field(ge=0, le=1)]
    slip: Annotated[list[Annotated[float, Field(ge=0, le=1)]], Field(min_length=2, max_length=2)]
    file: Text | None
    template: Literal["raw", "chat"]
    max_length: Count
    steps: Count
    batch_size: Count
    lr: Positive
    warmup_steps: Annotated[int, Field(ge=0)]
    schedule: Literal["constant", "linear", "cosine"]
    final_lr: Annotated[float, Field(ge=0, le=1)]
    betas: Annotated[list[Annotated[float, Field(ge=0, lt=1)]], Field(min_length=2, max_length=2)]
    weight_decay: NonNegative
    grad_clip: Positive
    seed: Annotated[int, Field(ge=0)]

    @model_validator(mode="after")
    def _one_of_each(self) -> "Recipe":
        for first, second in (("architecture", "start"), ("mix", "file")):
            if (getattr(self, first) is None) == (getattr(self, second) is None):
                raise _refused(f"exactly one of {first} and {second} should be given, the other null")
        if self.architecture and self.template == "chat":
            raise _refused("template should be raw: a fresh model's tokenizer has no chat template")
        if self.hints and (self.mix is None or worlds.world_of(self.mix) != "puzzles"):
            raise _refused("hints should be 0: only the puzzles have hints")
        return self

    @field_validator("mix")
    @classmethod
    def _mix_is_in_the_world(cls, mix: "dict[worlds.Domain, list[int]] | None"):
        try:
            worlds.check_mix({"addition": [2]} if mix is None else mix)
        except UserError as error:
            raise _refused(str(error)) from None
        return mix


def _refused(reason: str) -> PydanticCustomError:
    return PydanticCustomError("recipe", "{reason}", {"reason": reason})


def model_path(name: str, recipe: Recipe, models_dir: Path) -> Path:
    """`<models_dir>/<name>-<8 hex>`: where the model of a recipe is, or will be.

    The hash covers the recipe, the versions of the code that makes data and weights, and the content (not the place)
    of a data file or of a directory to start from.

    Raises:
        UserError: where the recipe's file does not exist.
    """
    content = as_first({"recipes": {name: asdict(recipe)}})["recipes"][name]
    content |= {"version": [VERSION, worlds.VERSIONS[worlds.world_of(recipe.mix or {})]]}
    if recipe.file is not None:
        file = Path(recipe.file)
        if not file.is_file():
            raise UserError(f"recipes.{name}.file={recipe.file}: there is no such file; give a JSONL file")
        content["file"] = _digest([file])
    if recipe.start is not None and (start := Path(recipe.start)).is_dir():
        content["start"] = _digest(sorted(path for path in start.rglob("*") if path.is_file()))
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
    return models_dir / f"{name}-{digest[:8]}"


def _digest(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with open(path, "rb") as content:
            digest.update(f"{path.name} {hashlib.file_digest(content, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()
