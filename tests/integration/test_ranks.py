"""A step over several ranks is the step of one: loss, metrics and weights, in float64."""

import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from opd.data.batch import Prompt, Rollout
from opd.records.run_dir import RunDir
from tests.forks import run_ranks
from tests.integration.conftest import composed
from tests.unit.small import rollout_of

METHODS = {
    "default": [],
    "filtered": ["filter=kl", "filter.denominator=kept", "whitening=group", "gamma=0.5", "loss=sequence_mean"],
    "ensemble": [
        "teacher=ladder",
        "ensemble=best_of",
        "shaping.baseline=batch",
        "whitening=none",
        "signal.entropy=0.1",
    ],
    "exact": ["support=full", "whitening=none", "teacher=ladder", "ensemble=arithmetic", "filter=exact_kl"],
    "updates": ["mini_batch_size=4", "clip.low=0.2", "clip.high=0.2", "signal.near_start=0.1"],
    "exact updates": ["support=topk", "whitening=none", "mini_batch_size=4", "signal.entropy=0.1"],
    "adapters": ["lora=all_linear", "student.lora.rank=4", "divergence=forward_kl"],
    "teacher in 8 bits": ["teacher.dtype=int8"],
    "one rank masked": ["filter.exclude_ids=[20,21,22,23]"],
}


SIZES = (1, 2, 4)
OF_FOUR = ("default", "exact updates", "one rank masked")  # four of them take their turns on two cores
COMMON = [
    "batch_size=8", "evaluate.benchmarks=[]", "optim.lr=0.01", "memory.micro_batch_tokens=40", "memory.logit_chunk=5",
]  # fmt: skip


class Scripted:
    """Responses that depend on the prompt alone, so that every world samples the same ones."""

    def sample(self, prompts: list[Prompt], sampling: Any, *, key: tuple[int, ...]) -> Rollout:
        rows, responses, groups = [], [], []
        for group, prompt in enumerate(prompts):
            generator = torch.Generator().manual_seed(hash((prompt.token_ids, key)) % 2**31)
            # Every other prompt answers with tokens that "one rank masked" leaves out.
            low, high = (20, 24) if sum(prompt.token_ids) % 2 else (11, 20)
            for _ in range(sampling.num_samples):
                length = int(torch.randint(1, 9, (), generator=generator))
                rows.append(list(prompt.token_ids))
                responses.append(torch.randint(low, high, (length,), generator=generator).tolist())
                groups.append(group)
        rollout = rollout_of(rows, responses)
        # Near what random models give a token, so that the rollout correction keeps some and drops some.
        logp = torch.full(rollout.tokens.shape, -4.2, dtype=torch.float64)
        return replace(rollout, group=torch.tensor(groups), rollout_logp=logp)

    def sync(self) -> None: ...

    def close(self) -> None: ...


def work(rank: int, size: int, port: int, small_run: list[str], folder: Path) -> None:
    """Two steps of each method on one rank; the main rank leaves their weights and metrics in `folder`."""
    os.environ.update(
        RANK=str(rank), WORLD_SIZE=str(size), LOCAL_RANK=str(rank), MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port)
    )
    torch.set_num_threads(1)
    from opd.model.lora import merged
    from opd.model.sharded import full_tensor
    from opd.ranks import dist
    from opd.step import assemble, loop
    from opd.teacher import load as teachers

    load = assemble.load_model
    assemble.load_model = teachers.load_model = lambda *args, **knobs: load(*args, **knobs).double()
    assemble.build_sampler = lambda *_: Scripted()
    ranks = dist.start(timeout=120.0)
    found = {}
    for name, overrides in METHODS.items():
        if size == 4 and name not in OF_FOUR:
            continue
        run = assemble.assemble(composed([*small_run, *COMMON, *overrides]), RunDir(folder / "run"), ranks)
        metrics = [loop.step(run, number) for number in (1, 2)]
        weights = {key: full_tensor(weight.detach()) for key, weight in run.policy.model.named_parameters()}
        weights |= {f"merged {key}": weight for key, weight in merged(run.policy.model)}
        found[name] = {"metrics": metrics, "weights": weights}
    if ranks.main:
        torch.save(found, folder / f"{size}.pt")
    dist.stop()


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def worlds(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[int, Any]:
    """World size → method → its metrics and final weights."""
    folder = tmp_path_factory.mktemp("worlds")
    for size in SIZES:
        run_ranks(work, (size, free_port(), small_run, folder), size)
    return {size: torch.load(folder / f"{size}.pt", weights_only=True) for size in SIZES}


@pytest.mark.parametrize(
    ("method", "size"), [*((method, 2) for method in METHODS), *((method, 4) for method in OF_FOUR)]
)
def test_any_number_of_ranks_makes_the_same_steps(method: str, size: int, worlds):
    ours, alone = worlds[size][method], worlds[1][method]
    for several, one in zip(ours["metrics"], alone["metrics"], strict=True):
        assert one["grad_norm"] > 0 and several.keys() == one.keys()
        assert several == pytest.approx(one, rel=1e-9, abs=1e-12, nan_ok=True)
    for name, weight in alone["weights"].items():
        torch.testing.assert_close(ours["weights"][name], weight, atol=1e-12, rtol=1e-12, msg=name)
