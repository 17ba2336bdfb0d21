"""`python -m docs.credit_variance`: what each way of credit costs in variance, as credit.md and its figure.

Exact, by enumerating every response: a student and a teacher with free logits for every prefix, reverse KL. The
variance is that of one response's gradient by the student's logits, all of them together.
"""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from opd.objective.advantage import discounted_return
from opd.objective.divergence import reverse_kl
from opd.objective.shaping import sequence_return

DOCS = Path(__file__).parent
LENGTHS = range(1, 11)
NUM_SEEDS = 16
VOCABULARY = 3

CREDITS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "token (gamma 0)": lambda signal, mask: discounted_return(signal, mask, 0.0),
    "reward-to-go (gamma 1)": lambda signal, mask: discounted_return(signal, mask, 1.0),
    "sequence": sequence_return,
}
COLOURS = ("#2a9d5c", "#3d85d8", "#d9603b")

PAGE = """\
# What credit costs in variance

Made by `python -m docs.credit_variance`.

![Variance against length, three lines that rise from one point and part](images/credit_variance.svg)

{table}
Variance of one response's gradient of reverse KL, exact, in float64: the mean over {seeds} random students and teachers
with {vocabulary} tokens. In brackets, how many times that of token-level credit.

All three are the same for one token. From length {half} to {longest} the variance grows as length to the power of
{token:.1f} with token-level credit, {reward_to_go:.1f} with reward-to-go and {sequence:.1f} with sequence-level credit.
Token-level credit pays for that with another target, each position's divergence under prefixes that it does not answer
for, where the other two have in expectation the gradient of the whole response's divergence (Revisiting OPD,
[arXiv 2603.25562](https://arxiv.org/abs/2603.25562)).
"""

STYLE = """\
  <style>
    text { font: 13px system-ui, sans-serif; fill: #3a3a3a }
    .rule { stroke: #3a3a3a; stroke-opacity: 0.2 }
    @media (prefers-color-scheme: dark) { text { fill: #d4d4d4 } .rule { stroke: #d4d4d4 } }
  </style>"""


def main() -> None:
    """Writes the page and the figure."""
    found = {length: variances(length) for length in LENGTHS}
    (DOCS / "credit.md").write_text(page(found))
    (DOCS / "images" / "credit_variance.svg").write_text(figure(found))


def variances(length: int) -> dict[str, float]:
    """The variance of each way of credit at this length, averaged over the seeds."""
    each = [variances_of(length, seed) for seed in range(NUM_SEEDS)]
    return {name: sum(one[name] for one in each) / NUM_SEEDS for name in CREDITS}


def variances_of(length: int, seed: int) -> dict[str, float]:
    """The variance of each way of credit for one student and teacher."""
    generator = torch.Generator().manual_seed(seed)
    number = torch.arange(VOCABULARY**length)
    chosen, logp, log_ratio, scores = [], [], [], []
    for t in range(length):
        student, teacher = torch.randn(
            2, VOCABULARY**t, VOCABULARY, generator=generator, dtype=torch.float64
        ).log_softmax(-1)
        # Responses are numbers in base VOCABULARY, their first token the highest digit.
        prefix, token = number // VOCABULARY ** (length - t), number // VOCABULARY ** (length - t - 1) % VOCABULARY
        logp.append(student[prefix, token])
        log_ratio.append((student - teacher)[prefix, token])
        # The gradient of a token's log-prob by its logits.
        scores.append(torch.nn.functional.one_hot(token, VOCABULARY) - student.exp()[prefix])
        chosen.append(prefix)
    probability = torch.stack(logp).sum(0).exp()
    signal = reverse_kl().advantage(torch.stack(log_ratio, 1))
    found = {}
    for name, credit in CREDITS.items():
        advantage = credit(signal, torch.ones_like(signal, dtype=torch.bool))
        second = first = 0.0
        for t, (prefix, score) in enumerate(zip(chosen, scores, strict=True)):
            gradient = advantage[:, t, None] * score
            second += float((probability * (gradient**2).sum(-1)).sum())
            mean = torch.zeros(VOCABULARY**t, VOCABULARY, dtype=torch.float64)
            first += float((mean.index_add(0, prefix, probability[:, None] * gradient) ** 2).sum())
        found[name] = second - first
    return found


def page(found: dict[int, dict[str, float]]) -> str:
    """The page, with its numbers as a table."""
    token, reward_to_go, sequence = CREDITS
    lines = ["| length | " + " | ".join(CREDITS) + " |", "|" + " ---: |" * (len(CREDITS) + 1)]
    for length, row in found.items():
        cells = [f"{row[name]:.3g}" + ("" if name == token else f" ({row[name] / row[token]:.1f})") for name in CREDITS]
        lines.append("| " + " | ".join([str(length), *cells]) + " |")
    longest = max(found)
    power = {name: math.log2(found[longest][name] / found[longest // 2][name]) for name in CREDITS}
    return PAGE.format(
        table="\n".join(lines) + "\n",
        seeds=NUM_SEEDS,
        vocabulary=VOCABULARY,
        half=longest // 2,
        longest=longest,
        token=power[token],
        reward_to_go=power[reward_to_go],
        sequence=power[sequence],
    )


def figure(found: dict[int, dict[str, float]]) -> str:
    """Both axes logarithmic, so that a power of the length is a straight line; readable on light and dark."""
    left, right, top, bottom, longest = 60, 470, 20, 300, max(found)
    low = math.floor(math.log10(min(min(row.values()) for row in found.values())))
    high = math.ceil(math.log10(max(max(row.values()) for row in found.values())))

    def x(length: float) -> str:
        return f"{left + (right - left) * math.log(length) / math.log(longest):.1f}"

    def y(variance: float) -> float:
        return bottom - (bottom - top) * (math.log10(variance) - low) / (high - low)

    parts = ['<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 640 350" width="640" height="350" role="img">']
    parts += ["  <title>Variance of one response's gradient against its length, by way of credit</title>", STYLE]
    for power in range(low, high + 1):
        height = y(10**power)
        parts.append(f'  <path class="rule" d="M{left} {height:.1f}H{right}"/>')
        parts.append(f'  <text x="{left - 8}" y="{height + 4:.1f}" text-anchor="end">{10.0**power:g}</text>')
    for length in found:
        parts.append(f'  <text x="{x(length)}" y="{bottom + 20}" text-anchor="middle">{length}</text>')
    parts.append(
        f'  <text x="{(left + right) / 2:g}" y="{bottom + 42}" text-anchor="middle">tokens of a response</text>'
    )
    for name, colour in zip(CREDITS, COLOURS, strict=True):
        points = " ".join(f"{x(length)},{y(row[name]):.1f}" for length, row in found.items())
        parts.append(f'  <polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2.5"/>')
        parts.append(
            f'  <text x="{right + 8}" y="{y(found[longest][name]) + 4:.1f}" style="fill: {colour}">{name}</text>'
        )
    return "\n".join([*parts, "</svg>", ""])


if __name__ == "__main__":
    main()
