"""What unit tests of models share: one rank, a model of 13 tokens, a rollout of given tokens."""

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from opd.data.batch import Rollout, pad
from opd.model.sharded import Root
from opd.ranks.dist import Ranks

ALONE = Ranks(rank=0, size=1, device=torch.device("cpu"), grouped=False)


def root(model) -> Root:
    """The model, unsharded."""
    return Root(model, ALONE)


def tiny_qwen3(vocab_size: int = 13, *, tie: bool = False, seed: int = 0, dtype: torch.dtype = torch.float64):
    """A Qwen3 with random weights that is far from uniform."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=vocab_size,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        max_position_embeddings=64,
        tie_word_embeddings=tie,
        initializer_range=0.5,
        pad_token_id=0,
        eos_token_id=1,
    )
    return Qwen3ForCausalLM(config).to(dtype).eval()


def rollout_of(prompts: list[list[int]], responses: list[list[int]]) -> Rollout:
    """A rollout of these token ids, one group a row."""
    prompt, prompt_mask = pad(prompts, 0, "left")
    tokens, mask = pad(responses, 0, "right")
    return Rollout(
        prompt=prompt,
        prompt_mask=prompt_mask,
        tokens=tokens,
        mask=mask,
        learned=mask,
        rollout_logp=torch.zeros(tokens.shape),
        group=torch.arange(len(prompts)),
        truncated=torch.zeros(len(prompts), dtype=torch.bool),
    )
