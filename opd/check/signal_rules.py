"""Rules on the terms of `signal`, and on what is done to their advantages: credit, shaping, whitening, clipping."""

from functools import partial
from operator import attrgetter
from typing import Any

from opd.check.objective_rules import exact
from opd.check.rule import Rule, rule
from opd.check.signal import has_weight, uses_anchor, weighted_terms
from opd.config.schema import RunConfig

# From the coarsest mean that is subtracted to the finest.
LEVELS = ("none", "batch", "group", "sample")


def has_advantages(config: RunConfig) -> bool:
    """Whether there is a policy gradient: a term that is an advantage, as the divergence is with support=sampled."""
    advantages = [term.name for term in weighted_terms(config) if term.kind == "Advantage"]
    return any(name != "divergence" or not exact(config) for name in advantages)


def heuristic(config: RunConfig) -> bool:
    """Whether tokens answer for later ones by a divergence that is not additive over a sequence."""
    return (config.gamma > 0 or config.credit == "sequence") and config.method("divergence") != "reverse_kl"


def whitened_alone(config: RunConfig) -> bool:
    """Whether whitening subtracts each response's own mean."""
    return config.whitening == "sample" or (config.whitening == "group" and config.samples_per_prompt == 1)


# ---- terms


@rule("signal", reason="every weight is 0, so nothing is learned")
def nothing_learned(config: RunConfig) -> str | None:
    return None if weighted_terms(config) else "give a term a weight, as signal.divergence=1.0"


@rule("signal", "support", reason="only the divergence is summed over the vocabulary, and its weight is 0")
def unweighed_divergence(config: RunConfig) -> str | None:
    unweighed = exact(config) and not _has_weight(config, "divergence")
    return "set support=sampled, or signal.divergence above 0" if unweighed else None


@rule("shaping.anchor", "signal", reason="no term uses the anchor")
def unused_anchor(config: RunConfig) -> str | None:
    if config.shaping.anchor == "self" or uses_anchor(config):
        return None
    return "set signal.near_start above 0 or shaping.extrapolation other than 1, or leave out the anchor"


@rule("shaping.reward_baseline", "signal", reason="there is no reward to subtract from")
def unused_baseline(config: RunConfig) -> str | None:
    if config.shaping.reward_baseline == "none" or _has_weight(config, "reward"):
        return None
    return "set signal.reward above 0, or shaping.reward_baseline=none"


# ---- what is done to advantages

# Knobs of a policy gradient with the values at which they do nothing.
_OF_ADVANTAGES: dict[str, Any] = {
    "whitening": "none",
    "gamma": 0.0,
    "credit": "reward_to_go",
    "clip.low": None,
    "clip.high": None,
    "shaping.baseline": "none",
    "shaping.advantage_clip": None,
}
# Those that act on the divergence's advantages alone.
_OF_DIVERGENCE: dict[str, Any] = {"shaping.prefix_strength": 0.0, "shaping.extrapolation": 1.0}


def _ignored(key: str, neutral: Any, config: RunConfig) -> str | None:
    acts = key in _OF_ADVANTAGES and has_advantages(config)
    if not exact(config) or acts or attrgetter(key)(config) == neutral:
        return None
    return f"set {key}={'null' if neutral is None else neutral}, or support=sampled"


IGNORED = [
    Rule(
        ("support", key),
        "it acts on the advantages of a policy gradient, and a divergence that is differentiated itself has none",
        partial(_ignored, key, neutral),
    )
    for key, neutral in (_OF_ADVANTAGES | _OF_DIVERGENCE).items()
]


@rule(
    "gamma",
    "divergence",
    reason="what later tokens add up to is the gradient of a sequence's divergence for reverse KL alone",
)
def heuristic_return(config: RunConfig) -> str | None:
    if config.allow_heuristic or not heuristic(config):
        return None
    now = f"gamma={config.gamma}" if config.credit == "reward_to_go" else "credit=sequence"
    return f"set gamma=0 and credit=reward_to_go instead of {now}, divergence=reverse_kl, or allow_heuristic=true"


@rule("credit", "gamma", reason="credit=sequence counts every token of a response in full")
def discounted_sequence(config: RunConfig) -> str | None:
    return None if config.credit == "reward_to_go" or config.gamma == 1 else f"set gamma=1.0 instead of {config.gamma}"


@rule(
    "credit",
    "whitening",
    reason="all tokens of a response have the same advantage, and whitening subtracts it",
)
def cancelled_credit(config: RunConfig) -> str | None:
    cancelled = config.credit == "sequence" and whitened_alone(config)
    return "set whitening=batch, or credit=reward_to_go" if cancelled else None


@rule("signal", "whitening", reason="a term that is the same for all tokens of a response is subtracted by whitening")
def cancelled_reward(config: RunConfig) -> str | None:
    constant = [term.name for term in weighted_terms(config) if term.constant]
    if not constant or config.shaping.advantage_clip is not None or not whitened_alone(config):
        return None
    return f"set whitening=batch, or signal.{constant[0]}=0.0"


@rule("shaping.baseline", "whitening", reason="whitening subtracts that mean anyway")
def cancelled_baseline(config: RunConfig) -> str | None:
    baseline = config.shaping.baseline
    if baseline == "none" or LEVELS.index(config.whitening) < LEVELS.index(baseline):
        return None
    return "set shaping.baseline=none, or whitening=none"


@rule("samples_per_prompt", "shaping", reason="one response a prompt has no group to be compared with")
def lonely_sample(config: RunConfig) -> str | None:
    if config.samples_per_prompt > 1:
        return None
    if config.shaping.pass_rate_power > 0:
        return "set samples_per_prompt above 1, or shaping.pass_rate_power=0"
    if config.shaping.reward_baseline == "group":
        return "set samples_per_prompt above 1, or shaping.reward_baseline=none"
    return None


# ---- updates


@rule("mini_batch_size", "batch_size", reason="the updates of a batch would not weigh the same")
def uneven_updates(config: RunConfig) -> str | None:
    if config.batch_size % config.mini_batch_size == 0:
        return None
    return f"mini_batch_size={config.mini_batch_size} must divide batch_size={config.batch_size}"


@rule("clip", "mini_batch_size", reason="clipping acts from the second update of a batch on, and those need it")
def clip_and_updates(config: RunConfig) -> str | None:
    given = [bound is not None for bound in (config.clip.low, config.clip.high)]
    if not has_advantages(config):
        return None
    if config.mini_batch_size == config.batch_size:
        return "set clip.low=null and clip.high=null, or a smaller mini_batch_size" if any(given) else None
    return None if all(given) else "set clip.low and clip.high (0.2 is usual), or mini_batch_size=batch_size"


def _has_weight(config: RunConfig, name: str) -> bool:
    return name in config.signal and has_weight(config.signal[name])
