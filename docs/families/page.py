"""The record of the families' trials, and its page."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import transformers

from docs.families.small import FAMILIES
from docs.families.trial import TOLERANCE, Outcome
from docs.tables import table

DOCS = Path(__file__).parents[1]
RECORD, PAGE = DOCS / "families.json", DOCS / "families.md"
VERSION = transformers.__version__

INTRODUCTION = """\
# Model families

Made by `python -m docs.families` with transformers {version}. **{works} of the {text} text families in its causal
mapping work**, as student and as teacher.

Each entry of that mapping is tried with a small model of random weights, whose largest logit is about 20, and which has
a layer of each kind that the family has. With `scale=own support=full` it learns for two steps from a teacher of its
own family, goes on from its first checkpoint, is loaded again from its final one, and teaches a student of another
family. It works where all of that ends, the resumed run with the numbers of the unbroken one, and no log-prob of
learner, sampler, teacher and final checkpoint is more than {tolerance:g} from transformers' own
`model(ids).logits.log_softmax(-1)`. The last column says how far the farthest is, rounded up to a power of ten, or the
sentence with which such a model is refused.

`ours` is continuous batching; `transformers` is its `generate` with our draws, which is slower. `rollout=vllm` was not
tried here.
"""
NO_TEXT = """\
## No language models by themselves

These need more than token ids, or transformers {version} cannot make one from its own config here.
"""


def read() -> dict[str, Outcome]:
    """The outcomes on record, of families that transformers still has."""
    if not RECORD.exists():
        return {}
    rows = json.loads(RECORD.read_text())["families"]
    return {family: Outcome(**{**row, "kind": FAMILIES[family]}) for family, row in rows.items() if family in FAMILIES}


def write(outcomes: Mapping[str, Outcome]) -> None:
    """Writes the record and the page."""
    rows = {family: asdict(outcomes[family]) for family in sorted(outcomes)}
    RECORD.write_text(json.dumps({"transformers": VERSION, "families": rows}, indent=1) + "\n")
    PAGE.write_text(page(json.loads(RECORD.read_text())))


def page(record: Mapping[str, Any]) -> str:
    """The page of a record."""
    outcomes = {family: Outcome(**row) for family, row in record["families"].items()}
    text = {family: outcome for family, outcome in outcomes.items() if outcome.text}
    works = sum(outcome.state == "works" for outcome in text.values())
    version = record["transformers"]
    introduction = INTRODUCTION.format(version=version, tolerance=TOLERANCE, works=works, text=len(text))
    rest = {family: outcome for family, outcome in outcomes.items() if not outcome.text}
    return "\n".join([introduction, _rows(text), NO_TEXT.format(version=version), _rows(rest)])


def _rows(outcomes: Mapping[str, Outcome]) -> str:
    rows = [
        (f"`{family}`", f"`{outcome.kind}`", outcome.state, outcome.sampler or "—", _last(outcome))
        for family, outcome in outcomes.items()
    ]
    return table(("family", "class", "", "sampled by", "deviation, or why"), rows)


def _last(outcome: Outcome) -> str:
    if outcome.deviation is None:
        return outcome.sentence.replace("<", "&lt;")  # of transformers' own errors
    return f"≤ 1e{math.ceil(math.log10(max(outcome.deviation, 1e-7)))}"
