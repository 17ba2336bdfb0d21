"""A step in plain loops over numbers, from the definitions of the notation, the pinned readings and the docstrings.

Nothing of `opd.objective` is called here, nor anything of the step.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from opd.config.schema import RunConfig

SPECIAL = 11  # the first ids of the tiny world's tokenizer: padding, end, unknown and eight teachers
At = tuple[int, int]  # row and time of a response's token

# f(r) / r and -(f'(r) - f'(1)), by u = log r.
DIVERGENCES = {
    "reverse_kl": (lambda u: u, lambda u: -u),
    "forward_kl": (lambda u: -u * math.exp(-u), lambda u: math.exp(-u) - 1),
    "hellinger": (lambda u: (math.exp(u / 2) - 1) ** 2 * math.exp(-u), lambda u: math.exp(-u / 2) - 1),
}


@dataclass(frozen=True)
class Row:
    """A response, and what each of its tokens is to the student, the teachers and the anchor: log-prob and entropy.

    `prompt` is its prompt's place in the step, `read` what the student reads before it.
    """

    prompt: int
    read: Sequence[int]
    tokens: Sequence[int]
    rollout: Sequence[float]
    student: Sequence[tuple[float, float]]
    teachers: Sequence[Sequence[tuple[float, float]]]
    anchor: Sequence[float]
    right: bool
    truncated: bool


@dataclass(frozen=True)
class Step:
    """What reaches the learner, by token, and the metrics; `divisor` is of tokens that are counted."""

    advantage: Mapping[At, float]
    weight: Mapping[At, float]
    learned: set[At]
    counted: set[At]
    divisor: Mapping[At, float]
    part: Mapping[At, int]
    before: Mapping[At, float]
    metrics: dict[str, float]


def shares(config: RunConfig, progress: float, prompt: int) -> list[float]:
    """Each teacher's weight for a prompt."""
    size = len(config.teacher.models)
    places, name = range(size), config.method("ensemble")
    if name == "hard_switch":
        return [float(place == math.floor(progress * size)) for place in places]
    if name == "soft_switch":
        return [max(0.0, 1 - abs(place - progress * (size - 1))) for place in places]
    if name == "control_token":
        return [float(place == prompt % size) for place in places]
    return [1 / size] * size


def _entropy_name(config: RunConfig) -> str:
    """Of scores of sampled tokens no mixture's own entropy can be had."""
    mixes = config.method("ensemble") in ("soft_switch", "arithmetic", "geometric")
    return "entropy/teachers_mean" if mixes else "entropy/teacher"


def by_hand(config: RunConfig, number: int, num_steps: int, rows: Sequence[Row]) -> Step:
    progress, knobs, method = (number - 1) / num_steps, config.shaping, config.method("rollout_correction")
    every = [(i, t) for i, row in enumerate(rows) for t in range(len(row.tokens))]
    weights = {name: w if isinstance(w, list) else [w, w] for name, w in config.signal.items()}
    prompts = sorted({row.prompt for row in rows})
    student = {(i, t): rows[i].student[t][0] for i, t in every}
    anchor = {(i, t): rows[i].anchor[t] for i, t in every}
    entropy = {(i, t): rows[i].student[t][1] for i, t in every}

    # the ensemble
    w = {prompt: shares(config, progress, prompt) for prompt in prompts}
    of_each = {(i, t): [(s, *rows[i].teachers[k][t]) for k, s in enumerate(w[rows[i].prompt]) if s] for i, t in every}
    alone = config.method("ensemble") == "advantage_mean"
    reference = {
        x: sum(s * p for s, p, _ in said) if alone else math.log(sum(s * math.exp(p) for s, p, _ in said))
        for x, said in of_each.items()
    }
    reference_entropy = {x: sum(s * h for s, _, h in said) for x, said in of_each.items()}
    u = {x: student[x] - reference[x] for x in every}

    # the filter
    given = config.filter
    longest = given["prefix_length"] or math.inf
    special = range(SPECIAL if given["exclude_special"] else 0)
    left_out = {*given["exclude_ids"], *special}
    allowed = [(i, t) for i, t in every if rows[i].tokens[t] not in left_out and t < longest]
    score = {
        "abs_k1": {x: abs(u[x]) for x in every},
        "signed_k1": u,
        "student_entropy": entropy,
        "teacher_entropy": reference_entropy,
    }[given["score"]]
    scope = {"batch": lambda i: 0, "group": lambda i: rows[i].prompt, "sequence": lambda i: i}[given["scope"]]
    inside = set()
    for place in {scope(i) for i, _ in allowed}:
        ranked = sorted((x for x in allowed if scope(x[0]) == place), key=lambda x: (score[x], x))
        inside |= {x for r, x in enumerate(ranked) if given["p_min"] <= 100 * r / len(ranked) < given["p_max"]}
    kept = set(allowed) if config.method("filter") == "partition" else inside
    stays = kept if given.get("denominator") == "kept" else set(allowed)

    # the rollout correction
    rho = {(i, t): math.exp(student[i, t] - rows[i].rollout[t]) for i, t in every}
    low, high = config.rollout_correction["low"], config.rollout_correction["high"]
    near = {x for x in every if low <= rho[x] <= high}
    matched = near if method == "mis" else set(every)
    correction = {
        "mis": {x: float(x in near) for x in every},
        "tis": {x: min(max(rho[x], low), high) for x in every},
        "icepop": {x: rho[x] * (x in near) for x in every},
    }[method]
    learned, counted = kept & matched, stays & matched

    # from the divergence to the advantage
    def held(number: float) -> float:
        limit = knobs.log_ratio_clamp or math.inf
        return min(max(number, -limit), limit)

    halves = [str(config.divergence.get(side, config.divergence)["_target_"]) for side in ("inside", "outside")]
    value, slope = (
        {x: DIVERGENCES[halves[x not in inside].rpartition(".")[2]][which] for x in every} for which in (0, 1)
    )

    def advantage_to(x: At, teacher: float) -> float:
        return slope[x](held(student[x] - anchor[x] - knobs.extrapolation * (teacher - anchor[x])))

    def of_response(i: int, tokens: Sequence[At] | set[At]) -> list[At]:
        return [x for x in sorted(tokens) if x[0] == i]

    def of_prompt(i: int, tokens: Sequence[At] | set[At]) -> list[At]:
        return [x for x in sorted(tokens) if rows[x[0]].prompt == rows[i].prompt]

    signal = {
        x: sum(s * advantage_to(x, p) for s, p, _ in of_each[x]) if alone else advantage_to(x, reference[x])
        for x in every
    }
    signal = {x: a - weights["near_start"][0] * (student[x] - anchor[x]) for x, a in signal.items()}
    rewards = [float(row.right) for row in rows]
    rates = [statistics.mean(r for r, other in zip(rewards, rows, strict=True) if other.prompt == row.prompt)
             for row in rows]  # fmt: skip
    from_reward, to_reward = weights["reward"]
    advantage, early = {}, {}
    for i, t in learned:
        mine = of_response(i, learned)
        disagreement = [abs(signal[x]) for x in mine]
        before = sum(d for x, d in zip(mine, disagreement, strict=True) if x[1] < t) / (sum(disagreement) or 1)
        early[i, t] = 1 + knobs.prefix_strength * (1 - before)
        if config.credit == "sequence":
            advantage[i, t] = sum(signal[x] for x in mine)
        else:
            advantage[i, t] = sum(config.gamma ** (k - t) * signal[i, k] for _, k in mine if k >= t)
        reward = rewards[i] - (rates[i] if knobs.reward_baseline == "group" else 0)
        advantage[i, t] += (from_reward + (to_reward - from_reward) * progress) * reward
    members = {"sample": of_response, "group": of_prompt, "batch": lambda i, tokens: sorted(tokens)}

    def among(level: str, of: Mapping[At, float]) -> dict[At, list[float]]:
        return {x: [of[y] for y in members[level](x[0], learned)] for x in learned}

    if knobs.baseline != "none":
        means = among(knobs.baseline, advantage)
        advantage = {x: a - statistics.mean(means[x]) for x, a in advantage.items()}
    most = knobs.advantage_clip or math.inf
    clipped = sum(abs(a) > most for a in advantage.values()) / len(advantage)
    advantage = {x: min(max(a, -most), most) for x, a in advantage.items()}
    removed = [(0.0, 1.0)] * len(learned)
    if config.whitening != "none":
        numbers = among(config.whitening, advantage)
        mean = {x: statistics.mean(numbers[x]) for x in learned}
        std = {x: statistics.pstdev(numbers[x]) for x in learned}
        advantage = {x: (a - mean[x]) / std[x] if std[x] > 1e-12 else 0.0 for x, a in advantage.items()}
        removed = [(mean[x], std[x]) for x in learned]
    lesson = [(4 * p * (1 - p)) ** knobs.pass_rate_power for p in rates]
    weight = {x: correction[x] * lesson[x[0]] * early[x] for x in learned}

    # the denominators of each update
    size = config.mini_batch_size * config.samples_per_prompt
    part = {x: x[0] // size for x in every}
    divisor = {}
    for x in counted:
        together = [y for y in counted if part[y] == part[x]]
        if config.loss["aggregation"] == "token_mean":
            divisor[x] = len(together)
        else:
            divisor[x] = len({i for i, _ in together}) * len(of_response(x[0], counted))

    def share(tokens: Any) -> float:
        return len([*tokens]) / len(every)

    spoken = [i for i, row in enumerate(rows) if row.tokens]
    drift = [statistics.mean(-math.log(rho[x]) for x in of_response(i, every)) for i in spoken]
    worth = [correction[x] for x in every]
    metrics = {
        "divergence/reverse_kl": statistics.mean(u.values()),
        "divergence/value": statistics.mean(value[x](held(u[x])) for x in every),
        "divergence/clamped": share(x for x in every if held(u[x]) != u[x]),
        "entropy/student": statistics.mean(entropy.values()),
        _entropy_name(config): statistics.mean(reference_entropy.values()),
        "response/length": len(every) / len(rows),
        "response/truncated": statistics.mean(float(row.truncated) for row in rows),
        "response/tokens": len(every),
        "filter/kept": share(learned),
        "filter/not_eligible": share(x for x in every if x not in allowed),
        "filter/filtered": share(x for x in allowed if x not in kept),
        "filter/mismatched": share(kept - matched),
        "rollout_correction/log_ppl_drift": statistics.mean(drift),
        "rollout_correction/ppl_ratio": statistics.mean(map(math.exp, drift)),
        "rollout_correction/abs_log_ratio": statistics.mean(abs(math.log(rho[x])) for x in every),
        "rollout_correction/ratio_max": max(rho.values()),
        "rollout_correction/ess": sum(worth) ** 2 / (len(worth) * sum(each**2 for each in worth)),
        "rollout_correction/masked": share(x for x in every if correction[x] == 0),
        "whitening/mean": statistics.mean(mean for mean, _ in removed),
        "whitening/std": statistics.mean(std for _, std in removed),
        "shaping/clipped": clipped,
    }
    if any(weights["reward"]) or knobs.pass_rate_power:
        metrics |= {"reward/mean": statistics.mean(rewards), "reward/prompt_weight": statistics.mean(lesson)}
    return Step(advantage, weight, learned, counted, divisor, part, student, metrics)


def loss_by_hand(config: RunConfig, step: Step, part: int, logp: Mapping[At, Tensor], entropy: Mapping[At, Tensor]):
    """The loss of one update, of the student's log-probs and entropies as they are when it is made."""
    loss = torch.zeros((), dtype=torch.float64)
    for x in sorted(step.learned):
        if step.part[x] == part:
            gain = step.advantage[x] * logp[x]
            if config.mini_batch_size < config.batch_size:
                assert config.clip.low is not None and config.clip.high is not None
                ratio = (logp[x] - step.before[x]).exp()
                bounded = ratio.clamp(1 - config.clip.low, 1 + config.clip.high)
                gain = torch.minimum(step.advantage[x] * ratio, step.advantage[x] * bounded)
            loss = loss - step.weight[x] * gain / step.divisor[x]
    for x in sorted(step.counted):
        if step.part[x] == part:
            loss = loss - config.signal["entropy"] * entropy[x] / step.divisor[x]
    return loss
