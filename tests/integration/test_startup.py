"""Help, and a refusal, come without what only a run needs: the time to import it is most of what they would take."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from opd.check.config import MODULES
from opd.config.schema import CONF

# Each takes longer to import than help may take; torch, transformers and datasets take many times as long.
HEAVY = {
    "datasets", "joblib", "math_verify", "matplotlib", "numpy", "optuna", "pandas", "peft", "plotly", "scipy",
    "submitit", "sympy", "tokenizers", "torch", "transformers", "wandb",
}  # fmt: skip

HELP = ["opd.train", "opd.evaluate", "opd.sft", "sweeps.submit", "sweeps.status", "analysis.report"]

# By what refuses it: Hydra, the schema, credentials, a method's knobs, the rules of combinations, the steps there are.
REFUSED = {
    "opd.train divergence.alpha=3": "divergence.alpha: there is no such key",
    "opd.train batch_size=3.5": "batch_size=3.5: should be a valid integer",
    "opd.train paths.data=https://me:hush@host": "paths.data: looks like an address with a user",
    "opd.train +divergence.alpha=3": "divergence.alpha: reverse_kl has no such knob",
    "opd.train filter=kl filter.p_min=101": "filter.p_min=101",
    "opd.train divergence=split filter=partition divergence.inside._target_=os.system": "only functions of",
    "opd.train rollout.dtype=int3": "rollout.dtype='int3'",
    "opd.train rollout=vllm rollout.max_num_seqs=0": "rollout.max_num_seqs=0",
    "opd.train teacher=ladder": "ensemble single takes exactly 1 teacher, not 3",
    "opd.train gamma=0.5 divergence=hellinger": "set gamma=0 and credit=reward_to_go",
    "opd.train batch_size=1000000": "the prompt set has only",
    "opd.evaluate model=sft:nope": "'sft:nope' names no recipe",
    "opd.evaluate run=/nowhere": "there is no such checkpoint",
    "sweeps.submit +sweep=gamma +divergence.alpha=3": "divergence.alpha: reverse_kl has no such knob",
}


def started(command: str, folder: Path) -> tuple[int, str, set[str]]:
    """Exit status, what was said, and the packages of what was imported."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", *command.split()], cwd=folder, capture_output=True, text=True
    )
    lines = done.stderr.splitlines()
    imported = {line.rpartition("|")[2].strip() for line in lines if line.startswith("import time:")}
    said = [line for line in lines if not line.startswith("import time:")]
    return done.returncode, "\n".join([done.stdout, *said]), {name.partition(".")[0] for name in imported}


@pytest.mark.parametrize("module", HELP)
def test_help_comes_without_what_a_run_needs(module: str, tmp_path: Path):
    status, said, imported = started(f"{module} --help", tmp_path)
    assert status == 0 and f"python -m {module}" in said
    listed = dict(line.strip().split(": ", 1) for line in said.splitlines() if re.match("  [a-z_]+: ", line))
    if module.startswith("opd."):
        assert not {"benchmark", "cluster", "recipe", "sweep"} & listed.keys() and "tiny" in listed["scale"]
    if module == "opd.train":
        assert set(MODULES) - {"problems"} <= listed.keys() and "hard_switch" in listed["experiment"]
    if module == "opd.evaluate":
        assert "step=" in said and all(file.stem in said for file in (CONF / "benchmark").glob("*.yaml"))
    assert not HEAVY & imported and "pathlib" in imported


@pytest.mark.parametrize("command", REFUSED)
def test_a_refusal_comes_without_what_a_run_needs(command: str, tmp_path: Path):
    status, said, imported = started(f"{command} paths.outputs={tmp_path}", tmp_path)
    assert status == 2 and REFUSED[command] in said and "hush" not in said and not list(tmp_path.iterdir())
    assert not HEAVY & imported and "pydantic" in imported
