"""What docs/results keeps of the records of a study, beside its report: `python -m docs.publish RUNS INTO`.

The frames of `analysis.load` as Parquet: runs.parquet has a row a run, training.parquet one a step, scores.parquet one
a problem of each evaluation, with the share of its answers that is right (`mean`) and whether most are (`maj`).
"""

import sys
from pathlib import Path

from analysis.load import load

# Which columns of a frame; None: all.
KEPT = {
    "runs": None,
    "training": None,
    "scores": ["run", "step", "benchmark", "problem", "k", "mean", "maj"],
}


def main(runs: Path, into: Path) -> None:
    """Writes the files, and says how large they are."""
    records = load(runs)
    into.mkdir(parents=True, exist_ok=True)
    for name, columns in KEPT.items():
        frame = getattr(records, name)
        frame = frame if columns is None else frame[columns]
        numbers = frame.select_dtypes("float64").columns
        file = into / f"{name}.parquet"
        frame.astype(dict.fromkeys(numbers, "float32")).to_parquet(file, compression="zstd", compression_level=19)
        print(f"{file}: {len(frame):,} rows, {file.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
