"""When a method cannot learn or would ignore a knob, and what would be right; `opd.check.refusals` says why."""

import math
from collections.abc import Callable
from typing import Any

from opd.config.schema import RunConfig, method_names

BIASED = ("k2_naive", "k3_naive", "value_weighted")

# From the coarsest mean that is subtracted to the finest.
LEVELS = ("none", "batch", "group", "sample")


def exact(config: RunConfig) -> bool:
    """Whether the divergence itself is differentiated."""
    return config.method("support") != "sampled"


def heuristic(config: RunConfig) -> bool:
    """Whether tokens answer for later ones by a divergence that is not additive over a sequence."""
    return (config.gamma > 0 or config.credit == "sequence") and config.method("divergence") != "reverse_kl"


# ---- filter and rollout correction


def empty_percentiles(config: RunConfig) -> str | None:
    """The range of percentiles has no room."""
    low, high = config.filter["p_min"], config.filter["p_max"]
    return None if low < high else f"filter.p_min={low} must be below filter.p_max={high}"


def all_percentiles(config: RunConfig) -> str | None:
    """The range of percentiles leaves nothing out."""
    whole = (config.filter["p_min"], config.filter["p_max"]) == (0, 100)
    return "set filter=none, or a narrower range" if whole and config.method("filter") != "none" else None


def prefix_of_all(config: RunConfig) -> str | None:
    """The prefix that may be learned is the whole of every response."""
    length = config.filter["prefix_length"]
    if length is None or length < config.max_response_length:
        return None
    return f"filter.prefix_length={length} must be below max_response_length={config.max_response_length}, or null"


def too_few_to_rank(config: RunConfig) -> str | None:
    """No rank among the tokens of a scope, however many, falls in the range of percentiles."""
    scope, low, high = config.filter.get("scope"), config.filter["p_min"], config.filter["p_max"]
    if scope is None:
        return None
    responses = {"sequence": 1, "group": config.samples_per_prompt}.get(
        scope, config.samples_per_prompt * config.batch_size
    )
    most = responses * min(config.filter["prefix_length"] or config.max_response_length, config.max_response_length)
    # Of `size` tokens the percentiles are 100 rank / size; the first that the range could hold is that of this rank.
    if any(math.ceil(low * size / 100) * 100 < high * size for size in range(1, most + 1)):
        return None
    return f"set filter.p_min and filter.p_max to a range that one of {most} tokens falls in, or a wider filter.scope"


def empty_ratios(config: RunConfig) -> str | None:
    """The range of ratios leaves out 1."""
    low, high = config.rollout_correction["low"], config.rollout_correction["high"]
    if (low is None or low <= 1) and (high is None or high >= 1):
        return None
    return f"low={low} must be at most 1 and high={high} at least 1"


def one_half(config: RunConfig) -> str | None:
    """A divergence for each part of the tokens, without a filter that parts them; or the filter without it."""
    splits, marks = config.method("divergence") == "split", config.method("filter") == "partition"
    if splits == marks:
        return None
    return "set filter=partition too" if splits else "set divergence=split too, or filter=kl"


# ---- divergence, support, ensemble


def biased_exact(config: RunConfig) -> str | None:
    """A biased form is asked for its exact form."""
    return (
        "set support=sampled"
        if exact(config) and any(name in BIASED for name in method_names(config.divergence))
        else None
    )


def ignored_by_exact(neutral: Any, of: Callable[[RunConfig], Any], key: str, config: RunConfig) -> str | None:
    """A knob of advantages, `of` the config, is not `neutral` where there are no advantages."""
    if not exact(config) or of(config) == neutral:
        return None
    return f"set {key}={'null' if neutral is None else neutral}, or support=sampled"


def normalized(config: RunConfig) -> str | None:
    """A sum over the vocabulary is asked of sampled tokens."""
    if not config.ensemble.get("normalize") or exact(config):
        return None
    return "set ensemble.normalize=false, or support=full"


def truncated_tail(config: RunConfig) -> str | None:
    """The sampled token stands for a tail that the rollout cuts off."""
    truncates = config.rollout["top_p"] < 1 or config.rollout["top_k"] > 0
    if config.support.get("tail") != "sampled" or not truncates:
        return None
    return "set rollout.top_p=1.0 and rollout.top_k=0, or support.tail=bucket"


# ---- credit and shaping


def clamped_sign(config: RunConfig) -> str | None:
    """A clamp of log-ratios of which only the sign counts."""
    if config.shaping.log_ratio_clamp is None or not set(method_names(config.divergence)) <= {
        "total_variation",
        "split",
    }:
        return None
    return "set shaping.log_ratio_clamp=null, or another divergence"


def heuristic_return(config: RunConfig) -> str | None:
    """Later tokens count, by a divergence that does not add up over a sequence."""
    if config.allow_heuristic or not heuristic(config):
        return None
    now = f"gamma={config.gamma}" if config.credit == "reward_to_go" else "credit=sequence"
    return f"set gamma=0 and credit=reward_to_go instead of {now}, divergence=reverse_kl, or allow_heuristic=true"


def discounted_sequence(config: RunConfig) -> str | None:
    """A discount where every token counts in full."""
    return None if config.credit == "reward_to_go" or config.gamma == 1 else f"set gamma=1.0 instead of {config.gamma}"


def each_alone(config: RunConfig) -> bool:
    """Whether whitening takes from each response its own mean."""
    return config.whitening == "sample" or (config.whitening == "group" and config.samples_per_prompt == 1)


def cancelled_credit(config: RunConfig) -> str | None:
    """Whitening takes away a credit that is the response's."""
    return "set whitening=batch, or credit=reward_to_go" if config.credit == "sequence" and each_alone(config) else None


def cancelled_reward(config: RunConfig) -> str | None:
    """Whitening takes away a reward that is the response's."""
    if not any(config.shaping.reward_weight) or config.shaping.advantage_clip is not None or not each_alone(config):
        return None
    return "set whitening=batch, or shaping.reward_weight=[0.0,0.0]"


def cancelled_baseline(config: RunConfig) -> str | None:
    """Whitening subtracts what the baseline has subtracted."""
    baseline = config.shaping.baseline
    if baseline == "none" or LEVELS.index(config.whitening) < LEVELS.index(baseline):
        return None
    return "set shaping.baseline=none, or whitening=none"


def unused_anchor(config: RunConfig) -> str | None:
    """An anchor that nothing asks."""
    if config.shaping.anchor == "self" or config.shaping.uses_anchor:
        return None
    return "set kl_coef above 0 or extrapolation other than 1, or leave out the anchor"


def unused_baseline(config: RunConfig) -> str | None:
    """A baseline of rewards that there are none of."""
    if config.shaping.reward_baseline == "none" or any(config.shaping.reward_weight):
        return None
    return "set shaping.reward_weight above 0, or shaping.reward_baseline=none"


def lonely_sample(config: RunConfig) -> str | None:
    """A prompt's responses are compared, and it has one."""
    if config.samples_per_prompt > 1:
        return None
    if config.shaping.pass_rate_power > 0:
        return "set samples_per_prompt above 1, or shaping.pass_rate_power=0"
    if config.shaping.reward_baseline == "group":
        return "set samples_per_prompt above 1, or shaping.reward_baseline=none"
    return None


# ---- updates


def uneven_updates(config: RunConfig) -> str | None:
    """The last update of a batch would have fewer prompts."""
    if config.batch_size % config.mini_batch_size == 0:
        return None
    return f"mini_batch_size={config.mini_batch_size} must divide batch_size={config.batch_size}"


def clip_and_updates(config: RunConfig) -> str | None:
    """Clipping with one update a batch, or several updates without it."""
    given = [bound is not None for bound in (config.clip.low, config.clip.high)]
    if exact(config):
        return None
    if config.mini_batch_size == config.batch_size:
        return "set clip.low=null and clip.high=null, or a smaller mini_batch_size" if any(given) else None
    return None if all(given) else "set clip.low and clip.high (0.2 is usual), or mini_batch_size=batch_size"


def no_warm_up(config: RunConfig) -> str | None:
    """The warm-up takes the whole run."""
    if config.num_steps is None or config.optim.warmup_steps < config.num_steps:
        return None
    return f"warmup_steps={config.optim.warmup_steps} must be below num_steps={config.num_steps}"


# Knobs that act on the advantages of a policy gradient, and what each is where it does nothing.
OF_ADVANTAGES: dict[str, tuple[Any, Callable[[RunConfig], Any]]] = {
    "whitening": ("none", lambda c: c.whitening),
    "gamma": (0.0, lambda c: c.gamma),
    "credit": ("reward_to_go", lambda c: c.credit),
    "clip.low": (None, lambda c: c.clip.low),
    "clip.high": (None, lambda c: c.clip.high),
    "shaping.baseline": ("none", lambda c: c.shaping.baseline),
    "shaping.advantage_clip": (None, lambda c: c.shaping.advantage_clip),
    "shaping.prefix_strength": (0.0, lambda c: c.shaping.prefix_strength),
    "shaping.kl_coef": (0.0, lambda c: c.shaping.kl_coef),
    "shaping.extrapolation": (1.0, lambda c: c.shaping.extrapolation),
    "shaping.reward_weight": ([0.0, 0.0], lambda c: c.shaping.reward_weight),
}
