"""Exact divergences from hidden states and output heads, forward and backward in one pass over chunks of tokens.

Never holds [tokens, vocabulary]: a chunk of student logits, one of reference logits, and the gradients. With one
teacher it costs four matrix products: student logits, teacher logits, and the gradients of hidden states and head.
Low-precision inputs accumulate in float32. Under FSDP call it where the heads are unsharded (inside the root's forward,
or with `head.full_tensor()`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.objective.divergence import Divergence
from opd.objective.head import Head, HeadGradient, accumulate
from opd.objective.logp import blocks, even, keep_freed_memory, log_softmax_
from opd.objective.mixture import Mixture
from opd.objective.support import Support
from opd.objective.table import Table
from opd.objective.vocabulary import add_entropy_, full_divergence_, statistics, topk_divergence_

PerToken = Float[Tensor, " token"]


@dataclass(frozen=True)
class Measured:
    """The results of one pass. All but `loss` are detached, one number a token, NaN where not requested."""

    loss: Float[Tensor, ""]  # Σ weight · D, differentiable in the student's hidden states and head
    divergence: PerToken
    student_logp: PerToken  # of the sampled token, as the next
    reference_logp: PerToken
    student_entropy: PerToken  # nats, of the full distribution, as the next
    reference_entropy: PerToken
    reverse_kl: PerToken  # exact, whatever the divergence: the score of the filter `exact_kl`
    clamped: PerToken  # the student's probability of a token whose log-ratio was clamped
    student_mass: PerToken  # inside the top K, as the next
    reference_mass: PerToken
    overlap: PerToken  # of the two sets of top K


def exact(
    hidden_student: Float[Tensor, "token width"],
    head_student: Head | Float[Tensor, "vocabulary width"],
    hidden_teacher: Float[Tensor, "token teacher_width"] | Sequence[Tensor],
    head_teacher: Head | Float[Tensor, "vocabulary teacher_width"] | Sequence[Head | Tensor],
    divergence: Divergence,
    **options: Any,
) -> tuple[Float[Tensor, ""], PerToken]:
    """Σ weight · D(student || reference) and D of each token, detached; `options` are those of `measure`."""
    measured = measure(hidden_student, head_student, hidden_teacher, head_teacher, divergence, **options)
    return measured.loss, measured.divergence


def measure(
    hidden_student: Float[Tensor, "token width"],
    head_student: Head | Float[Tensor, "vocabulary width"],
    hidden_teacher: Float[Tensor, "token teacher_width"] | Sequence[Tensor],
    head_teacher: Head | Float[Tensor, "vocabulary teacher_width"] | Sequence[Head | Tensor],
    divergence: Divergence,
    *,
    weight: PerToken | None = None,
    entropy_weight: PerToken | None = None,
    temperature: float | int = 1.0,
    teacher_temperature: float | int | None = None,
    mixture: Mixture | None = None,
    support: Support | None = None,
    tokens: Int[Tensor, " token"] | None = None,
    with_statistics: bool = False,
    clamp: float | int | None = None,
    chunk_size: int = 256,
    tables: Sequence[Table] = (),
) -> Measured:
    """Σ weight · D - Σ entropy_weight · H(student), D of each token, and the other requested numbers, in one pass.

    A token of weight 0 costs as much as another: leave out what is masked. Several teachers come as sequences, with
    the `mixture` that says what reference they make (weights [teacher], or [teacher, token]). `teacher_temperature`
    null is the student's. `support` null is the whole vocabulary. `tokens` requests log-probs of the sampled tokens
    (the tail "sampled" needs them), `with_statistics` for entropies and the exact reverse KL. `clamp` holds log-ratios
    within [-clamp, clamp]. Instead of hidden states and heads teachers may come as `tables`, which suffice for
    support=topk of=teacher.

    Extra memory: the head's gradient (kept in at least float32) and two chunks of chunk_size · vocabulary numbers;
    for several teachers three.

    Raises:
        ValueError: for heads of different vocabularies, several teachers without a mixture, a biased divergence, or a
            support that is not a sum over a vocabulary.
    """
    head = Head.of(head_student)
    hiddens, heads = _many(hidden_teacher), [Head.of(each) for each in _many(head_teacher)]
    if tables and (hiddens or heads):
        raise ValueError("teachers come as hidden states and heads, or as tables, not as both")
    if any(len(each) != len(head) for each in heads):
        sizes = ", ".join(str(len(each)) for each in heads)
        raise ValueError(f"student and teachers must share a vocabulary: {len(head)} tokens against {sizes}")
    if len(hiddens) != len(heads) or (mixture is None and len(heads or tables) > 1):
        raise ValueError("each teacher needs hidden states and a head, and several teachers a mixture")
    if divergence.weight is not None:
        raise ValueError("a biased policy-gradient weight has no exact form: use it on sampled tokens")
    if support is not None and support.kind == "sampled":
        raise ValueError("support=sampled is a policy gradient, not a sum over the vocabulary")
    work = _Work(
        divergence=divergence if clamp is None else divergence.clamped(clamp),
        hiddens=[hidden.detach() for hidden in hiddens],
        heads=[each.map(Tensor.detach) for each in heads],
        student=head.map(Tensor.detach),
        tables=tables,
        weight=torch.ones_like(hidden_student[:, 0]) if weight is None else weight.detach(),
        entropy_weight=entropy_weight,
        temperature=float(temperature),
        teacher_temperature=float(temperature if teacher_temperature is None else teacher_temperature),
        mixture=mixture if mixture is not None else Mixture(torch.ones(1, dtype=torch.float64), "probability"),
        support=support if support is not None and support.kind == "topk" else None,
        tokens=tokens,
        statistics=with_statistics,
        clamp=clamp,
        chunk_size=chunk_size,
    )
    loss, *numbers = _Exact.apply(hidden_student, head.weight, head.bias, work)  # pyright: ignore[reportGeneralTypeIssues]
    return Measured(loss, *numbers)


@dataclass
class _Work:
    divergence: Divergence
    hiddens: list[Tensor]
    heads: list[Head]
    student: Head
    tables: Sequence[Table]
    weight: Tensor
    entropy_weight: Tensor | None
    temperature: float
    teacher_temperature: float
    mixture: Mixture
    support: Support | None
    tokens: Tensor | None
    statistics: bool
    clamp: float | None
    chunk_size: int

    def teacher_(self, out: Tensor, index: int, rows: slice) -> None:
        """Fills `out` with the log-probs of teacher `index`."""
        if self.tables:
            self.tables[index].fill_(out, rows)
        else:
            _log_probs_(out, self.hiddens[index][rows], self.heads[index], self.teacher_temperature)


class _Exact(torch.autograd.Function):
    """The gradients are made in the forward pass, while the logits are there; backward only scales them."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, work: _Work) -> tuple[Tensor, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        out, grads = _run(hidden.detach(), work, any(ctx.needs_input_grad[:3]))
        ctx.save_for_backward(*grads)
        ctx.dtypes = hidden.dtype, weight.dtype, None if bias is None else bias.dtype
        loss = (out["divergence"] * work.weight.to(out["divergence"])).sum()
        if work.entropy_weight is not None:
            loss = loss - (out["student_entropy"] * work.entropy_weight.to(out["student_entropy"])).sum()
        numbers = tuple(out.values())
        ctx.mark_non_differentiable(*numbers)
        return loss, *numbers

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        scale, saved = grads[0], ctx.saved_tensors
        if scale != 1:
            saved = [grad * scale for grad in saved]
        given = [grad.to(dtype) for grad, dtype in zip(saved, ctx.dtypes, strict=False)]
        return *given, *[None] * (4 - len(given))


def _run(hidden: Tensor, work: _Work, backward: bool) -> tuple[dict[str, Tensor], list[Tensor]]:
    head, temperature = work.student, work.temperature
    dtype, num, size = accumulate(hidden.dtype), len(hidden), even(len(hidden), work.chunk_size)
    new: dict[str, Any] = {"dtype": dtype, "device": hidden.device}
    out = {name: torch.full((num,), torch.nan, **new) for name in list(Measured.__dataclass_fields__)[1:]}
    grad_hidden, of_head = torch.empty_like(hidden) if backward else hidden, HeadGradient(head) if backward else None
    keep_freed_memory()
    buffers = [torch.empty((size, len(head)), **new) for _ in range(2 if len(work.tables or work.heads) == 1 else 3)]
    for start in range(0, num, size):
        rows = slice(start, min(start + size, num))
        student, reference, *spare = (buffer[: rows.stop - start] for buffer in buffers)
        anchor = _log_probs_(student, hidden[rows], head, temperature)
        for name, numbers in _chunk(work, rows, student, reference, *spare, backward=backward).items():
            out[name][rows] = numbers
        if of_head is not None:
            weight = work.weight[rows].to(dtype)
            if work.entropy_weight is not None:
                add_entropy_(reference, student, weight, work.entropy_weight[rows].to(dtype))
                weight = torch.ones_like(weight)
            if anchor is not None:
                for block in blocks(reference):
                    reference[block].mul_(head.slope(student[block], anchor[block], temperature))
            grad_hidden[rows] = of_head.add_(reference, hidden[rows], weight[:, None] / temperature)
    return out, [] if of_head is None else [grad_hidden, *of_head.tensors]


def _chunk(
    work: _Work, rows: slice, student: Tensor, reference: Tensor, spare: Tensor | None = None, *, backward: bool
) -> dict[str, Tensor]:
    """The numbers of a chunk; the derivative by its logits is left in `reference`."""
    weights = work.mixture.weights.to(student)
    weights = weights[:, rows, None] if weights.ndim == 2 else weights[:, None, None].expand(-1, len(student), 1)
    needed = [index for index in range(len(weights)) if (weights[index] > 0).any()]
    numbers: dict[str, Tensor] = {}
    if work.mixture.space != "advantage" or spare is None:
        _reference_(work, rows, weights, needed, reference, spare)
        return _measured(work, rows, student, reference, backward)
    # Every teacher's divergence by itself, and their weighted mean.
    for count, index in enumerate(needed):
        target = reference if count == 0 else spare
        work.teacher_(target, index, rows)
        weight = weights[index]
        for name, values in _measured(work, rows, student, target, backward).items():
            part = torch.where(weight[:, 0] > 0, weight[:, 0] * values, 0)
            numbers[name] = part if count == 0 else numbers[name] + part
        target.mul_(weight).masked_fill_(weight == 0, 0)
        if count:
            reference.add_(spare)
    return numbers


def _reference_(
    work: _Work, rows: slice, weights: Tensor, needed: list[int], reference: Tensor, spare: Tensor | None
) -> None:
    """Fills `reference` with the log-probs of the reference that the teachers make."""
    probability = work.mixture.space == "probability"
    for count, index in enumerate(needed):
        target = reference if count == 0 or spare is None else spare
        work.teacher_(target, index, rows)
        weight = weights[index]
        if (weight != 1).any():
            target.add_(weight.log()) if probability else target.mul_(weight)
            target.masked_fill_(weight == 0, -torch.inf if probability else 0)
        if count:
            torch.logaddexp(reference, target, out=reference) if probability else reference.add_(target)
    if work.mixture.space == "log_normalized":
        for block in blocks(reference):
            log_softmax_(reference[block])


def _measured(work: _Work, rows: slice, student: Tensor, reference: Tensor, backward: bool) -> dict[str, Tensor]:
    numbers: dict[str, Tensor] = {}
    tokens = None if work.tokens is None else work.tokens[rows]
    if tokens is not None:
        numbers["student_logp"] = student.gather(-1, tokens[:, None])[:, 0]
        numbers["reference_logp"] = reference.gather(-1, tokens[:, None])[:, 0]
    if work.statistics or work.entropy_weight is not None:
        numbers |= statistics(student, reference)
    if work.support is None:
        return numbers | full_divergence_(student, reference, work.divergence, backward=backward, clamp=work.clamp)
    support, divergence = work.support, work.divergence
    return numbers | topk_divergence_(
        student, reference, divergence, support, tokens, backward=backward, clamp=work.clamp
    )


def _log_probs_(out: Tensor, hidden: Tensor, head: Head, temperature: float) -> Tensor | None:
    """Fills `out` with log-probs; returns what the head's slope needs of the logits."""
    head.logits_(out, hidden, temperature)
    anchor = head.anchor(out)
    for block in blocks(out):
        log_softmax_(out[block])
    return anchor


def _many(one_or_more: Any) -> list[Any]:
    return [one_or_more] if isinstance(one_or_more, Head | Tensor) else list(one_or_more)
