"""Knobs of memory and speed change nothing beyond rounding, on models that give them reason to: dropout, frequencies
that depend on the longest text, capped and sliding attention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.config.schema import Compute
from opd.data.batch import Rollout, Sampling
from opd.model import packed
from opd.model.policy import Policy
from opd.model.sharded import full_tensor, shard
from opd.ranks import dist
from opd.ranks.dist import Ranks
from tests.forks import run_ranks
from tests.integration.test_ranks import free_port
from tests.unit.rollout.families import build, double_norms, prompts, sampler
from tests.unit.small import ALONE, rollout_of

PLAIN = Compute(
    dtype="float32", attention=None, activation_checkpointing=False, offload=False, compile=False, rank_timeout=60.0
)
DROPOUT = {"attention_dropout": 0.5, "dropout": 0.5, "layerdrop": 0.5, "activation_dropout": 0.5}
MODELS: dict[str, dict[str, Any]] = {
    "qwen3": {"attention_dropout": 0.5},
    "gpt2": {"attn_pdrop": 0.5, "resid_pdrop": 0.5, "embd_pdrop": 0.5},
    "opt": DROPOUT,
    "phi3-longrope": {"resid_pdrop": 0.5},
    "llama-dynamic": {},
    "gemma3-dynamic": {},
    "gemma2-capped": {},
    "mistral-sliding": {},
}


@dataclass(frozen=True)
class Setting:
    """The exact knobs, and `pack`, which is no knob: rows without their padding, where a model allows it."""

    micro_batch_tokens: int = 10_000
    logit_chunk: int = 2048
    activation_checkpointing: bool = False
    pack: bool = False


KNOBS = {
    "memory.micro_batch_tokens, one row at a time": Setting(micro_batch_tokens=1),
    "memory.micro_batch_tokens, two or three rows": Setting(micro_batch_tokens=60),
    "memory.logit_chunk": Setting(logit_chunk=3),
    "compute.activation_checkpointing": Setting(activation_checkpointing=True),
    "packing": Setting(pack=True),
    "all": Setting(60, 3, True, True),
}
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-11}


def rollout() -> Rollout:
    """Rows far from one length: of the longest, dynamic frequencies are not those of the others."""
    draw = torch.Generator().manual_seed(3)
    tokens = torch.randint(2, 13, (6, 60), generator=draw).tolist()
    ends = [(3, 8), (1, 2), (5, 45), (2, 12), (4, 30), (1, 9)]
    return rollout_of(
        [row[:a] for row, (a, _) in zip(tokens, ends, strict=True)],
        [row[a:b] for row, (a, b) in zip(tokens, ends, strict=True)],
    )


def learned(family: str, dtype: torch.dtype, setting: Setting, ranks: Ranks = ALONE) -> dict[str, torch.Tensor]:
    """Log-probs and entropies of this rank's rows; gradients of a sum over all rows that weighs each number."""
    model = build(family, dtype, longest=64, **MODELS[family])
    if setting.pack:
        packed.enable(model)
    compute = replace(PLAIN, activation_checkpointing=setting.activation_checkpointing)
    knobs = {"micro_batch_tokens": setting.micro_batch_tokens, "logit_chunk": setting.logit_chunk}
    policy = Policy(shard(model, ranks, compute, learns=True), ranks, temperature=0.8, **knobs)
    whole = rollout()
    mine = torch.arange(ranks.rank, len(whole.mask), ranks.size)
    ours = Rollout(**{name: value[mine] for name, value in vars(whole).items()})
    weight = torch.randn(2, *whole.tokens.shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    weight = (weight * whole.mask)[:, mine].to(dtype)
    scores = policy.scores(ours)
    policy.backward(ours, weight[0], weight[1])
    gradients = {name: full_tensor(each.grad) for name, each in model.named_parameters() if each.grad is not None}
    return {"log-probs": scores.logp, "entropies": scores.entropy, **gradients}


def assert_close(found: Mapping[str, torch.Tensor], plain: Mapping[str, torch.Tensor], tolerance: float) -> None:
    assert found.keys() == plain.keys()
    scale = max(1.0, *(float(each.abs().max()) for each in plain.values()))
    for name, expected in plain.items():
        torch.testing.assert_close(found[name], expected, rtol=0, atol=tolerance * scale, msg=name)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[str, torch.dtype], dict[str, torch.Tensor]]:
    with pytest.MonkeyPatch.context() as patch:
        double_norms(patch)
        return {(family, dtype): learned(family, dtype, Setting()) for family in MODELS for dtype in TOLERANCE}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("knob", KNOBS)
@pytest.mark.parametrize("family", MODELS)
def test_an_exact_knob_changes_no_number(family: str, knob: str, dtype: torch.dtype, plain, monkeypatch):
    double_norms(monkeypatch)
    assert_close(learned(family, dtype, KNOBS[knob], ALONE), plain[family, dtype], TOLERANCE[dtype])


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """One rank of so many; each leaves what it computes of every model in `folder`."""
    import os

    world = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in world.items()})
    torch.set_num_threads(1)
    ranks = dist.start(timeout=120.0, group=True)
    setting = Setting(micro_batch_tokens=60, activation_checkpointing=True, pack=True)
    torch.save({family: learned(family, torch.float32, setting, ranks) for family in MODELS}, folder / f"{rank}.pt")
    dist.stop()


def test_the_number_of_ranks_changes_no_number(plain, tmp_path: Path):
    run_ranks(work, (2, free_port(), tmp_path), 2)
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for family in MODELS:
            expected = plain[family, torch.float32]
            own = {name: expected[name][rank::2] for name in ("log-probs", "entropies")}
            assert_close(found[family], {**expected, **own}, TOLERANCE[torch.float32])


@pytest.mark.parametrize("family", MODELS)
def test_the_samplers_batch_changes_no_token(family: str, monkeypatch):
    double_norms(monkeypatch)
    sampling = Sampling(num_samples=3, max_tokens=30, temperature=1.0, top_p=1.0, top_k=0)
    model = build(family, torch.float64, longest=64, **MODELS[family])
    whole = sampler(model).sample(prompts(), sampling, key=(1,))
    few = sampler(model, max_batch_tokens=150).sample(prompts(), sampling, key=(1,))
    assert torch.equal(few.tokens, whole.tokens)
    torch.testing.assert_close(few.rollout_logp, whole.rollout_logp, rtol=0, atol=1e-11)
    learner = Policy(
        shard(model, ALONE, PLAIN, learns=True), ALONE, micro_batch_tokens=90, logit_chunk=7, temperature=1.0
    )
    torch.testing.assert_close(learner.scores(whole).logp, whole.rollout_logp, rtol=0, atol=1e-6)
