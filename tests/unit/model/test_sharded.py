"""The knobs of `compute`: what each leaves as it was, and what it changes, on one rank and on two."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.config.schema import Compute
from opd.data.batch import Rollout
from opd.errors import UserError
from opd.model import packed
from opd.model.policy import Policy
from opd.model.sharded import _check_compiler, full_tensor, layers, shard
from opd.ranks import dist
from opd.ranks.dist import Ranks
from tests.forks import run_ranks
from tests.integration.test_ranks import free_port
from tests.unit.small import ALONE, rollout_of, tiny_qwen3

PLAIN = Compute(
    dtype="float32", attention=None, activation_checkpointing=False, offload=False, compile=False, rank_timeout=60.0
)
KNOBS = {
    "plain": PLAIN,
    "activation_checkpointing": replace(PLAIN, activation_checkpointing=True),
    "compile": replace(PLAIN, compile=True),
    "compile and activation_checkpointing": replace(PLAIN, compile=True, activation_checkpointing=True),
    "bfloat16": replace(PLAIN, dtype="bfloat16"),
    "bfloat16 and activation_checkpointing": replace(PLAIN, dtype="bfloat16", activation_checkpointing=True),
}


def tried(knob: str, size: int) -> bool:
    """Compiling takes a while: once alone, once over ranks."""
    return {"compile": size == 1, "compile and activation_checkpointing": size == 2}.get(knob, True)


# Of each world size, the rows of the rollout that are learned, by name; ranks share them.
ROWS = {"all": [0, 1, 2, 3], "even": [0, 2], "odd": [1, 3]}


def responses(rows: list[int], ragged: bool) -> Rollout:
    """Of one length, so that a layer is compiled once, or of different ones."""
    tokens = torch.randint(2, 13, (4, 9), generator=torch.Generator().manual_seed(1)).tolist()
    return rollout_of([tokens[row][:3] for row in rows], [tokens[row][3 : 9 - row * ragged] for row in rows])


def learned(
    compute: Compute, ranks: Ranks, rows: list[int], *, ragged: bool = False, pack: bool = False
) -> dict[str, Any]:
    """Log-probs of this rank's share of the rows, and whole gradients of a loss on all of them."""
    model = tiny_qwen3(dtype=torch.float32)
    if pack:
        packed.enable(model)
        assert packed.enabled(model)
    root = shard(model, ranks, compute, learns=True)
    policy = Policy(root, ranks, micro_batch_tokens=1000, logit_chunk=64, temperature=1.0)
    mine, forwards = rows[ranks.rank :: ranks.size], []
    if not compute.compile:  # a hook would be compiled too
        for layer in layers(model):
            layer.mlp.register_forward_pre_hook(lambda *_: forwards.append(None))
    logp = policy.scores(responses(mine, ragged)).logp
    scored = len(forwards)
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(2))
    policy.backward(responses(mine, ragged), weight[mine][:, : logp.shape[1]], None)
    parameters = dict(model.named_parameters())
    return {
        "logp": logp,
        "gradients": {name: full_tensor(parameter.grad) for name, parameter in parameters.items()},
        "dtypes": sorted({str(tensor.dtype) for each in parameters.values() for tensor in (each, each.grad)}),
        "forwards": (scored, len(forwards) - scored),
    }


def work(rank: int, size: int, port: int, folder: Path) -> None:
    """All knobs on one rank of so many; each leaves its findings in `folder`."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    ranks = dist.start(timeout=120.0, group=True)
    found = {name: learned(compute, ranks, ROWS["all"]) for name, compute in KNOBS.items() if tried(name, size)}
    ragged = {"ragged": True, "pack": True}
    found["packed"] = learned(KNOBS["activation_checkpointing"], ranks, ROWS["all"], **ragged)
    if size == 1:
        found |= {rows: learned(KNOBS["bfloat16"], ranks, ROWS[rows]) for rows in ("even", "odd")}
    torch.save(found, folder / f"{size}_{rank}.pt")
    dist.stop()


@pytest.fixture(scope="module")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """World size → the main rank's findings under each knob."""
    folder = tmp_path_factory.mktemp("knobs")
    for size in (1, 2):
        run_ranks(work, (size, free_port(), folder), size)
    return {size: torch.load(folder / f"{size}_0.pt", weights_only=True) for size in (1, 2)}


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return learned(PLAIN, ALONE, ROWS["all"])


@pytest.mark.parametrize(
    ("knob", "size"), [(n, s) for n in KNOBS for s in (1, 2) if "bfloat16" not in n and tried(n, s)]
)
def test_in_float32_no_knob_changes_log_probs_or_gradients(knob: str, size: int, worlds, alone):
    found = worlds[size][knob]
    torch.testing.assert_close(found["logp"], alone["logp"][::size], atol=1e-6, rtol=1e-6)
    largest = float(max(gradient.abs().max() for gradient in alone["gradients"].values()))
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-6 * largest, rtol=0, msg=name)


@pytest.mark.parametrize("size", [1, 2])
def test_packed_rows_change_no_log_probs_or_gradients(size: int, worlds):
    found, alone = worlds[size]["packed"], learned(PLAIN, ALONE, ROWS["all"], ragged=True)
    mine = alone["logp"][::size]
    torch.testing.assert_close(found["logp"], mine[:, : found["logp"].shape[1]], atol=1e-6, rtol=1e-6)
    largest = float(max(gradient.abs().max() for gradient in alone["gradients"].values()))
    for name, gradient in alone["gradients"].items():
        torch.testing.assert_close(found["gradients"][name], gradient, atol=1e-6 * largest, rtol=0, msg=name)


@pytest.mark.parametrize("size", [1, 2])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_activations_made_anew_give_the_same_gradients_exactly(dtype: str, size: int, worlds):
    kept, anew = ("plain", "") if dtype == "float32" else ("bfloat16", "bfloat16 and ")
    kept, anew = worlds[size][kept], worlds[size][f"{anew}activation_checkpointing"]
    for name, gradient in kept["gradients"].items():
        assert torch.equal(anew["gradients"][name], gradient), name
    # Two layers: once each to score; once each in the forward pass, and in the backward pass once more.
    assert kept["forwards"] == (2, 2) and anew["forwards"] == (2, 4)


@pytest.mark.parametrize("size", [1, 2])
def test_bfloat16_is_for_products_alone(size: int, worlds, alone):
    found = worlds[size]["bfloat16"]
    assert found["dtypes"] == ["torch.float32"]
    error = (found["logp"] - alone["logp"][::size]).abs()
    assert 1e-4 < error.max() < 0.2 and error.mean() < 0.05


def test_gradients_of_bfloat16_products_are_summed_over_ranks_in_float32(worlds):
    even, odd = worlds[1]["even"]["gradients"], worlds[1]["odd"]["gradients"]
    rounded = []
    for name, both in worlds[2]["bfloat16"]["gradients"].items():
        total = even[name] + odd[name]
        torch.testing.assert_close(both, total, atol=1e-7, rtol=1e-6, msg=name)
        rounded.append((total.bfloat16().float() != total).flatten())
    assert torch.cat(rounded).float().mean() > 0.3, "bfloat16 could hold the sums too"


def test_offloading_is_refused_where_the_ranks_compute_on_the_cpu():
    with pytest.raises(UserError, match=r"compute\.offload=true: the ranks compute on the CPU"):
        shard(tiny_qwen3(), ALONE, replace(PLAIN, offload=True), learns=True)


def test_a_machine_that_cannot_compile_is_named(monkeypatch: pytest.MonkeyPatch):
    def compiler(*_: object) -> Any:
        raise RuntimeError("no C++ compiler\nTraceback …")

    monkeypatch.setattr(torch, "compile", compiler)
    _check_compiler.cache_clear()
    with pytest.raises(UserError, match=r"compute\.compile=true: torch cannot compile .*\(no C\+\+ compiler\); set"):
        shard(tiny_qwen3(), ALONE, replace(PLAIN, compile=True), learns=True)


@pytest.mark.parametrize("knob", ["activation_checkpointing", "compile"])
def test_a_model_without_layers_is_refused(knob: str):
    model = tiny_qwen3()
    model.model.layers = None
    with pytest.raises(UserError, match=f"compute.{knob}=true: Qwen3ForCausalLM has no list of layers"):
        shard(model, ALONE, replace(PLAIN, **{knob: True}), learns=True)
