"""The sampler's copy: what is rounded, what stays tied, what follows the learner."""

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch.distributed import HashStore  # pyright: ignore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from opd.data.batch import Sampling
from opd.rollout.replica import ROUNDING, refresh, replicate
from tests.unit.rollout.families import build, prompts, sampler

# The values of the format, by its definition: sign, 4 bits of exponent with bias 7, 3 bits of mantissa.
MANTISSAS = np.arange(8) / 8
E4M3 = np.concatenate([MANTISSAS * 2.0**-6, *((1 + MANTISSAS) * 2.0**exponent for exponent in range(-6, 9))])
E4M3 = np.unique(np.concatenate([-E4M3[E4M3 <= 448], E4M3[E4M3 <= 448]]))


@pytest.mark.parametrize("output_axis", [0, 1])
def test_round_int8(output_axis: int):
    weight = (
        torch.randn(6, 400, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1, 1, 50, 0])[:, None]
    )
    if output_axis == 1:
        weight = weight.T
    channels, rounded = (
        each if output_axis == 0 else each.T for each in (weight, ROUNDING["int8"](weight, output_axis))
    )
    scale = channels.abs().amax(1) / 127
    for channel, result, step in zip(channels, rounded, scale, strict=True):
        if step == 0:
            assert (result == 0).all()
            continue
        levels = result / step
        torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
        assert levels.abs().max() <= 127 + 1e-4
        assert (result - channel).abs().max() <= step * 0.501
        assert 0.2 < (result - channel).pow(2).mean().sqrt() / step < 0.35, "uniform rounding error: step / sqrt(12)"


@pytest.mark.parametrize("output_axis", [0, 1])
@pytest.mark.parametrize(("name", "values"), [("float8", E4M3), ("int4", np.arange(-7.0, 8.0))])
def test_rounds_to_the_nearest_value_of_the_format(name: str, values: np.ndarray, output_axis: int):
    weight = (
        torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * torch.tensor([1e-3, 1, 1, 50, 0])[:, None]
    )
    rounded = ROUNDING[name](weight if output_axis == 0 else weight.T, output_axis)
    for channel, result in zip(weight, rounded if output_axis == 0 else rounded.T, strict=True):
        scale = float(channel.abs().max()) / values.max() or 1.0
        nearest = values[np.abs(channel.numpy()[:, None] / scale - values).argmin(1)] * scale
        np.testing.assert_allclose(result.numpy(), nearest, rtol=1e-5, atol=1e-12)


@pytest.mark.parametrize("dtype", ["bfloat16", "int8", "float8", "int4"])
def test_tied_weights_stay_tied_and_rotary_frequencies_exact(dtype):
    learner = build("qwen3-tied")
    replica = replicate(learner, dtype)
    refresh(replica, learner, dtype)
    assert replica.lm_head.weight is replica.model.embed_tokens.weight  # pyright: ignore
    assert not torch.equal(replica.lm_head.weight.float(), learner.lm_head.weight)  # pyright: ignore
    frequencies = [model.model.rotary_emb.inv_freq for model in (replica, learner)]  # pyright: ignore
    assert frequencies[0].dtype == torch.float32
    assert torch.equal(*frequencies)
    assert not any(weight.requires_grad for weight in replica.parameters())


@pytest.mark.parametrize("family", ["qwen3", "gpt2"])
def test_int8_rounds_by_output_channel(family: str):
    learner = build(family)
    replica = replicate(learner, "int8")
    refresh(replica, learner, "int8")
    weights = dict(replica.named_parameters())
    rounded = 0
    for name, weight in learner.named_parameters():
        if torch.equal(weights[name], weight):
            assert weight.ndim == 1 or "embed" in name or name.endswith("wpe.weight"), name
            continue
        rounded += 1
        axis = 1 if family == "gpt2" and "lm_head" not in name and "wte" not in name else 0
        torch.testing.assert_close(weights[name], ROUNDING["int8"](weight.detach(), axis), rtol=0, atol=0)
    assert rounded == (2 * 7 + 1 if family == "qwen3" else 2 * 4 + 1)


def test_float32_copy_of_low_precision_learner():
    learner = build().bfloat16()
    replica = replicate(learner, "float32")
    refresh(replica, learner, "float32")
    assert replica is not learner
    for ours, theirs in zip(replica.parameters(), learner.parameters(), strict=True):
        assert ours.dtype == torch.float32
        assert torch.equal(ours, theirs.float())


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_a_sharded_learner_is_gathered(dtype: str):
    whole, learner = build(), build()
    sampling = Sampling(num_samples=2, max_tokens=10, temperature=1.0, top_p=1.0, top_k=0)
    dist.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
    try:
        for layer in learner.model.layers:  # pyright: ignore
            fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
        fully_shard(learner, mesh=init_device_mesh("cpu", (1,)))
        assert isinstance(next(learner.parameters()), DTensor)
        ours, reference = sampler(learner, dtype), sampler(whole, dtype)
        for model in (learner, whole):
            with torch.no_grad():
                for weight in model.parameters():
                    weight.mul_(1.1)
        ours.sync()
        reference.sync()
        rollouts = [each.sample(prompts(), sampling, key=(1,)) for each in (ours, reference)]
        assert torch.equal(rollouts[0].tokens, rollouts[1].tokens)
        torch.testing.assert_close(rollouts[0].rollout_logp, rollouts[1].rollout_logp, rtol=0, atol=1e-6)
    finally:
        dist.destroy_process_group()
