"""Twenty steps of two methods, number by number as they were when tests/golden/trajectory was written.

OPD_UPDATE_GOLDEN=1 rewrites those that changed; the difference then stands in the commit for a reader to judge. What is
sampled is scripted and the models compute in float64, so that rounding, which differs between machines, meets nothing
that makes much of it: weights that are shaken by 1e-6 of their size move no metric by more than a third of the
tolerance.
"""

import json
import os
from pathlib import Path

import pytest

from opd.train import run_dir, train
from tests.unit.step.scripted import config_of, script

GOLDEN = Path(__file__).parents[2] / "golden" / "trajectory"
METHODS = {
    "sampled": [
        "ensemble=soft_switch", "filter=kl", "filter.p_min=20", "filter.exclude_ids=[1]", "mini_batch_size=2",
        "clip.low=0.2", "clip.high=0.3", "loss=sequence_mean", "rollout_correction=tis", "gamma=0.5",
        "shaping.anchor=ANCHOR", "signal.near_start=0.1", "signal.reward=[1.0,0.0]",
        "shaping.reward_baseline=group", "signal.entropy=0.01", "optim.warmup_steps=3", "optim.schedule=cosine",
    ],
    "exact": [
        "ensemble=hard_switch", "support=topk", "divergence=jensen_shannon", "whitening=none", "filter=student_entropy",
        "filter.denominator=kept", "signal.entropy=0.01", "optim.weight_decay=0.1",
    ],
}  # fmt: skip
COST = ("time", "throughput/", "memory/")  # what a step took, and no number of the method
RELATIVE = 1e-4  # to the largest of its column


def columns(method: str, models: Path, outputs: Path, patch: pytest.MonkeyPatch) -> dict[str, list[float]]:
    """Each metric along the steps."""
    script(patch)
    given = [each.replace("ANCHOR", str(models / "anchor")) for each in METHODS[method]]
    common = ["num_steps=20", "epochs=3", "optim.lr=0.003", "evaluate.benchmarks=[]", f"paths.outputs={outputs}"]
    config = config_of(models, *common, *given)
    assert train(config).state == "finished"
    lines = run_dir(config).metrics()
    return {name: [line[name] for line in lines] for name in sorted(lines[0]) if not name.startswith(COST)}


def changed(found: dict[str, list[float]], expected: dict[str, list[float]]) -> list[str]:
    """The metrics that differ by more than rounding, or that only one of them has."""
    both = found.keys() & expected.keys()
    near = {
        name
        for name in both
        if found[name] == pytest.approx(expected[name], rel=0, abs=RELATIVE * max(map(abs, expected[name])))
    }
    return sorted((found.keys() | expected.keys()) - near)


@pytest.mark.parametrize("method", METHODS)
def test_twenty_step_trajectory(method: str, scripted_models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    found, file = columns(method, scripted_models, tmp_path, monkeypatch), GOLDEN / f"{method}.json"
    assert found["step"] == list(range(1, 21))
    expected = json.loads(file.read_text()) if file.exists() else {}
    if os.environ.get("OPD_UPDATE_GOLDEN") and changed(found, expected):
        lines = (f'"{name}": [{", ".join(f"{n:.6g}" for n in column)}]' for name, column in found.items())
        file.parent.mkdir(exist_ok=True)
        file.write_text("{\n" + ",\n".join(lines) + "\n}\n")
        expected = json.loads(file.read_text())
    differ = changed(found, expected)
    assert not differ, {name: (found.get(name), expected.get(name)) for name in differ}
