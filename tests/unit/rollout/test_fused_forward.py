"""The lean forward against the model's own, with rows of several lengths that joined at several times."""

from functools import partial

import pytest
import torch
from transformers import Qwen3ForCausalLM

from opd.rollout.continuous import model_forward
from opd.rollout.fused_forward import LARGEST, FusedForward, can_fuse
from opd.rollout.kv_cache import SlotCache
from tests.unit.rollout.families import LEAN, build, double_norms


@pytest.fixture
def norms_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    double_norms(monkeypatch)


def read(forward, lengths: list[int], seed: int) -> tuple[SlotCache, torch.Tensor]:
    width, length = max(lengths), torch.tensor(lengths)
    tokens = torch.randint(0, 13, (len(lengths), width), generator=torch.Generator().manual_seed(seed))
    positions = (torch.arange(width) - (width - length)[:, None]).clamp(min=0)
    cache = SlotCache(len(lengths), width, torch.device("cpu"))
    cache.open(length, width)
    logits = forward(tokens, positions, cache)
    cache.advance(width)
    return cache, logits


@pytest.mark.parametrize("family", sorted(LEAN))
@pytest.mark.usefixtures("norms_in_float64")
@torch.inference_mode()
def test_lean_forward_is_the_models_own(family: str):
    model = build(family, torch.float64)
    forwards = [FusedForward(model, 60), partial(model_forward, model)]
    caches = [SlotCache(5, 50, torch.device("cpu")) for _ in forwards]
    generator = torch.Generator().manual_seed(0)
    joining = {0: ([7], [0, 0, 0]), 3: ([2, 4], [0, 1])}
    for number in range(25):
        for lengths, slots in [joining[number]] if number in joining else []:
            found = [read(forward, lengths, number) for forward in forwards]
            torch.testing.assert_close(found[0][1], found[1][1], rtol=0, atol=1e-10)
            for cache, (source, _) in zip(caches, found, strict=True):
                cache.append(source, torch.tensor(slots))
                cache.narrow(torch.arange(cache.window.rows))
        positions = caches[0].lengths()
        tokens = torch.randint(0, 13, positions.shape, generator=generator)
        lean, own = (
            forward(tokens[:, None], positions[:, None], cache) for forward, cache in zip(forwards, caches, strict=True)
        )
        torch.testing.assert_close(lean, own, rtol=0, atol=1e-10)
        for cache in caches:
            cache.advance(1)
    assert caches[0].lengths().tolist() == [32, 32, 32, 24, 26]
    assert caches[0].ragged


def test_fuses_only_known_models():
    class Changed(Qwen3ForCausalLM):
        """Might compute anything."""

    assert can_fuse(build("qwen3"))
    assert not can_fuse(Changed(build("qwen3").config))
    assert not can_fuse(build("qwen3", layer_types=["full_attention", "sliding_attention"], sliding_window=4))
    assert not can_fuse(build("qwen3", hidden_act="gelu"))
    assert not can_fuse(build("llama-rope-scaled"))
    assert not can_fuse(build("gpt2"))
    assert not can_fuse(build("qwen3").bfloat16())
    assert not can_fuse(type("Qwen3ForCausalLM", (Changed,), {"__module__": "elsewhere"})(build("qwen3").config))
    large = build("qwen3", vocab_size=LARGEST // 16, tie_word_embeddings=True)
    assert not can_fuse(large)
