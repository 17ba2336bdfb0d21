"""f-divergences D_f(student || reference) = Σ_v reference_v · f(r_v), r = student / reference, f convex, f(1) = 0.

A divergence is written once, as two functions of u = log_ratio = student_logp - reference_logp:

    generator(u) = f(e^u)              slope(u) = f'(e^u) - f'(1), so that slope(0) = 0

and three things follow: `value` f(r)/r, the on-policy estimate of D from one sampled token; `advantage` -slope, the
policy-gradient weight whose expectation is exactly -∇D (Eq. 4 of "On-Policy Distillation Adventures"); `exact`, the
sum over the vocabulary. Both functions must be finite wherever |u| <= 80, in float32 too.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le, Lt
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn.functional import logsigmoid

FLOOR = -690.0  # a log-prob below this (-inf, say) counts as this; e^-690 is still a number in float64


def limit(dtype: torch.dtype) -> float:
    """The largest exponent used in `dtype`: beyond it e^x is no longer a number, or leaves no room for a factor."""
    return 700.0 if dtype == torch.float64 else 80.0


@dataclass(frozen=True)
class Divergence:
    """D_f by its generator and slope in log_ratio.

    `weight`, where given, replaces -slope as the policy-gradient weight. It is not the gradient of anything that the
    generator says: such forms exist only to reproduce published failures, and have no exact form. `pair`, where given,
    is generator and slope at once, for divergences whose two share most of their work.
    """

    generator: Callable[[Tensor], Tensor]
    slope: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor], Tensor] | None = None
    pair: Callable[[Tensor], tuple[Tensor, Tensor]] | None = None

    @classmethod
    def of(cls, pair: Callable[[Tensor], tuple[Tensor, Tensor]]) -> "Divergence":
        """From one function that returns generator and slope."""
        return cls(generator=lambda u: pair(u)[0], slope=lambda u: pair(u)[1], pair=pair)

    def both(self, u: Tensor) -> tuple[Tensor, Tensor]:
        """Generator and slope, with their common work done once."""
        return (self.generator(u), self.slope(u)) if self.pair is None else self.pair(u)

    def value(self, log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """f(r)/r: its mean over tokens sampled from the student is D. Finite for every finite log-ratio."""
        u = log_ratio.double()
        return narrow(self.generator(u) * _exp(-u), log_ratio.dtype)

    def advantage(self, log_ratio: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
        """-(f'(r) - f'(1)): the policy-gradient weight, 0 where the two agree. Finite for every finite log-ratio."""
        u = log_ratio.double()
        return narrow(-self.slope(u) if self.weight is None else self.weight(u), log_ratio.dtype)

    def exact(
        self, student_logp: Float[Tensor, "*batch vocabulary"], reference_logp: Float[Tensor, "*batch vocabulary"]
    ) -> Float[Tensor, "*batch"]:
        """Σ_v reference_v · f(r_v) over the last axis, differentiable in `student_logp`; both are log-probabilities.

        Works in float64, holding a few times the input: the plain form, for small vocabularies and for tests. The
        form for large ones is `opd.objective.fused.exact`.

        Raises:
            ValueError: for a biased form, which exists on sampled tokens only.
        """
        if self.weight is not None:
            raise ValueError("a biased policy-gradient weight has no exact form: use it on sampled tokens")
        student, reference = (logp.double().clamp(min=FLOOR) for logp in (student_logp, reference_logp))
        total = (reference.exp() * self.generator(student - reference)).sum(-1)
        return narrow(total, torch.promote_types(student_logp.dtype, torch.float32))

    def clamped(self, limit: float | int) -> "Divergence":
        """The same divergence with log-ratios clamped to [-limit, limit]."""

        def pair(u: Tensor) -> tuple[Tensor, Tensor]:
            clamped = u.clamp(-limit, limit)
            generator, slope = self.both(clamped)
            return generator * _exp(u - clamped), slope

        weight = self.weight
        return replace(Divergence.of(pair), weight=weight and (lambda u: weight(u.clamp(-limit, limit))))

    def offset(self) -> float:
        """f'(1), the constant that `slope` leaves out: over a full distribution it adds nothing."""
        with torch.enable_grad():
            u = torch.zeros((), dtype=torch.float64, requires_grad=True)
            return float(torch.autograd.grad(self.generator(u), u)[0])

    def at(self, inside: Bool[Tensor, "batch time"], reference_entropy: Float[Tensor, "batch time"]) -> "Chosen":
        """The divergence of each token of a batch: this one everywhere."""
        return Chosen(((self, torch.ones_like(inside)),))


@dataclass(frozen=True)
class Chosen:
    """A divergence for each token of a batch: `parts` are divergences, each with the tokens that it is used on."""

    parts: tuple[tuple[Divergence, Bool[Tensor, "batch time"]], ...]

    def value(self, log_ratio: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
        return self._select(log_ratio, [d.value(log_ratio) for d, _ in self.parts])

    def advantage(self, log_ratio: Float[Tensor, "batch time"]) -> Float[Tensor, "batch time"]:
        return self._select(log_ratio, [d.advantage(log_ratio) for d, _ in self.parts])

    def clamped(self, limit: float | int | None) -> "Chosen":
        """The same with log-ratios clamped to [-limit, limit]; null leaves them as they are."""
        return self if limit is None else Chosen(tuple((d.clamped(limit), where) for d, where in self.parts))

    def rows(self, rows: slice) -> "Chosen":
        """The part for some rows of the batch."""
        return Chosen(tuple((divergence, where[rows]) for divergence, where in self.parts))

    def _select(self, log_ratio: Tensor, values: list[Tensor]) -> Tensor:
        selected = torch.zeros_like(log_ratio)
        for (_, where), part in zip(self.parts, values, strict=True):
            selected = torch.where(where, part, selected)
        return selected


@dataclass(frozen=True)
class Mixed:
    """One divergence on some tokens and another on the rest. `choose(inside, reference_entropy)` marks the first's."""

    first: Divergence
    second: Divergence
    choose: Callable[[Tensor, Tensor], Tensor]

    def at(self, inside: Bool[Tensor, "batch time"], reference_entropy: Float[Tensor, "batch time"]) -> Chosen:
        """Each token's divergence: `inside` is what the filter marks, the entropy (nats) is the reference's."""
        first = self.choose(inside, reference_entropy)
        return Chosen(((self.first, first), (self.second, ~first)))


def share_beyond(
    log_ratio: Float[Tensor, "batch time"], mask: Bool[Tensor, "batch time"], limit: float | int | None
) -> float:
    """The share of valid tokens whose log-ratio lies outside [-limit, limit]: what `clamped` changes; null nothing."""
    if limit is None:
        return 0.0
    return float(((log_ratio.abs() > limit) & mask).sum() / mask.sum().clamp(min=1))


def reverse_kl() -> Divergence:
    """KL(student || reference), f(r) = r log r; weight -log r, the k1 estimator. Mode seeking.
    Adventures Eq. 4.
    """
    return Divergence(generator=lambda u: u * _exp(u), slope=lambda u: u)


def forward_kl() -> Divergence:
    """KL(reference || student), f(r) = -log r; weight 1/r - 1. Mode covering, unbounded where the student misses.
    Adventures section 5.
    """
    return Divergence(generator=lambda u: -u, slope=lambda u: -_expm1(-u))


def jeffreys() -> Divergence:
    """Reverse plus forward KL, f(r) = (r - 1) log r; weight 1/r - 1 - log r.
    Adventures section 5.
    """
    return Divergence(generator=lambda u: u * _expm1(u), slope=lambda u: u - _expm1(-u))


def jensen_shannon() -> Divergence:
    """Mean KL to the midpoint, f(r) = (r log r - (r + 1) log((r + 1) / 2)) / 2; weight -log(2r / (1 + r)) / 2.
    Adventures section 5.

    Bounded: no token is rewarded without limit, nor punished beyond log(2) / 2.
    """

    def pair(u: Tensor) -> tuple[Tensor, Tensor]:
        slope = (logsigmoid(u) + math.log(2)) / 2
        return (_exp(u) + 1) * slope - u / 2, slope

    return Divergence.of(pair)


def generalized_jensen_shannon(*, beta: Annotated[float | int, Ge(0), Le(1)]) -> Divergence:
    """[β KL(reference || M) + (1-β) KL(student || M)] / (β (1-β)) with M = β reference + (1-β) student (GKD).

    The division makes it continuous in β: forward KL as β → 0, reverse KL as β → 1, and 4 times Jensen-Shannon at 1/2,
    where the undivided form fades to 0 at both ends.
    """

    def pair(u: Tensor) -> tuple[Tensor, Tensor]:
        # Of log(student / M) and log(M / reference) the smaller one by itself, and the other from it.
        smaller = -_mix(-u, beta)[0] if beta <= 0.5 else _mix(u, 1 - beta)[0]
        student, reference = (smaller, u - smaller) if beta <= 0.5 else (u - smaller, smaller)
        slope = -_expm1(-u) if beta == 0 else student / beta
        first = _expm1(u) if beta == 0 else _exp(u) * slope
        return first - (_expm1(u) if beta == 1 else reference / (1 - beta)), slope

    return Divergence.of(pair)


def hellinger() -> Divergence:
    """Squared Hellinger distance, f(r) = (sqrt(r) - 1)^2; weight r^-1/2 - 1, so no token is punished beyond -1.
    Adventures section 5.
    """
    return Divergence(generator=lambda u: _expm1(u / 2) ** 2, slope=lambda u: -_expm1(-u / 2))


def tsallis(*, alpha: Annotated[float | int, Gt(0)]) -> Divergence:
    """Tsallis, f(r) = (r^α - r) / (α - 1); weight α (1 - r^(α-1)) / (α - 1). α = 1/2 is Hellinger, α → 1 reverse KL.
    Adventures section 5.
    """
    if alpha == 1:
        return reverse_kl()
    return Divergence(
        generator=lambda u: _power_minus_one(u, alpha), slope=lambda u: alpha * _expm1((alpha - 1) * u) / (alpha - 1)
    )


def alpha_divergence(*, alpha: float | int) -> Divergence:
    """Amari's, f(r) = (r^α - α r + α - 1) / (α (α - 1)); weight (1 - r^(α-1)) / (α - 1).

    α → 0 is forward KL, 1/2 is 2 times squared Hellinger, α → 1 reverse KL, 2 half of χ². It falls and rises with
    Rényi's divergence of the same α, of which it is a monotone function.
    """
    if alpha == 0:
        return Divergence(generator=lambda u: _expm1(u) - u, slope=lambda u: -_expm1(-u))
    if alpha == 1:
        return Divergence(generator=lambda u: u * _exp(u) - _expm1(u), slope=lambda u: u)
    return Divergence(
        generator=lambda u: (
            (_power_minus_one(u, alpha) - _expm1(u)) / alpha
            if abs(alpha - 1) < 0.1
            else (_expm1(alpha * u) / alpha - _expm1(u)) / (alpha - 1)
        ),
        slope=lambda u: _expm1((alpha - 1) * u) / (alpha - 1),
    )


def skew_kl(*, alpha: Annotated[float | int, Ge(0), Lt(1)]) -> Divergence:
    """KL(student || α student + (1-α) reference), f(r) = r log(r / m), m = α r + 1 - α (DistiLLM's skew reverse KL).

    α = 0 is reverse KL; a larger α bounds the loss where the reference gives a token no chance, at -log α.
    """

    def pair(u: Tensor) -> tuple[Tensor, Tensor]:
        log_m, inverse = _mix(-u, 1 - alpha)
        return -log_m * _exp(u), -(log_m + alpha * inverse)

    return Divergence.of(pair)


def skew_forward_kl(*, alpha: Annotated[float | int, Ge(0), Lt(1)]) -> Divergence:
    """KL(reference || α reference + (1-α) student), f(r) = -log(α + (1-α) r) (DistiLLM's skew KL)."""

    def pair(u: Tensor) -> tuple[Tensor, Tensor]:
        log_m, inverse = _mix(u, 1 - alpha)
        return -log_m, -(1 - alpha) * inverse

    return Divergence.of(pair)


def total_variation() -> Divergence:
    """Half the sum of |student - reference|, f(r) = |r - 1| / 2; weight -sign(r - 1) / 2. Only the direction counts."""
    return Divergence(generator=lambda u: _expm1(u).abs() / 2, slope=lambda u: torch.sign(u) / 2)


def entropy_aware(*, threshold: Annotated[float | int, Ge(0)]) -> Mixed:
    """Forward KL on tokens where the reference's entropy is at least `threshold` nats, reverse KL on the others."""
    return Mixed(forward_kl(), reverse_kl(), choose=lambda _, entropy: entropy >= threshold)


def split(*, inside: Divergence, outside: Divergence) -> Mixed:
    """`inside` on the tokens that the filter marks (`filter=partition`), `outside` on the others (seed-000, idea 3)."""
    return Mixed(inside, outside, choose=lambda marked, _: marked)


def k3_naive() -> Divergence:
    """Biased, to reproduce a published failure: minus the k3 value 1/r - 1 + log r as the weight. Adventures Eq. 11."""
    return Divergence(reverse_kl().generator, reverse_kl().slope, weight=lambda u: -(_expm1(-u) + u))


def k2_naive() -> Divergence:
    """Biased, to reproduce a published failure: minus the k2 value (log r)² / 2 as the weight."""
    return Divergence(reverse_kl().generator, reverse_kl().slope, weight=lambda u: -(u**2) / 2)


def value_weighted(*, of: Divergence) -> Divergence:
    """Biased, to reproduce a published failure: minus the value f(r)/r of `of` as the weight. Adventures section 5."""
    return Divergence(of.generator, of.slope, weight=lambda u: -of.value(u))


def _mix(u: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """log m and 1/m - 1 of m = 1 - share + share · e^u, accurate near u = 0 and near share = 0 and 1."""
    if share <= 0.5:
        rise = share * _expm1(u)
        return torch.log1p(rise), -rise / (1 + rise)
    fall = _expm1(-u)
    rest = (1 - share) * fall
    return u + torch.log1p(rest), share * fall / (1 + rest)


def _power_minus_one(u: Tensor, alpha: float) -> Tensor:
    """(r^α - r) / (α - 1)."""
    if abs(alpha - 1) < 0.1:
        return _exp(u) * torch.expm1((alpha - 1) * u) / (alpha - 1)
    return (_exp(alpha * u) - _exp(u)) / (alpha - 1)


def _exp(x: Tensor) -> Tensor:
    """e^x, no larger than e^LIMIT, so that no product with it is infinite."""
    return torch.exp(x.clamp(max=limit(x.dtype)))


def _expm1(x: Tensor) -> Tensor:
    return torch.expm1(x.clamp(max=limit(x.dtype)))


def narrow(x: Tensor, dtype: torch.dtype) -> Tensor:
    """To `dtype`, with what is too large for it at its largest finite number: inf * 0 would be NaN."""
    largest = torch.finfo(dtype).max
    return x.clamp(-largest, largest).to(dtype)
