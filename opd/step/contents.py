"""What a run is made of, which its manifest records and a resumed run must find again: hashes of its models, tokenizer,
problems and prompts, by the config key that names each, and the date in its prompts.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from opd.check.engines import engine
from opd.check.signal import uses_anchor
from opd.config.schema import RunConfig
from opd.data.batch import Prompt
from opd.data.template import writes_date
from opd.errors import UserError
from opd.model.content import model_content, tokenizer_content
from opd.printable import say, warn
from opd.recipes.make import locate
from opd.records.run_dir import RunDir


def contents(
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
    benchmarks: Mapping[str, Sequence[Prompt]],
    training: Sequence[Prompt] | None = None,
) -> dict[str, str]:
    """Config key → what stands behind it. Without `training`, its prompts, no teacher or anchor is used. Models that a
    server loads are not known.
    """
    trains, models = training is not None, {"student.model": "self"}
    sets = {"prompts.source": training} if training is not None else {}
    sets |= {f"evaluate.sources.{name}": problems for name, problems in benchmarks.items()}
    if trains and engine(config).loads != "elsewhere":
        models |= {f"teacher.models.{index}": model for index, model in enumerate(config.teacher.models)}
    if trains and uses_anchor(config):
        models["shaping.anchor"] = config.shaping.anchor
    places = {key: locate(model, config) for key, model in models.items()}
    known = {place: model_content(place[0], revision=place[1], key=key) for key, place in places.items()}
    return {
        **{key: known[place] for key, place in places.items()},
        "student.model (tokenizer)": tokenizer_content(tokenizer),
        **{key: _hash([_problem(prompt) for prompt in prompts]) for key, prompts in sets.items()},
        **{f"{key} (as tokens)": _hash([prompt.token_ids for prompt in prompts]) for key, prompts in sets.items()},
    }


def check_same(folder: RunDir, before: Mapping[str, Any], now: Mapping[str, str]) -> None:
    """Compares the contents with those that the manifest `before` records; warns where it records none.

    Raises:
        UserError: with the config keys whose contents are others.
    """
    recorded = before.get("contents")
    if not isinstance(recorded, Mapping) or not recorded:
        warn(
            f"{folder.manifest_file}: has no hashes of models and problems; whether they are those that the run began "
            "with is not known"
        )
    elif changed := [key for key, content in now.items() if recorded.get(key, content) != content]:
        raise UserError(
            f"{', '.join(changed)}: not what {folder.path} began with, according to its manifest.json; put that back, "
            "or give this run another name= or study=, or remove that directory"
        )


def with_date(config: RunConfig, recorded: object = None) -> RunConfig:
    """The config with a date for its prompts: its own, the `recorded` one, or now."""
    if config.prompts.date is not None:
        return config
    try:
        date = datetime.fromisoformat(str(recorded))
    except ValueError:
        date = datetime.now()
    return replace(config, prompts=replace(config.prompts, date=date.isoformat(timespec="seconds")))


def date_in_prompts(config: RunConfig, tokenizer: PreTrainedTokenizerBase, given: Mapping[str, Any]) -> str | None:
    """The date that the chat template writes into prompts, None where it writes none; said where the `given` config
    has none.
    """
    if config.prompts.template != "chat" or not writes_date(tokenizer):
        return None
    if given["prompts"]["date"] is None:
        say(f"the chat template writes a date: {config.prompts.date} for all of this run; prompts.date= sets another")
    return config.prompts.date


def _problem(prompt: Prompt) -> tuple[str, ...]:
    return prompt.id, prompt.problem, prompt.answer, prompt.domain, prompt.grader


def _hash(content: Sequence[Sequence[int | str]]) -> str:
    return f"sha256:{hashlib.sha256(json.dumps(content).encode()).hexdigest()}"
