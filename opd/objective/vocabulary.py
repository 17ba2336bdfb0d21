"""One chunk of full distributions: a divergence and its derivative by the student's logits, in place.

    d D / d logits_v = p_v · (slope(u_v) - Σ_w p_w slope(u_w)),      p = student, u = student_logp - reference_logp

Each function takes log-probs of student and reference, [token, vocabulary], and leaves the derivative in the
reference's place. Rows are worked on a few at a time, so that what is made between stays in a CPU's cache.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from opd.objective.divergence import Divergence, limit
from opd.objective.logp import blocks
from opd.objective.support import Support

LogP = Float[Tensor, "token vocabulary"]
Numbers = dict[str, Float[Tensor, " token"]]


def full_divergence_(
    student: LogP, reference: LogP, divergence: Divergence, *, backward: bool, clamp: float | None
) -> Numbers:
    """D over the whole vocabulary. A log-ratio beyond what the precision can hold counts as the largest that it can."""
    largest = limit(student.dtype)
    numbers = {"divergence": student.new_empty(len(student))}
    if clamp is not None:
        numbers["clamped"] = student.new_empty(len(student))
    for block in blocks(student):
        log_p, log_q = student[block], reference[block]
        u = log_p - log_q
        low, high = u.aminmax()
        if max(-low, high) > largest:
            # The rarer of the two is raised, so that its product with an e^u clamped at the limit is still right.
            log_q = torch.maximum(log_q, log_p - largest)
            log_p = torch.maximum(log_p, log_q - largest)
            u = log_p - log_q
        generator, slope = divergence.both(u) if backward else (divergence.generator(u), None)
        numbers["divergence"][block] = torch.linalg.vecdot(torch.exp(log_q, out=reference[block]), generator)
        del generator  # what is freed before the next is made stays in the cache
        p = log_p.exp()
        if clamp is not None:
            numbers["clamped"][block] = (p * (u.abs() > clamp)).sum(-1)
        if slope is not None:
            mean = torch.linalg.vecdot(p, slope)[:, None]
            torch.mul(p, slope.sub_(mean), out=reference[block])
    return numbers


def topk_divergence_(
    student: LogP,
    reference: LogP,
    divergence: Divergence,
    support: Support,
    tokens: Int[Tensor, " token"] | None,
    *,
    backward: bool,
    clamp: float | None,
) -> Numbers:
    """D over the top K and its tail, the mass inside of student and reference, and the overlap of their top Ks."""
    ids, valid, overlap = support.choose(student, reference)
    log_p, log_q = student.gather(-1, ids), reference.gather(-1, ids)
    sampled, leaves = None, [log_p]
    if tokens is not None:
        here = tokens[:, None]
        log_p_token, log_q_token = student.gather(-1, here)[:, 0], reference.gather(-1, here)[:, 0]
        sampled = log_p_token, log_q_token, ((ids == here) & valid).any(-1)
        leaves.append(log_p_token)
    with torch.enable_grad():
        for leaf in leaves:
            leaf.requires_grad_()
        total = support.measure(divergence, log_p, log_q, valid, sampled)
        grads: list[Any] = list(torch.autograd.grad(total.sum(), leaves, allow_unused=True)) if backward else []
    log_p = log_p.detach()
    numbers = {
        "divergence": total.detach(),
        "student_mass": torch.where(valid, log_p.exp(), 0).sum(-1),
        "reference_mass": torch.where(valid, log_q.exp(), 0).sum(-1),
        "overlap": overlap.to(student.dtype),
    }
    if clamp is not None:
        numbers["clamped"] = torch.where(valid & ((log_p - log_q).abs() > clamp), log_p.exp(), 0).sum(-1)
    if backward:
        at_token = grads[1][:, None] if len(grads) > 1 and grads[1] is not None else None
        through = -grads[0].sum(-1, keepdim=True) - (0 if at_token is None else at_token)
        # A log-prob is a logit less the normaliser, and through the normaliser every token of the vocabulary acts.
        for block in blocks(student):
            torch.exp(student[block], out=reference[block]).mul_(through[block])
        reference.scatter_add_(-1, ids, grads[0])
        if tokens is not None and at_token is not None:
            reference.scatter_add_(-1, tokens[:, None], at_token)
    return numbers


def statistics(student: LogP, reference: LogP) -> Numbers:
    """Entropies of both (nats; the reference's once normalised) and the exact KL(student || reference)."""
    names = ("student_entropy", "reference_entropy", "reverse_kl")
    numbers = {name: student.new_empty(len(student)) for name in names}
    for block in blocks(student):
        log_p, log_q = student[block], reference[block]
        p, q = log_p.exp(), log_q.exp()
        mass = q.sum(-1)
        numbers["student_entropy"][block] = -torch.linalg.vecdot(p, log_p)
        numbers["reference_entropy"][block] = mass.log() - torch.linalg.vecdot(q, log_q) / mass
        numbers["reverse_kl"][block] = torch.linalg.vecdot(p, log_p - log_q)
    return numbers


def add_entropy_(
    gradient: LogP, student: LogP, weight: Float[Tensor, " token"], entropy_weight: Float[Tensor, " token"]
) -> None:
    """In place: gradient -> weight · gradient + entropy_weight · p · (log p + H), the derivative of -H added."""
    for block in blocks(student):
        log_p = student[block]
        p = log_p.exp()
        entropy = -torch.linalg.vecdot(p, log_p)[:, None]
        rise = (log_p + entropy).mul_(p).mul_(entropy_weight[block][:, None])
        gradient[block].mul_(weight[block][:, None]).add_(rise)
