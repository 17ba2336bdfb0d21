"""What may not start: combinations that cannot learn, or would ignore one of their own knobs. A table; no torch here.

`docs/refusals.md` is made from it.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from opd import teacher_rules
from opd.config import Dataset, Mixture, RunConfig, method_names

BIASED = ("k2_naive", "k3_naive", "value_weighted")

# From the coarsest mean that is subtracted to the finest.
LEVELS = ("none", "batch", "group", "sample")


@dataclass(frozen=True)
class Refusal:
    """A rule over the whole config: its keys, why it refuses, and when (`when` returns what would be right)."""

    keys: tuple[str, ...]
    reason: str
    when: Callable[[RunConfig], str | None]


def exact(config: RunConfig) -> bool:
    """Whether the divergence itself is differentiated."""
    return config.method("support") != "sampled"


def heuristic(config: RunConfig) -> bool:
    """Whether tokens answer for later ones by a divergence that is not additive over a sequence."""
    return (config.gamma > 0 or config.credit == "sequence") and config.method("divergence") != "reverse_kl"


# ---- filter and rollout correction


def _empty_percentiles(config: RunConfig) -> str | None:
    low, high = config.filter["p_min"], config.filter["p_max"]
    return None if low < high else f"filter.p_min={low} must be below filter.p_max={high}"


def _all_percentiles(config: RunConfig) -> str | None:
    whole = (config.filter["p_min"], config.filter["p_max"]) == (0, 100)
    return "set filter=none, or a narrower range" if whole and config.method("filter") != "none" else None


def _prefix_of_all(config: RunConfig) -> str | None:
    length = config.filter["prefix_length"]
    if length is None or length < config.max_response_length:
        return None
    return f"filter.prefix_length={length} must be below max_response_length={config.max_response_length}, or null"


def _too_few_to_rank(config: RunConfig) -> str | None:
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


def _empty_ratios(config: RunConfig) -> str | None:
    low, high = config.rollout_correction["low"], config.rollout_correction["high"]
    if (low is None or low <= 1) and (high is None or high >= 1):
        return None
    return f"low={low} must be at most 1 and high={high} at least 1"


def _one_half(config: RunConfig) -> str | None:
    splits, marks = config.method("divergence") == "split", config.method("filter") == "partition"
    if splits == marks:
        return None
    return "set filter=partition too" if splits else "set divergence=split too, or filter=kl"


# ---- divergence, support, ensemble


def _biased_exact(config: RunConfig) -> str | None:
    return (
        "set support=sampled"
        if exact(config) and any(name in BIASED for name in method_names(config.divergence))
        else None
    )


def _ignored_by_exact(neutral: Any, of: Callable[[RunConfig], Any], key: str, config: RunConfig) -> str | None:
    if not exact(config) or of(config) == neutral:
        return None
    return f"set {key}={'null' if neutral is None else neutral}, or support=sampled"


def _normalized(config: RunConfig) -> str | None:
    if not config.ensemble.get("normalize") or exact(config):
        return None
    return "set ensemble.normalize=false, or support=full"


def _truncated_tail(config: RunConfig) -> str | None:
    truncates = config.rollout["top_p"] < 1 or config.rollout["top_k"] > 0
    if config.support.get("tail") != "sampled" or not truncates:
        return None
    return "set rollout.top_p=1.0 and rollout.top_k=0, or support.tail=bucket"


# ---- credit and shaping


def _clamped_sign(config: RunConfig) -> str | None:
    if config.shaping.log_ratio_clamp is None or not set(method_names(config.divergence)) <= {
        "total_variation",
        "split",
    }:
        return None
    return "set shaping.log_ratio_clamp=null, or another divergence"


def _heuristic_return(config: RunConfig) -> str | None:
    if config.allow_heuristic or not heuristic(config):
        return None
    now = f"gamma={config.gamma}" if config.credit == "reward_to_go" else "credit=sequence"
    return f"set gamma=0 and credit=reward_to_go instead of {now}, divergence=reverse_kl, or allow_heuristic=true"


def _discounted_sequence(config: RunConfig) -> str | None:
    return None if config.credit == "reward_to_go" or config.gamma == 1 else f"set gamma=1.0 instead of {config.gamma}"


def _each_alone(config: RunConfig) -> bool:
    """Whether whitening takes from each response its own mean."""
    return config.whitening == "sample" or (config.whitening == "group" and config.samples_per_prompt == 1)


def _cancelled_credit(config: RunConfig) -> str | None:
    return (
        "set whitening=batch, or credit=reward_to_go" if config.credit == "sequence" and _each_alone(config) else None
    )


def _cancelled_reward(config: RunConfig) -> str | None:
    if not any(config.shaping.reward_weight) or config.shaping.advantage_clip is not None or not _each_alone(config):
        return None
    return "set whitening=batch, or shaping.reward_weight=[0.0,0.0]"


def _cancelled_baseline(config: RunConfig) -> str | None:
    baseline = config.shaping.baseline
    if baseline == "none" or LEVELS.index(config.whitening) < LEVELS.index(baseline):
        return None
    return "set shaping.baseline=none, or whitening=none"


def _unused_anchor(config: RunConfig) -> str | None:
    if config.shaping.anchor == "self" or config.shaping.uses_anchor:
        return None
    return "set kl_coef above 0 or extrapolation other than 1, or leave out the anchor"


def _unused_baseline(config: RunConfig) -> str | None:
    if config.shaping.reward_baseline == "none" or any(config.shaping.reward_weight):
        return None
    return "set shaping.reward_weight above 0, or shaping.reward_baseline=none"


def _lonely_sample(config: RunConfig) -> str | None:
    if config.samples_per_prompt > 1:
        return None
    if config.shaping.pass_rate_power > 0:
        return "set samples_per_prompt above 1, or shaping.pass_rate_power=0"
    if config.shaping.reward_baseline == "group":
        return "set samples_per_prompt above 1, or shaping.reward_baseline=none"
    return None


# ---- updates


def _uneven_updates(config: RunConfig) -> str | None:
    if config.batch_size % config.mini_batch_size == 0:
        return None
    return f"mini_batch_size={config.mini_batch_size} must divide batch_size={config.batch_size}"


def _clip_and_updates(config: RunConfig) -> str | None:
    given = [bound is not None for bound in (config.clip.low, config.clip.high)]
    if exact(config):
        return None
    if config.mini_batch_size == config.batch_size:
        return "set clip.low=null and clip.high=null, or a smaller mini_batch_size" if any(given) else None
    return None if all(given) else "set clip.low and clip.high (0.2 is usual), or mini_batch_size=batch_size"


def _no_warm_up(config: RunConfig) -> str | None:
    if config.num_steps is None or config.optim.warmup_steps < config.num_steps:
        return None
    return f"warmup_steps={config.optim.warmup_steps} must be below num_steps={config.num_steps}"


# ---- evaluation and checkpoints


def _greedy_answers(config: RunConfig) -> str | None:
    if config.evaluate.temperature > 0 or config.evaluate.k == 1:
        return None
    return f"set evaluate.k=1 instead of {config.evaluate.k}, or a temperature above 0"


def _truncated_greedy(config: RunConfig) -> str | None:
    truncates = config.evaluate.top_p < 1 or config.evaluate.top_k > 0
    return (
        "set top_p=1 and top_k=0, or a temperature above 0" if config.evaluate.temperature == 0 and truncates else None
    )


def _nothing_to_keep(config: RunConfig) -> str | None:
    if config.checkpoint.every or config.checkpoint.keep == 1:
        return None
    return "set checkpoint.every above 0, or checkpoint.keep=1"


def _unweighed_sets(config: RunConfig) -> str | None:
    source = config.prompts.source
    if not isinstance(source, Mixture) or source.weights is None or source.weights.keys() == source.sources.keys():
        return None
    return f"give one to each of {', '.join(source.sources)}, not to {', '.join(source.weights) or 'none'}"


def _endless_stream(config: RunConfig) -> str | None:
    source = config.prompts.source
    named = source.sources if isinstance(source, Mixture) else {"": source}
    for name, each in [*named.items(), *config.evaluate.sources.items()]:
        if isinstance(each, Dataset) and each.streaming and each.limit is None:
            return f"set the limit of {name or 'prompts.source'} (rows), or streaming=false"
    return None


def _half_a_machine(config: RunConfig) -> str | None:
    if (config.plan.ranks is None) == (config.plan.gpu_gib is None):
        return None
    return "give both, or null for both"


def _plan_without_preflight(config: RunConfig) -> str | None:
    return "set preflight=true" if config.plan.ranks is not None and not config.preflight else None


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

REFUSALS = [
    Refusal(("filter.p_min", "filter.p_max"), "the percentile range keeps nothing", _empty_percentiles),
    Refusal(("filter.p_min", "filter.p_max"), "the percentile range keeps everything", _all_percentiles),
    Refusal(("filter.prefix_length", "max_response_length"), "no response is longer than the prefix", _prefix_of_all),
    Refusal(("filter.p_min", "filter.scope"), "so few tokens have no percentile in the range", _too_few_to_rank),
    Refusal(
        ("rollout_correction.low", "rollout_correction.high"),
        "a student that agrees with its own rollout, ratio 1, would lie outside the range",
        _empty_ratios,
    ),
    Refusal(
        ("divergence", "filter"),
        "divergence=split treats apart the tokens that filter=partition marks, and one without the other does nothing",
        _one_half,
    ),
    Refusal(
        ("divergence", "support"),
        "a biased form is a policy-gradient weight that is the gradient of nothing, so it has no exact form",
        _biased_exact,
    ),
    *(
        Refusal(
            ("support", key),
            "it acts on the advantages of a policy gradient, and a divergence that is differentiated itself has none",
            partial(_ignored_by_exact, neutral, of, key),
        )
        for key, (neutral, of) in OF_ADVANTAGES.items()
    ),
    Refusal(
        ("ensemble.normalize", "support"),
        "the geometric mean's normaliser is a sum over the vocabulary, and the sampled token shows one of it",
        _normalized,
    ),
    Refusal(
        ("support.tail", "rollout"),
        "tail=sampled stands for the rest of the vocabulary only where tokens are drawn from all of it",
        _truncated_tail,
    ),
    Refusal(
        ("teacher.engine", "support", "ensemble", "filter"),
        "vLLM gives log-probabilities of sampled tokens and of a teacher's likeliest, and no whole distributions",
        teacher_rules.distributions,
    ),
    Refusal(
        ("teacher.engine", "filter", "divergence", "ensemble"),
        "vLLM gives the log-probabilities of the sampled tokens and no entropies",
        teacher_rules.entropies,
    ),
    Refusal(
        ("teacher.engine", "teacher.temperature"),
        "vLLM gives the log-probabilities of given tokens at temperature 1",
        teacher_rules.temperature,
    ),
    Refusal(
        ("teacher.engine", "teacher.dtype"),
        "a server has loaded its model in a precision of its own",
        teacher_rules.precision,
    ),
    Refusal(
        ("teacher.engine", "teacher.dtype"),
        "vLLM takes weights in 8 bits from a checkpoint that holds them so",
        teacher_rules.eight_bits,
    ),
    Refusal(
        ("teacher.dtype", "compute.offload"),
        "weights in 8 bits stay on the device that computes with them",
        teacher_rules.eight_bits_offloaded,
    ),
    Refusal(
        ("teacher.engine", "teacher.server.urls"),
        "each teacher is asked at servers of its own, whose URLs are recorded",
        teacher_rules.urls,
    ),
    Refusal(
        ("teacher.vllm.kv_cache_bytes", "teacher.vllm.gpu_memory_utilization"),
        "an engine has one bound of its memory",
        teacher_rules.engine_memory,
    ),
    Refusal(
        ("gamma", "divergence"),
        "what later tokens add up to is the gradient of a sequence's divergence for reverse KL alone",
        _heuristic_return,
    ),
    Refusal(("credit", "gamma"), "credit=sequence counts every token of a response in full", _discounted_sequence),
    Refusal(
        ("credit", "whitening"),
        "the tokens of a response all have one advantage, and whitening takes it from them",
        _cancelled_credit,
    ),
    Refusal(
        ("shaping.reward_weight", "whitening"),
        "the tokens of a response all have its reward, and whitening takes it from them",
        _cancelled_reward,
    ),
    Refusal(
        ("shaping.log_ratio_clamp", "divergence"),
        "total variation has the gradient of a log-ratio's sign, which a clamp leaves as it is",
        _clamped_sign,
    ),
    Refusal(("shaping.baseline", "whitening"), "whitening subtracts that mean anyway", _cancelled_baseline),
    Refusal(("shaping.anchor", "shaping.kl_coef"), "nothing asks the anchor", _unused_anchor),
    Refusal(
        ("shaping.reward_baseline", "shaping.reward_weight"), "there is no reward to subtract from", _unused_baseline
    ),
    Refusal(
        ("samples_per_prompt", "shaping"), "one response a prompt has no group to be compared with", _lonely_sample
    ),
    Refusal(("mini_batch_size", "batch_size"), "the updates of a batch would not weigh the same", _uneven_updates),
    Refusal(
        ("clip", "mini_batch_size"),
        "clipping acts from the second update of a batch on, and those want it",
        _clip_and_updates,
    ),
    Refusal(("optim.warmup_steps", "num_steps"), "the learning rate would never arrive", _no_warm_up),
    Refusal(("evaluate.k", "evaluate.temperature"), "greedy answers are all alike", _greedy_answers),
    Refusal(
        ("evaluate.temperature", "evaluate.top_p", "evaluate.top_k"),
        "greedy answers ignore top_p and top_k",
        _truncated_greedy,
    ),
    Refusal(
        ("prompts.source.weights", "prompts.source.sources"), "every set of a mixture has a weight", _unweighed_sets
    ),
    Refusal(("prompts.source.streaming", "prompts.source.limit"), "a stream may have no end", _endless_stream),
    Refusal(("plan.ranks", "plan.gpu_gib"), "the machine that a plan is for has both", _half_a_machine),
    Refusal(("plan", "preflight"), "a run takes the machine that it is on", _plan_without_preflight),
    Refusal(
        ("checkpoint.every", "checkpoint.keep"), "without periodic checkpoints there is one to keep", _nothing_to_keep
    ),
]


def warnings(config: RunConfig) -> list[str]:
    """What may start but is worth a word."""
    found = []
    if config.teacher.models == ["self"] and config.entropy_coef == 0 and not config.shaping.uses_reward:
        found.append(
            "teacher.models=[self]: the student starts as its own teacher, so every advantage is zero and nothing is "
            "learned; name a teacher with teacher.models=[PATH]"
        )
    if heuristic(config):
        found.append(
            "gamma and divergence: only for reverse KL is what later tokens add up to the gradient of a sequence's "
            "divergence; with allow_heuristic this runs as a heuristic"
        )
    return found
