"""The record of the families' trials, and its page."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import transformers

from docs.families.small import FAMILIES
from docs.families.trial import Outcome
from docs.tables import table

DOCS = Path(__file__).parents[1]
RECORD, PAGE = DOCS / "families.json", DOCS / "families.md"
VERSION = transformers.__version__

INTRODUCTION = """\
# Model families

Made by `python -m docs.families` with transformers {version}: a trial of every entry of its causal mapping
(`MODEL_FOR_CAUSAL_LM_MAPPING_NAMES`), with a small model of random weights whose largest logit is about 20 and whose
layers are of all kinds that the family has. Each is trained for two steps with `scale=own support=full` from a teacher
of its own family, resumed after the first, and loaded again from its final checkpoint; it then teaches a student of
another family. **{works} of {text} text families work**; {others} further entries cannot read text alone, or
transformers cannot make a small one of them.

A family works where all of that ends, the resumed run as the unbroken one, and no log-prob of learner, sampler, teacher
and final checkpoint differs from `model(ids).logits.log_softmax(-1)` by more than {tolerance:g} nats. The last column
says how far they differ, as a power of ten that is not exceeded, or the sentence in which such a model is refused.
"""


def read() -> dict[str, Outcome]:
    """The outcomes on record, of families that transformers still has."""
    if not RECORD.exists():
        return {}
    rows = json.loads(RECORD.read_text())["families"]
    return {family: Outcome(**row) for family, row in rows.items() if family in FAMILIES}


def write(record: Mapping[str, Outcome]) -> None:
    """Writes the record and the page."""
    ordered = {family: asdict(record[family]) for family in sorted(record)}
    RECORD.write_text(json.dumps({"transformers": VERSION, "families": ordered}, indent=1) + "\n")
    PAGE.write_text(page(read()))


def page(record: Mapping[str, Outcome]) -> str:
    """The page of a record."""
    from docs.families.trial import TOLERANCE

    text = {family: outcome for family, outcome in record.items() if outcome.text}
    works = [family for family, outcome in text.items() if outcome.state == "works"]
    numbers = {"works": len(works), "text": len(text), "others": len(record) - len(text)}
    parts = [INTRODUCTION.format(version=VERSION, tolerance=TOLERANCE, **numbers), "## Text families\n", _rows(text)]
    rest = {family: outcome for family, outcome in record.items() if not outcome.text}
    return "\n".join([*parts, "## Not text alone\n", _rows(rest)])


def _rows(record: Mapping[str, Outcome]) -> str:
    rows = [
        (f"`{family}`", f"`{FAMILIES[family]}`", outcome.state, outcome.sampler, _last(outcome))
        for family, outcome in sorted(record.items())
    ]
    return table(("family", "class", "", "sampler", "largest deviation, or why"), rows)


def _last(outcome: Outcome) -> str:
    if outcome.deviation is None:
        return outcome.sentence
    return f"≤ 1e{math.ceil(math.log10(max(outcome.deviation, 1e-7)))}"
