"""The student: scores its own tokens, and backpropagates a loss on those scores."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from opd.data.batch import Rollout, TokenScores
from opd.model.forward import MicroBatch, micro_batches, spread, token_index
from opd.model.head import output_head
from opd.model.sharded import Root, full_tensor
from opd.objective.head import Head, accumulate
from opd.objective.logp import backward_token_scores, token_scores
from opd.ranks.dist import Ranks


class Scorer:
    """A model that scores the tokens of a rollout at a temperature, with logits of one chunk at a time in memory."""

    def __init__(self, root: Root, ranks: Ranks, *, micro_batch_tokens: int, logit_chunk: int, temperature: float):
        self.root, self.ranks = root, ranks
        self.micro_batch_tokens = micro_batch_tokens
        self.logit_chunk = logit_chunk
        self.temperature = temperature

    @property
    def model(self) -> Any:
        return self.root.model

    @torch.no_grad()
    def scores(self, rollout: Rollout, hidden: Tensor | None = None) -> TokenScores:
        """log π(token) and the entropy of π at each response token, both at the temperature, on the CPU; in float32, or
        float64 for a float64 model.

        Fills `hidden`, [response token, width], with the final hidden state that predicts each token, in the order of
        `token_index`.
        """
        order = token_index(rollout.mask)
        flat = torch.zeros(2, int(rollout.mask.sum()), dtype=accumulate(self.dtype))
        for micro in self.micro_batches(rollout):
            where = order[micro.rows][micro.response]

            def score(states: Tensor, head: Head, micro: MicroBatch = micro) -> tuple[Tensor, Tensor, Tensor]:
                tokens = micro.tokens.to(states.device)
                knobs = {"temperature": self.temperature, "chunk_size": self.logit_chunk}
                return states, *token_scores(states, head, tokens, **knobs)

            states, *scores = self.root(micro, score)
            flat[:, where] = torch.stack(scores).to(flat)
            if hidden is not None:
                hidden[where] = states.to(hidden)
        return TokenScores(*(spread(numbers, rollout.mask) for numbers in flat))

    def micro_batches(self, rollout: Rollout) -> Iterator[MicroBatch]:
        """This rank's micro-batches, as many on every rank."""
        return micro_batches(rollout, max_tokens=self.micro_batch_tokens, agreed=self.ranks.max)

    def empty_hidden(self, rollout: Rollout) -> Float[Tensor, "response_token width"]:
        """An empty tensor on the CPU for the hidden states of a rollout, in the model's precision."""
        width = self.model.get_output_embeddings().weight.shape[1]
        return torch.empty(int(rollout.mask.sum()), width, dtype=self.dtype)

    @property
    def dtype(self) -> torch.dtype:
        """The precision of the weights."""
        return self.model.get_output_embeddings().weight.dtype

    def full_head(self) -> Head:
        """The full output head on this rank's device; all ranks must call this."""
        return output_head(self.model).map(lambda tensor: full_tensor(tensor.detach()).to(self.ranks.device))


class Policy(Scorer):
    """The student: a `Scorer` that also learns."""

    def backward(
        self,
        rollout: Rollout,
        grad_logp: Float[Tensor, "batch time"],
        grad_entropy: Float[Tensor, "batch time"] | None,
    ) -> None:
        """Accumulates the gradients of a loss with these derivatives with respect to logp and entropy.

        The loss is a function of the whole batch's scores; splitting the batch here cannot change its normalisation.
        """
        for micro in self.micro_batches(rollout):

            def loss(states: Tensor, head: Head, micro: MicroBatch = micro) -> Tensor:
                def chosen(grad: Tensor) -> Tensor:
                    return grad[micro.rows][micro.response].to(states.device)

                entropy = None if grad_entropy is None else chosen(grad_entropy)
                knobs = {"temperature": self.temperature, "chunk_size": self.logit_chunk}
                tokens = micro.tokens.to(states.device)
                given = head, tokens, chosen(grad_logp), entropy, knobs
                return _Scored.apply(states, head.weight, head.bias, *given)  # pyright: ignore

            self.learn(micro, loss)

    def learn(self, micro: MicroBatch, loss: Any) -> None:
        """Backpropagates `loss(hidden states, head)`, this rank's term of a sum over all ranks."""
        # FSDP averages gradients over the ranks.
        (self.root(micro, loss) * self.ranks.size).backward()


class _Scored(torch.autograd.Function):
    """A scalar with given derivatives with respect to the tokens' log-probs and entropies; its value is meaningless."""

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, head: Head, *rest: Any) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(hidden, weight, bias)
        ctx.form, ctx.rest = (head.scale, head.cap), rest
        return hidden.new_zeros((), dtype=torch.promote_types(hidden.dtype, torch.float32))

    @staticmethod
    def backward(ctx: Any, scale: Tensor) -> tuple[Any, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        hidden, weight, bias = ctx.saved_tensors
        tokens, grad_logp, grad_entropy, knobs = ctx.rest
        grad_entropy = None if grad_entropy is None else grad_entropy * scale
        head = Head(weight, bias, *ctx.form)
        grads = backward_token_scores(hidden, head, tokens, grad_logp * scale, grad_entropy, **knobs)
        of_bias = None if bias is None else grads[2].to(bias.dtype)
        return grads[0], grads[1].to(weight.dtype), of_bias, None, None, None, None, None
