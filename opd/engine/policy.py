"""The student: scores of its own tokens, and the backward pass of a loss on those scores."""

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from opd.batch import Rollout, TokenScores
from opd.engine.forward import micro_batches, response_hidden, spread, token_index
from opd.objective.logp import backward_token_scores, token_scores


class Scorer:
    """A model that scores the tokens of a rollout at a temperature, never holding logits for more than a chunk."""

    def __init__(self, model: PreTrainedModel, *, micro_batch_tokens: int, logit_chunk: int, temperature: float):
        self.model = model
        self.micro_batch_tokens = micro_batch_tokens
        self.logit_chunk = logit_chunk
        self.temperature = temperature

    @torch.no_grad()
    def scores(self, rollout: Rollout, hidden: Tensor | None = None) -> TokenScores:
        """log π(token) and the entropy of π at each response token, both at the temperature; float32 on the CPU.

        `hidden`, [response token, width], is filled with the final hidden state behind each token, in order of
        `token_index`.
        """
        order = token_index(rollout.mask)
        flat = torch.zeros(2, int(rollout.mask.sum()))
        for micro in micro_batches(rollout, max_tokens=self.micro_batch_tokens):
            states = response_hidden(self.model, micro)
            where = order[micro.rows][micro.response]
            found = token_scores(
                states,
                self.head,
                micro.tokens.to(states.device),
                temperature=self.temperature,
                chunk_size=self.logit_chunk,
            )
            flat[:, where] = torch.stack(found).float().cpu()
            if hidden is not None:
                hidden[where] = states.to(hidden)
        return TokenScores(*(spread(numbers, rollout.mask) for numbers in flat))

    def empty_hidden(self, rollout: Rollout) -> Float[Tensor, "response_token width"]:
        """Room on the CPU for the hidden states of a rollout, in the model's precision."""
        return torch.empty(int(rollout.mask.sum()), self.head.shape[1], dtype=self.model.dtype)

    @property
    def head(self) -> Float[Tensor, "vocabulary width"]:
        """The output head; loading refused a model that has none."""
        return self.model.get_output_embeddings().weight  # pyright: ignore


class Policy(Scorer):
    """The student as a `Scorer` that also learns."""

    def backward(
        self,
        rollout: Rollout,
        grad_logp: Float[Tensor, "batch time"],
        grad_entropy: Float[Tensor, "batch time"] | None,
    ) -> None:
        """Adds to the parameters' gradients those of a loss with these derivatives by logp and entropy.

        The loss is a function of the whole batch's scores; splitting the batch here cannot change its normalisation.
        """
        for micro in micro_batches(rollout, max_tokens=self.micro_batch_tokens):
            hidden = response_hidden(self.model, micro)
            head = self.head
            grad_hidden, grad_head = backward_token_scores(
                hidden.detach(),
                head.detach(),
                micro.tokens.to(hidden.device),
                grad_logp[micro.rows][micro.response].to(hidden.device),
                None if grad_entropy is None else grad_entropy[micro.rows][micro.response].to(hidden.device),
                temperature=self.temperature,
                chunk_size=self.logit_chunk,
            )
            torch.autograd.backward([hidden, head], [grad_hidden, grad_head])
