"""The cost of training an arm: device-hours and sampled tokens."""

from dataclasses import dataclass

from analysis.results import Results

COSTS = (("hours", "Device-hours"), ("tokens", "Sampled tokens, millions"))


@dataclass(frozen=True)
class Cost:
    """The mean over an arm's runs. NaN where a run did not record it at each of its steps.

    Attributes:
        hours: Σ over steps of `time/step`, times the ranks: one rank holds one device. Without evaluations.
        tokens: Σ over steps of `response/tokens`, in millions.
    """

    hours: float
    tokens: float


def costs(results: Results) -> dict[str, Cost]:
    """Arm → its cost, of arms whose runs took a step."""
    training = results.records.training
    steps = training[training["step"] > 0]
    spent = steps.groupby("run")[["time/step", "response/tokens"]].agg(lambda column: column.sum(skipna=False))
    by_arm = {}
    for arm in results.arms:
        own = spent.loc[[run for run in arm.used if run in spent.index]].mean(skipna=False)
        if len(arm.used) and own.notna().any():
            details = results.records.details.get(arm.id)
            seconds = float(own["time/step"]) * (details.ranks if details else 1)
            by_arm[arm.id] = Cost(seconds / 3600, float(own["response/tokens"]) / 1e6)
    return by_arm
