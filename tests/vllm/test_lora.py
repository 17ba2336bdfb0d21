"""Adapters in the real vLLM: merged in place while a run samples, and served from what a finished run leaves."""

from pathlib import Path

import pytest
import torch

from opd.checkpoint import store as checkpoint
from opd.config.schema import Lora
from opd.model import lora
from opd.model.optim import Optimizer
from opd.recipes.tokenizer import build_tokenizer
from opd.rollout.vllm_engine import preserve_process_state
from tests.unit.checkpoint.test_store import OPTIM
from tests.unit.rollout.families import PLAIN, prompts
from tests.unit.rollout.test_sampler import reference_logp
from tests.unit.small import ALONE
from tests.vllm.models import build, long_prompts


def learned(family: str):
    """A model with adapters that have learned something."""
    model = build(family)
    lora.add_adapters(model, Lora(rank=8, alpha=16.0, target_modules="all-linear"), seed=0)
    optimizer = Optimizer(model, OPTIM, num_steps=10)
    change(model, optimizer)
    return model, optimizer


def change(model, optimizer: Optimizer) -> None:
    for step in (1, 2):
        model(torch.tensor([[3, 4, 5, 6]])).logits.square().mean().backward()
        optimizer.step(step)


@pytest.mark.parametrize("family", ["qwen3", "qwen3-tied"])
def test_every_sync_merges_the_newest_adapters(family: str, start):
    model, optimizer = learned(family)
    ours = start(model)
    for step in range(2):
        rollout = ours.sample(long_prompts(), PLAIN, key=(1,))
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert gap.max() < 1e-4, step
        change(model, optimizer)
        ours.sync()


@pytest.mark.parametrize("served", ["merged", "adapter"])
def test_what_a_finished_run_leaves_is_served_with_the_learners_log_probs(served: str, tmp_path: Path, start):
    model, optimizer = learned("qwen3")
    build("qwen3").save_pretrained(tmp_path / "base")
    thing = checkpoint.Learned(model, str(tmp_path / "base"), build_tokenizer(), optimizer)
    checkpoint.final(thing, {}, ALONE)(tmp_path / "final", ALONE)
    rollout = start(model).sample(prompts(), PLAIN, key=(1,))  # whose tokens are then scored

    with preserve_process_state():
        from vllm import LLM, SamplingParams
        from vllm.lora.request import LoRARequest

        llm = LLM(
            str(tmp_path / ("final" if served == "merged" else "base")),
            dtype="float32",
            enforce_eager=True,
            max_model_len=256,
            max_num_seqs=8,
            kv_cache_memory_bytes=64 << 20,
            skip_tokenizer_init=True,
            enable_lora=served == "adapter",
            max_lora_rank=8,
        )
        llm.llm_engine.engine_core._finalizer.detach()
        request = LoRARequest("learned", 1, str(tmp_path / "final" / "adapter")) if served == "adapter" else None
        asked = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        expected = reference_logp(model, rollout, PLAIN)
        for row in range(len(rollout)):
            prompt = rollout.prompt[row][rollout.prompt_mask[row]].tolist()
            tokens = rollout.tokens[row][rollout.mask[row]].tolist()
            (output,) = llm.generate({"prompt_token_ids": prompt + tokens}, asked, lora_request=request, use_tqdm=False)
            found = [
                each[token].logprob for each, token in zip(output.prompt_logprobs[len(prompt) :], tokens, strict=True)
            ]
            torch.testing.assert_close(torch.tensor(found), expected[row][rollout.mask[row]], atol=1e-4, rtol=0)
