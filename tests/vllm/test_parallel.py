"""One model over two ranks of a run, by vLLM's external launcher: on the CPU, with gloo."""

import os
import subprocess
import sys
from pathlib import Path

RANK = """
import torch
import torch.distributed

from opd.batch import Sampling
from opd.engine.vllm import VllmSampler
from tests.unit.engine.families import PAD, PLAIN, STOPS, prompts
from tests.unit.engine.test_rollout import reference_logp
from tests.vllm.models import build, scaled

torch.distributed.init_process_group("gloo")
for family in ("qwen3", "qwen3-tied"):
    model = build(family)
    sampler = VllmSampler(
        model, stop_ids=STOPS, pad_id=PAD, dtype="float32", max_model_len=None, kv_cache_bytes=64 << 20,
        gpu_memory_utilization=None, max_num_seqs=64, enforce_eager=True, tensor_parallel_size=2, sleep=True,
        max_logp_drift=1e-4,
    )
    for _ in range(2):
        rollout = sampler.sample(prompts(), PLAIN, key=(1,))
        gap = (rollout.rollout_logp - reference_logp(model, rollout, PLAIN))[rollout.mask].abs()
        assert gap.max() < 1e-4, (family, float(gap.max()))
        both = [torch.zeros_like(rollout.tokens) for _ in range(2)]
        torch.distributed.all_gather(both, rollout.tokens)
        assert torch.equal(both[0], both[1])
        scaled(model, 1.1)
        sampler.sync()
    sampler.close()
    torch.distributed.barrier()  # the trainer's group outlives the engine
"""


def test_two_ranks_hold_one_model_and_sample_alike(tmp_path: Path):
    script = tmp_path / "rank.py"
    script.write_text(RANK)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)],
        cwd=root, env=os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
