"""The columns that are read from the records of a run."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Column:
    """One column of a frame: its name, which is the key in the record too, the record, and the type of its values.

    An `optional` one may be missing: from a record, and from the export of a study of an earlier version.
    """

    name: str
    source: str
    type: type
    optional: bool = False


RUN_COLUMNS = (
    Column("name", "config.yaml", str),
    Column("study", "config.yaml", str),
    Column("seed", "config.yaml", int),
    Column("state", "status.json", str),
    Column("step", "status.json", int),
    Column("num_steps", "status.json", int),
    Column("error", "status.json", str, optional=True),
)
TRAINING_COLUMNS = tuple(
    Column(name, "metrics.jsonl", float, optional=True)
    for name in (
        "divergence/reverse_kl",
        "entropy/student",
        "entropy/teacher",
        "grad_norm",
        "loss",
        "filter/kept",
        "rollout_correction/masked",
        "rollout_correction/log_ppl_drift",
        "rollout_correction/abs_log_ratio",
        "response/length",
        "response/truncated",
        "response/tokens",
        "time/step",
    )
)
