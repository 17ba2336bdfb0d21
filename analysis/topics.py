"""The arms of each published comparison: those whose configs differ from the baseline in what it varies.

An arm is recognised by what its config changes, not by its name, so that a user's own arm appears among the published
ones, at every scale.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from analysis.results import Results
from opd.config.identity import is_below
from opd.records.run_dir import changed_keys

# Keys that name an arm or follow from the choice of models, and do not change the method.
IGNORED = ("name", "study", "seed", "scale", "recipes", "paths", "tracker", "hub", "rollouts", "evaluate.sources")


@dataclass(frozen=True)
class Topic:
    """A published comparison.

    Attributes:
        name, title, source: its name here, and where it was published.
        moves: the config keys that its arms change, each with all below it; at least one is changed.
        along: keys that may change with them.
        axis: the key whose values the hyper-parameter explorer shows; "" for none.
    """

    name: str
    title: str
    source: str
    moves: tuple[str, ...]
    along: tuple[str, ...] = ()
    axis: str = ""


_ADVENTURES = "Adventures"
TOPICS = (
    Topic("stability", "Stability", f"{_ADVENTURES}, section 3", ("rollout_correction", "optim.lr")),
    Topic("divergence", "Divergence", f"{_ADVENTURES}, section 5", ("divergence",)),
    Topic("ensemble", "Teacher ensemble", f"{_ADVENTURES}, section 6", ("ensemble",), ("teacher.models",)),
    Topic("filter", "Token filter", f"{_ADVENTURES}, section 7", ("filter",)),
    Topic("epochs", "Epochs", f"{_ADVENTURES}, section 4", ("epochs",), ("num_steps",), axis="epochs"),
    Topic(
        "group_size",
        "Samples a prompt",
        f"{_ADVENTURES}, section 4",
        ("samples_per_prompt",),
        axis="samples_per_prompt",
    ),
    Topic(
        "response_length",
        "Response length",
        f"{_ADVENTURES}, section 4",
        ("max_response_length",),
        ("evaluate.max_response_length",),
        axis="max_response_length",
    ),
    Topic("entropy_bonus", "Entropy bonus", f"{_ADVENTURES}, section 4", ("signal.entropy",), axis="signal.entropy"),
    Topic("teacher_size", "Teacher", f"{_ADVENTURES}, section 4", ("teacher.models",), axis="teacher.models"),
    Topic("gamma", "Discount γ", f"{_ADVENTURES}, section 4", ("gamma",), axis="gamma"),
    Topic(
        "temperature",
        "Rollout temperature",
        f"{_ADVENTURES}, section 4",
        ("rollout.temperature",),
        ("teacher.temperature",),
        axis="rollout.temperature",
    ),
    Topic("whitening", "Whitening", f"{_ADVENTURES}, section 4", ("whitening",), axis="whitening"),
    Topic(
        "support",
        "Support of the signal",
        "Revisiting OPD",
        ("support",),
        ("whitening", "rollout.top_p", "filter.exclude_special"),
    ),
    Topic("credit", "Credit", "Revisiting OPD", ("credit", "gamma")),
    Topic("shaping", "Shaping", "Sketches of methods", ("shaping",), ("allow_heuristic",)),
)


def members(results: Results) -> dict[str, list[str]]:
    """Topic → its arms in the order of the report, the baseline first; only topics with arms besides the baseline."""
    baseline, details = results.baseline, results.records.details
    if baseline is None or baseline.id not in details:
        return {}
    ours = counted(details[baseline.id].config)
    changes = {
        arm.id: set(changed_keys(ours, counted(details[arm.id].config)))
        for arm in results.arms
        if arm.id in details and arm.role == "arm"
    }
    by_topic = {topic.name: [arm for arm, keys in changes.items() if belongs(topic, keys)] for topic in TOPICS}
    return {name: [baseline.id, *arms] for name, arms in by_topic.items() if arms}


def belongs(topic: Topic, keys: set[str]) -> bool:
    """Whether an arm that changes these keys belongs to the topic: it changes its keys, and nothing else."""
    return any(is_below(key, topic.moves) for key in keys) and all(
        is_below(key, topic.moves + topic.along) for key in keys
    )


def counted(config: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a config that is method."""
    return {key: value for key, value in config.items() if not is_below(key, IGNORED)}
