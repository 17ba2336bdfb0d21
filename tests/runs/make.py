"""Runs as an earlier version left them: `python -m tests.runs.make NAME…` makes those that are not there.

They are kept so that no later version cuts its users off from their own: the ids stay, `config=FILE` repeats the
numbers, a checkpoint is gone on from. One is made anew only where a mended fault changes its numbers, in a commit that
does nothing else and says so.
"""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from opd.checkpoint.atomic import CHECKSUMS
from opd.records.run_dir import RunDir
from tests.random_models import save_random

HERE = Path(__file__).parent
MODELS, OUTPUTS, STUDY = "models", "outputs", "earlier"

ALIKE = [
    "student.model=models/student",
    "scale.teacher=models/large",
    "scale.ladder=[models/small,models/large]",
    f"study={STUDY}",
    "num_steps=2",
    "batch_size=4",
    "samples_per_prompt=2",
    "max_response_length=8",
    "evaluate.every=1",
    "evaluate.k=2",
    "evaluate.sources.arithmetic.num=3",
    "checkpoint.every=1",
    "prompts.source.num=8",
    "rollouts.every=0",
    "optim.lr=0.01",
]
SMALL = "{hidden_size: 8, num_layers: 1, num_heads: 1, num_kv_heads: 1, head_dim: 8, intermediate_size: 8}"
RUNS = {
    "plain": [],
    "filtered": [
        "filter=kl",
        "filter.p_min=30",
        "filter.p_max=90",
        "filter.exclude_special=true",
        "rollout_correction=icepop",
        "mini_batch_size=2",
        "clip={low: 0.2, high: 0.2}",
    ],
    "ensemble": ["teacher=ladder", "ensemble=soft_switch", "gamma=0.5", "whitening=group"],
    "adapters": ["lora=all_linear", "student.lora.rank=2", "support=topk", "divergence=skew_kl", "whitening=none"],
    "two_ranks": ["loss=sequence_mean", "rollout_correction=tis", "signal.entropy=0.01"],
    "from_recipe": [
        "student.model=sft:student",
        f"recipes.student.architecture={SMALL}",
        "recipes.student.steps=2",
        "recipes.student.warmup_steps=0",
        "recipes.student.batch_size=4",
    ],
}


def command(name: str) -> list[str]:
    """What makes the run `name`, in a folder that has `models`."""
    ranks = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"] if name == "two_ranks" else []
    return [sys.executable, *ranks, "-m", "opd.train", *ALIKE, f"name={name}", *RUNS[name]]


def folder(name: str) -> RunDir:
    """Where the run `name` lies."""
    (found,) = (HERE / OUTPUTS / STUDY).glob(f"{name}-*")
    return RunDir(found)


def make_models() -> None:
    """A random student and two random teachers, all of one vocabulary."""
    small = {"hidden_size": 8, "num_heads": 1, "init_std": 0.5}
    names = ("student", "small", "large")
    save_random(HERE / MODELS, {name: {**small, "intermediate_size": 8 * (1 + at)} for at, name in enumerate(names)})


def leave_machine_out(made: RunDir) -> None:
    """Removes the machine's name and the place of this folder from what a run left."""
    made.update_status(host="somewhere")
    (made.path / ".lock").unlink(missing_ok=True)
    for file in made.checkpoints.rglob("adapter_config.json"):
        file.write_text(file.read_text().replace(f"{HERE}/", ""))
        sums = json.loads((file.parent / CHECKSUMS).read_text())
        sums[file.name] = {"bytes": file.stat().st_size, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
        (file.parent / CHECKSUMS).write_text(json.dumps(sums, indent=1))


def main(names: list[str]) -> None:
    if not (HERE / MODELS).exists():
        make_models()
    for name in names:
        env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(HERE.parents[1])}
        subprocess.run(command(name), cwd=HERE, env=env, check=True)
        made = folder(name)
        leave_machine_out(made)
        for later in ("step_000002", "final"):  # a checkpoint to go on from is enough
            shutil.rmtree(made.checkpoints / later)


if __name__ == "__main__":
    main(sys.argv[1:] or list(RUNS))
