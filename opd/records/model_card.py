"""The model card of a finished run, `checkpoints/final/README.md`, from its records. Nothing here imports torch."""

import html
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opd.config.worlds import VERSIONS
from opd.records.run_dir import RunDir


def model_card(folder: RunDir, *, num_steps: int) -> str:
    """Markdown with config, teachers, data and scores, after the metadata that the Hugging Face Hub reads.

    It may be published: it names files and folders of this machine without their places.
    """
    import yaml

    config, manifest = folder.config(), folder.manifest()
    scores = [line for line in folder.metrics() if any(key.startswith("evaluate/") for key in line)]
    metadata: dict[str, Any] = {"library_name": "transformers", "tags": ["on-policy-distillation"]}
    if not (base := config["student"]["model"]).startswith("sft:") and _without_place(base) == base:
        metadata["base_model"] = base  # of the hub
    config = _public(config)
    student, teachers = config["student"], config["teacher"]["models"]
    facts = {
        "Student": student["model"],
        "Adapters": "none"
        if student.get("lora") is None
        else f"rank {student['lora']['rank']}, merged; unmerged in adapter/",
        "Teachers": ", ".join("the student's initial weights" if name == "self" else name for name in teachers),
        "Training prompts": _source(config["prompts"]["source"]),
        "Steps": f"{num_steps} of {config['batch_size']} prompts, {config['samples_per_prompt']} responses each",
        "Run": manifest["run_id"],
        "Code": manifest["git_commit"] or "unknown",
    }
    # The fence must be longer than any in the text.
    text = yaml.safe_dump(config, sort_keys=True, allow_unicode=True)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=2))
    return "\n".join(
        [
            "---",
            yaml.safe_dump(metadata, sort_keys=True).strip(),
            "---",
            "",
            f"# {_plain(config['name'])}",
            "",
            "A language model distilled on its own responses (on-policy distillation).",
            "",
            *_table(("", ""), facts.items()),
            "",
            "## Scores",
            "",
            *_scores(config, scores),
            "",
            "## Config",
            "",
            f"{fence}yaml",
            text.rstrip(),
            fence,
            "",
        ]
    )


def _public(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what is of this machine alone."""
    kept = {key: _without_places(value) for key, value in config.items() if key not in ("paths", "tracker", "hub")}
    kept["teacher"].pop("server", None)
    return kept


def _without_places(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_places(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_places(inner) for inner in value]
    return _without_place(value) if isinstance(value, str) else value


def _without_place(text: str) -> str:
    """The last part of what is a path here: what leads to a file or folder, and what begins at the root or at home and
    has several parts. A hub's OWNER/NAME is none, nor is /no_think.
    """
    if "/" not in text or "\n" in text:
        return text
    rooted = text.startswith(("/", "~/")) and text.count("/") > 1
    try:
        place = rooted or Path(text).expanduser().exists()
    except (OSError, ValueError, RuntimeError):  # too long, or no path at all
        return text
    return Path(text).name if place else text


def _scores(config: Mapping[str, Any], evaluated: Sequence[Mapping[str, Any]]) -> list[str]:
    """The first and the last evaluation side by side; a score that is missing is marked as such."""
    if not evaluated:
        return ["This model was not evaluated."]
    first, last, settings = evaluated[0], evaluated[-1], config["evaluate"]
    keys = [key for key in last if key.startswith("evaluate/")]
    heads = ["score", *dict.fromkeys(f"after step {line['step']}" for line in (first, last))]
    lines = [first, last][-(len(heads) - 1) :]
    rows = [(key.removeprefix("evaluate/"), *(_number(line.get(key)) for line in lines)) for key in keys]
    return [
        *_table(heads, rows),
        "",
        f"{settings['k']} answers per problem at temperature {settings['temperature']} and top-p {settings['top_p']}, "
        f"of at most {settings['max_response_length']} tokens each. Scores are fractions of 1.",
    ]


def _source(source: Mapping[str, Any]) -> str:
    if source["kind"] == "mixture":
        weights = source["weights"] or dict.fromkeys(source["sources"], "all")
        parts = (f"{weight} of {_source(source['sources'][name])}" for name, weight in weights.items())
        return f"{source['num'] or 'all'} problems of a mixture: {'; '.join(parts)}"
    if source["kind"] in VERSIONS:
        return f"{source['num']} generated {source['kind']} problems, seed {source['seed']}"
    if source["kind"] == "function":
        return f"those of {source['function']['_target_']}"
    return f"{source['hub'] or source['file']}, split {source['split']}"


def _table(heads: Sequence[str], rows: Any) -> list[str]:
    lines = [heads, ["---"] * len(heads), *rows]
    return ["| " + " | ".join(each if each == "---" else _plain(each) for each in line) + " |" for line in lines]


def _number(value: Any) -> str:
    return f"{value:.4f}" if isinstance(value, int | float) else "missing"


def _plain(text: Any) -> str:
    """The text on one line, escaped for Markdown and HTML."""
    return re.sub(r"([\\`*_{}\[\]|~])", r"\\\1", html.escape(" ".join(str(text).split()), quote=False))
