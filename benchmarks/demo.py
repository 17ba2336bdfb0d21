"""The demo's figures: how far the student came, and where the time went. Reads what `make demo` left behind.

    python -m benchmarks.demo [runs=outputs/demo]

Exits 1 where a student ends below 90 % of its teacher's mean@8, or less than 85 % of a run's time went into the models.
"""

import sys
from pathlib import Path

from opd.cli import key_values
from opd.records.run_dir import RunDir, find_runs

# Stages of a step that are forward, backward and sampling; the rest of the clock is start-up, grading and records.
MODEL_STAGES = ("rollout", "teacher", "student", "backward", "optimizer")


def main(arguments: list[str]) -> int:
    """Prints a line a run; returns the exit status."""
    folder = Path(key_values(arguments, ["runs"]).get("runs", "outputs/demo"))
    runs = find_runs(folder)
    teacher = next(run for run in runs if run.config()["name"] == "teacher")
    top, good = score(teacher), True
    print(f"{'teacher':32} mean@8 {100 * top:5.1f} %")
    for run in runs:
        if run.path == teacher.path:
            continue
        start, end = score(run, first=True), score(run)
        share = model_share(run)
        good &= end >= 0.9 * top and share >= 0.85
        print(
            f"{run.path.name:32} mean@8 {100 * start:5.1f} % -> {100 * end:5.1f} %, {100 * end / top:5.1f} % of its "
            f"teacher's; {wall(run):5.0f} s, {100 * share:4.1f} % of them in the models"
        )
    return 0 if good else 1


def score(run: RunDir, *, first: bool = False) -> float:
    """mean@k of the run's first or last evaluation."""
    scores = [value for line in run.metrics() for key, value in line.items() if key.startswith("evaluate/mean@")]
    return scores[0 if first else -1]


def wall(run: RunDir) -> float:
    """Seconds from the first line of the loop to the last, evaluations included."""
    return run.metrics()[-1]["time"]


def model_share(run: RunDir) -> float:
    """Share of that time in which a model sampled, scored or learned."""
    stages = [f"time/{stage}" for stage in MODEL_STAGES] + ["time/sampling"]
    return sum(line.get(stage) or 0.0 for line in run.metrics() for stage in stages) / wall(run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
