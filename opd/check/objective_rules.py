"""Rules on filter, rollout correction, divergence, support and ensemble."""

import math

from opd.check.rule import rule
from opd.config.schema import RunConfig, method_names

# Policy-gradient weights that are the gradient of no divergence.
BIASED = ("k2_naive", "k3_naive", "value_weighted")


def exact(config: RunConfig) -> bool:
    """Whether the divergence itself is differentiated, over the vocabulary."""
    return config.method("support") != "sampled"


# ---- filter and rollout correction


@rule("filter.p_min", "filter.p_max", reason="the percentile range keeps nothing")
def empty_percentiles(config: RunConfig) -> str | None:
    low, high = config.filter["p_min"], config.filter["p_max"]
    return None if low < high else f"filter.p_min={low} must be below filter.p_max={high}"


@rule("filter.p_min", "filter.p_max", reason="the percentile range keeps everything")
def all_percentiles(config: RunConfig) -> str | None:
    everything = (config.filter["p_min"], config.filter["p_max"]) == (0, 100)
    return "set filter=none, or a narrower range" if everything and config.method("filter") != "none" else None


@rule("filter.prefix_length", "max_response_length", reason="no response is longer than the prefix")
def prefix_of_all(config: RunConfig) -> str | None:
    length = config.filter["prefix_length"]
    if length is None or length < config.max_response_length:
        return None
    return f"filter.prefix_length={length} must be below max_response_length={config.max_response_length}, or null"


@rule("filter.p_min", "filter.scope", reason="so few tokens have no percentile in the range")
def too_few_to_rank(config: RunConfig) -> str | None:
    scope, low, high = config.filter["scope"], config.filter["p_min"], config.filter.get("p_max", 100)
    responses = {"sequence": 1, "group": config.samples_per_prompt}.get(
        scope, config.samples_per_prompt * config.batch_size
    )
    most = responses * min(config.filter["prefix_length"] or config.max_response_length, config.max_response_length)
    # Of `size` tokens the percentiles are 100 rank / size; the first that the range could hold is that of this rank.
    if any(math.ceil(low * size / 100) * 100 < high * size for size in range(1, most + 1)):
        return None
    return f"set filter.p_min and filter.p_max to a range that one of {most} tokens falls in, or a wider filter.scope"


@rule(
    "rollout_correction.low",
    "rollout_correction.high",
    reason="a student that agrees with its own rollout, ratio 1, would lie outside the range",
)
def empty_ratios(config: RunConfig) -> str | None:
    low, high = config.rollout_correction["low"], config.rollout_correction["high"]
    if (low is None or low <= 1) and (high is None or high >= 1):
        return None
    return f"low={low} must be at most 1 and high={high} at least 1"


@rule(
    "divergence",
    "filter",
    reason="divergence=split treats the tokens that filter=partition marks differently, and one without the other does "
    "nothing",
)
def one_half(config: RunConfig) -> str | None:
    splits, marks = config.method("divergence") == "split", config.method("filter") == "partition"
    if splits == marks:
        return None
    return "set filter=partition too" if splits else "set divergence=split too, or filter=kl"


# ---- divergence, support, ensemble


@rule(
    "divergence",
    "support",
    reason="a biased form is a policy-gradient weight that is the gradient of nothing, so it has no exact form",
)
def biased_exact(config: RunConfig) -> str | None:
    biased = any(name in BIASED for name in method_names(config.divergence))
    return "set support=sampled" if biased and exact(config) else None


@rule(
    "ensemble.normalize",
    "support",
    reason="the geometric mean's normaliser is a sum over the vocabulary, and the sampled token shows one of it",
)
def normalized(config: RunConfig) -> str | None:
    if not config.ensemble["normalize"] or exact(config):
        return None
    return "set ensemble.normalize=false, or support=full"


@rule(
    "support.tail",
    "rollout",
    reason="tail=sampled stands for the rest of the vocabulary only where tokens are drawn from all of it",
)
def truncated_tail(config: RunConfig) -> str | None:
    truncates = config.rollout["top_p"] < 1 or config.rollout["top_k"] > 0
    if config.support["tail"] != "sampled" or not truncates:
        return None
    return "set rollout.top_p=1.0 and rollout.top_k=0, or support.tail=bucket"


@rule(
    "shaping.log_ratio_clamp",
    "divergence",
    reason="total variation has the gradient of a log-ratio's sign, which a clamp leaves as it is",
)
def clamped_sign(config: RunConfig) -> str | None:
    only_sign = set(method_names(config.divergence)) <= {"total_variation", "split"}
    if config.shaping.log_ratio_clamp is None or not only_sign:
        return None
    return "set shaping.log_ratio_clamp=null, or another divergence"
