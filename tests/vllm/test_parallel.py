"""vLLM over two ranks of a run, one model for both or one for each: on the CPU, with gloo."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from opd.records.run_dir import RunDir
from opd.train import run_dir, train
from tests.integration.conftest import composed
from tests.vllm.conftest import VLLM

RANK = """
from opd.model.sharded import Root
from opd.ranks import dist
from opd.rollout.vllm import VllmSampler
from tests.unit.rollout.families import PAD, PLAIN, STOPS, prompts
from tests.unit.rollout.test_sampler import reference_logp
from tests.vllm.models import build, scaled

ranks = dist.start(timeout=120)
own = slice(0, 2) if ranks.main else slice(2, None)  # of unequal number
for family in ("qwen3", "qwen3-tied"):
    model = build(family)
    sampler = VllmSampler(
        Root(model, ranks), stop_ids=STOPS, pad_id=PAD, dtype="float32", max_model_len=None, kv_cache_bytes=64 << 20,
        gpu_memory_utilization=None, max_num_seqs=64, enforce_eager=True, tensor_parallel_size=SIZE, sleep=True,
        max_logp_drift=1e-4,
    )
    for _ in range(2):
        rollout = sampler.sample(prompts()[own], PLAIN, key=(1,))
        assert len(rollout) == len(prompts()[own]) * PLAIN.num_samples
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert gap.max() < 1e-4, (family, float(gap.max()))
        assert 0 < sampler.drift < 1e-4
        scaled(model, 1.1)
        sampler.sync()
    sampler.close()
    ranks.gather(None)  # the trainer's group outlives the engine
"""


@pytest.mark.parametrize("size", [1, 2])
def test_ranks_sample_their_own_prompts_from_the_learner(size: int, tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK.replace("SIZE", str(size)))
    torchrun(str(script))


def test_a_run_on_two_ranks_is_that_of_one(small: list[str], tmp_path: Path):
    """One engine a rank, and one engine over both; the drift is measured over both."""
    common = [*small, *VLLM, "optim.lr=0.01", "rollout.max_logp_drift=1e-4", "num_steps=2", "evaluate.every=0"]
    found = {}
    for name, size in {"each": 1, "both": 2}.items():
        torchrun("-m", "opd.train", *common, f"rollout.tensor_parallel_size={size}", f"paths.outputs={tmp_path / name}")
        found[name] = RunDir(*(tmp_path / name / "main").glob("default-*"))
    config = composed([*common, f"paths.outputs={tmp_path / 'alone'}"])
    train(config)
    alone = run_dir(config)
    for folder in found.values():
        assert folder.status().state == "finished" and folder.manifest()["world_size"] == 2
        for several, one in zip(folder.metrics(), alone.metrics(), strict=True):
            assert several.keys() == one.keys()
            for key in one.keys() & {"grad_norm", "response/tokens", "divergence/reverse_kl", "evaluate/mean@2"}:
                assert several[key] == pytest.approx(one[key], rel=1e-3), (folder.path, several["step"], key)


def torchrun(*command: str) -> None:
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", *command],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
