"""A made-up study of published arms, with the configs that they have, for tests only."""

from pathlib import Path
from typing import Any

import numpy as np

from opd.config.flat import nested
from tests.goldens import goldens
from tests.unit.analysis.fake_runs import HOSTILE, Fake, write_run

SCORES = {
    "mis": 0.8,
    "naive": 0.4,
    "tis": 0.7,
    "hellinger": 0.82,
    "naive_k3": 0.45,
    "hard_switch": 0.85,
    "kl_70_100": 0.81,
    "kl_0_30": 0.3,
    "temperature_0_5": 0.6,
    "temperature_1_2": 0.7,
    "two_epochs": 0.86,
    "teacher_smallest": 0.7,
}
BENCHMARKS = {"aime24": 8, "hmmt25": 6}


def write_published(root: Path, *, seeds: int = 2) -> None:
    """Each arm of `SCORES` with its seeds, rollouts of the first one, and a teacher."""
    for name, score in SCORES.items():
        config = nested(goldens("tiny")[name])
        config = {key: value for key, value in config.items() if key not in ("name", "study", "seed", "num_steps")}
        for seed in range(seeds):
            final = score + 0.02 * seed
            fake = Fake(name, seed=seed, num_steps=20, every=5, k=4, benchmarks=BENCHMARKS, final=final, config=config)
            run = write_run(root, fake)
            run.write_manifest({"world_size": 2})
            steps = [{**line, "time/step": 3.6, "response/tokens": 5000.0} for line in run.metrics()]
            run.metrics_file.unlink()
            for line in steps:
                run.append_metrics(line if line["step"] else {"step": 0, "time": 0.1})
            run.write_rollouts(20, rollouts(np.random.default_rng(seed)), "<!doctype html>")
    write_run(root, Fake("teacher-large", num_steps=0, final=0.9, k=4, benchmarks=BENCHMARKS))


def rollouts(rng: np.random.Generator, texts: list[str] | None = None) -> dict[str, Any]:
    """A record of rollouts: one response with these tokens."""
    texts = texts or ["12", " +", " 34", " =", "\n", " 46", ""]
    counts, _ = np.histogram(rng.normal(0.2, 0.8, 1000), 160, (-8, 8))
    return {
        "step": 20,
        "log_ratio": {"low": -8.0, "high": 8.0, "counts": counts.tolist(), "below": 1, "above": 2},
        "responses": [
            {
                "prompt_id": "p-0",
                "problem": "What is 12 + 34?" if len(texts) != len(HOSTILE) else HOSTILE[0],
                "tokens": texts,
                "advantage": [0.5, -1.0, None, *[0.25] * (len(texts) - 3)],
                "log_ratio": [-0.5, 1.0, None, *[-0.25] * (len(texts) - 3)],
                "learned": [True, True, True, False, *[True] * (len(texts) - 4)],
            }
        ],
    }


if __name__ == "__main__":
    import sys

    write_published(Path(sys.argv[1]))
