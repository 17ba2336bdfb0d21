"""What may not start: combinations that cannot learn, or would ignore one of their own knobs. A table; no torch here.

`docs/refusals.md` is made from it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from opd.check import method_rules, teacher_rules
from opd.config.schema import Dataset, Mixture, RunConfig


@dataclass(frozen=True)
class Refusal:
    """A rule over the whole config: its keys, why it refuses, and when (`when` returns what would be right)."""

    keys: tuple[str, ...]
    reason: str
    when: Callable[[RunConfig], str | None]


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


REFUSALS = [
    Refusal(("filter.p_min", "filter.p_max"), "the percentile range keeps nothing", method_rules.empty_percentiles),
    Refusal(("filter.p_min", "filter.p_max"), "the percentile range keeps everything", method_rules.all_percentiles),
    Refusal(
        ("filter.prefix_length", "max_response_length"),
        "no response is longer than the prefix",
        method_rules.prefix_of_all,
    ),
    Refusal(
        ("filter.p_min", "filter.scope"), "so few tokens have no percentile in the range", method_rules.too_few_to_rank
    ),
    Refusal(
        ("rollout_correction.low", "rollout_correction.high"),
        "a student that agrees with its own rollout, ratio 1, would lie outside the range",
        method_rules.empty_ratios,
    ),
    Refusal(
        ("divergence", "filter"),
        "divergence=split treats apart the tokens that filter=partition marks, and one without the other does nothing",
        method_rules.one_half,
    ),
    Refusal(
        ("divergence", "support"),
        "a biased form is a policy-gradient weight that is the gradient of nothing, so it has no exact form",
        method_rules.biased_exact,
    ),
    *(
        Refusal(
            ("support", key),
            "it acts on the advantages of a policy gradient, and a divergence that is differentiated itself has none",
            partial(method_rules.ignored_by_exact, neutral, of, key),
        )
        for key, (neutral, of) in method_rules.OF_ADVANTAGES.items()
    ),
    Refusal(
        ("ensemble.normalize", "support"),
        "the geometric mean's normaliser is a sum over the vocabulary, and the sampled token shows one of it",
        method_rules.normalized,
    ),
    Refusal(
        ("support.tail", "rollout"),
        "tail=sampled stands for the rest of the vocabulary only where tokens are drawn from all of it",
        method_rules.truncated_tail,
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
        method_rules.heuristic_return,
    ),
    Refusal(
        ("credit", "gamma"),
        "credit=sequence counts every token of a response in full",
        method_rules.discounted_sequence,
    ),
    Refusal(
        ("credit", "whitening"),
        "the tokens of a response all have one advantage, and whitening takes it from them",
        method_rules.cancelled_credit,
    ),
    Refusal(
        ("shaping.reward_weight", "whitening"),
        "the tokens of a response all have its reward, and whitening takes it from them",
        method_rules.cancelled_reward,
    ),
    Refusal(
        ("shaping.log_ratio_clamp", "divergence"),
        "total variation has the gradient of a log-ratio's sign, which a clamp leaves as it is",
        method_rules.clamped_sign,
    ),
    Refusal(("shaping.baseline", "whitening"), "whitening subtracts that mean anyway", method_rules.cancelled_baseline),
    Refusal(("shaping.anchor", "shaping.kl_coef"), "nothing asks the anchor", method_rules.unused_anchor),
    Refusal(
        ("shaping.reward_baseline", "shaping.reward_weight"),
        "there is no reward to subtract from",
        method_rules.unused_baseline,
    ),
    Refusal(
        ("samples_per_prompt", "shaping"),
        "one response a prompt has no group to be compared with",
        method_rules.lonely_sample,
    ),
    Refusal(
        ("mini_batch_size", "batch_size"),
        "the updates of a batch would not weigh the same",
        method_rules.uneven_updates,
    ),
    Refusal(
        ("clip", "mini_batch_size"),
        "clipping acts from the second update of a batch on, and those want it",
        method_rules.clip_and_updates,
    ),
    Refusal(("optim.warmup_steps", "num_steps"), "the learning rate would never arrive", method_rules.no_warm_up),
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
    if method_rules.heuristic(config):
        found.append(
            "gamma and divergence: only for reverse KL is what later tokens add up to the gradient of a sequence's "
            "divergence; with allow_heuristic this runs as a heuristic"
        )
    return found
