"""The responses of a rollout while they are drawn, whatever makes the logits."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from opd.data.batch import Prompt, Sampling
from opd.rollout.token_sampling import sample_tokens, uniforms


@dataclass(frozen=True)
class Request:
    """What is asked of a way of sampling; a row is one response, `sampling.num_samples` neighbouring ones a prompt.

    At most `max_batch_tokens` tokens are cached at a time, counting each row at the longest it may become.
    """

    model: PreTrainedModel
    prompts: Sequence[Prompt]
    sampling: Sampling
    key: tuple[int, ...]
    stop_ids: Sequence[int]
    pad_id: int
    max_batch_tokens: int


class Draws:
    """What has been drawn for a request: `tokens`, -1 where there is none, and their log-probs as `sample_tokens` gives
    them, in at least float32. The place of a token is its index among all, row by row.
    """

    def __init__(self, request: Request):
        self.sampling, device = request.sampling, request.model.device
        number = torch.promote_types(next(request.model.parameters()).dtype, torch.float32)
        samples, longest = self.sampling.num_samples, self.sampling.max_tokens
        vocab_size = request.model.config.get_text_config().vocab_size
        uniform = uniforms(request.key, request.prompts, samples, longest, number, vocab_size)
        self.uniform = uniform.to(device).view(-1)
        self.stops = torch.tensor(request.stop_ids, device=device)
        self.tokens = torch.full(uniform.shape, -1, device=device)
        self.logp = torch.zeros(uniform.shape, dtype=number, device=device)

    def draw(
        self, logits: Float[Tensor, "branches vocab"], branch: Int[Tensor, " rows"], place: Int[Tensor, " rows"]
    ) -> tuple[Int[Tensor, " rows"], Bool[Tensor, " rows"]]:
        """Draws and stores the token at the `place` of each row, from the logits of its branch; → (the tokens, whether
        the row goes on). A row whose logits are not finite ends here too; whoever reads its log-prob refuses it.
        """
        token, logp = sample_tokens(logits, branch, self.uniform[place], self.sampling)
        self.tokens.view(-1)[place] = token
        self.logp.view(-1)[place] = logp.to(self.logp.dtype)
        last = (place + 1) % self.sampling.max_tokens == 0
        return token, (token[:, None] != self.stops).all(1) & ~last & logp.isfinite()
