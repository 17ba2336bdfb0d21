"""Outcomes, arms and their differences, on scores that are worked out by hand."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import scipy.stats

from analysis.arms import group_arms
from analysis.comparison import ProblemScores
from analysis.contrasts import contrasts, estimates
from analysis.evaluation import AVERAGE, SCORES
from analysis.load import RUN_COLUMNS, TRAINING_COLUMNS, Records, load
from analysis.outcomes import by_step, chosen_steps, outcomes
from analysis.stats.small import beta_binomial_interval
from tests.unit.analysis.fake_runs import Fake, write_run


def records(means: dict, *, k: int = 8, counted: bool = True) -> Records:
    """(name, seed, step, benchmark) → the mean@k of each problem. Every other score is the same number."""
    rows = []
    for (name, seed, step, benchmark), values in means.items():
        for number, value in enumerate(values):
            rows.append((f"{name}/{seed}", step, benchmark, f"p{number}", k, *[value] * len(SCORES)))
    runs = sorted({(name, seed) for name, seed, *_ in means})
    return Records(
        runs=pd.DataFrame(
            [
                (f"{name}/{seed}", f"{name}-hash", name, "study", seed, "finished", 9, 9, None, counted, True, True)
                for name, seed in runs
            ],
            columns=["run", "arm", *(c.name for c in RUN_COLUMNS), "counted", "last_known", "max_known"],
        ),
        training=pd.DataFrame(columns=["run", "step", *(c.name for c in TRAINING_COLUMNS)]),
        scores=pd.DataFrame(rows, columns=["run", "step", "benchmark", "problem", "k", *SCORES]),
        answers=pd.DataFrame(),
        excluded=pd.DataFrame(columns=["run", "left_out", "reason"]),
    )


def compared(read: Records, *, baseline: str = "default"):
    scored = by_step(read)
    arms, _ = group_arms(read.runs, list(scored["run"].unique()), baseline=baseline)
    steps, scores = chosen_steps(read, scored), ProblemScores.of(read.scores)
    differences, left_out = contrasts(arms, scores, steps)
    return estimates(arms, scores, steps), differences, left_out


def one(frame: pd.DataFrame, arm: str, *, benchmark: str = AVERAGE, score: str = "mean", which: str = "last") -> dict:
    rows = frame[
        (frame["arm"] == f"{arm}-hash")
        & (frame["benchmark"] == benchmark)
        & (frame["score"] == score)
        & (frame["which"] == which)
    ]
    (row,) = rows.to_dict("records")
    return row


# ---- outcomes


def test_average_over_benchmarks_is_not_weighted_by_their_size():
    read = records({("a", 0, 1, "small"): [1.0, 1.0], ("a", 0, 1, "large"): [0.0] * 8})
    scored = by_step(read).set_index("benchmark")
    assert scored["mean"].to_dict() == {AVERAGE: 0.5, "small": 1.0, "large": 0.0}
    assert scored["problems"].to_dict() == {AVERAGE: 10, "small": 2, "large": 8}
    assert scored.loc[AVERAGE, "k"] == 8


def test_average_over_benchmarks_of_unlike_k_has_no_k():
    eight, four = (records({("a", 0, 1, name): [1.0]}, k=k) for name, k in (("x", 8), ("y", 4)))
    read = replace(eight, scores=pd.concat([eight.scores, four.scores]))
    assert by_step(read).set_index("benchmark")["k"].to_dict() == {AVERAGE: 0, "x": 8, "y": 4}


def test_last_is_the_last_step_and_max_the_best_after_training_began():
    curve = {0: 0.9, 10: 0.2, 20: 0.6, 30: 0.6, 40: 0.4}
    read = records({("a", 0, step, "x"): [value] for step, value in curve.items()})
    steps = chosen_steps(read, by_step(read))
    assert steps["a/0", "last", "mean"] == 40
    assert steps["a/0", "max", "mean"] == 20  # not 0, which is before training; the earlier of equals
    assert ("a/0", "max", "length") not in steps


def test_model_that_was_not_trained_is_judged_where_it_was_evaluated():
    read = records({("teacher", 0, 0, "x"): [0.9]})
    assert set(chosen_steps(read, by_step(read)).values()) == {0}


def test_max_is_chosen_on_the_average_and_each_benchmark_follows():
    read = records(
        {
            ("a", 0, 1, "x"): [1.0], ("a", 0, 1, "y"): [0.0],
            ("a", 0, 2, "x"): [0.8], ("a", 0, 2, "y"): [0.8],
        }
    )  # fmt: skip
    scored = by_step(read)
    found = outcomes(scored, chosen_steps(read, scored))
    best = found[(found["which"] == "max") & (found["score"] == "mean")].set_index("benchmark")["value"]
    assert best.to_dict() == {AVERAGE: 0.8, "x": 0.8, "y": 0.8}


def test_unknown_last_or_max_is_missing_not_zero():
    read = records({("a", 0, 1, "x"): [1.0, 0.5]})
    read = replace(read, runs=read.runs.assign(max_known=False))
    found, _, _ = compared(read)
    assert np.isnan(one(found, "a", which="max")["value"]) and np.isnan(one(found, "a", which="max")["low"])
    assert one(found, "a")["value"] == 0.75


# ---- arms


def runs(*rows: tuple[str, str, int, bool]) -> pd.DataFrame:
    return pd.DataFrame(
        [(f"{arm}/{seed}", arm, name, seed, counted) for name, arm, seed, counted in rows],
        columns=["run", "arm", "name", "seed", "counted"],
    )


def test_arms_are_in_the_order_in_which_they_are_shown():
    frame = runs(
        ("teacher", "teacher-1", 0, True),
        ("b", "b-1", 0, True),
        ("a", "a-1", 0, True),
        ("default", "default-1", 0, True),
    )
    arms, why = group_arms(frame, list(frame["run"]), baseline="default")
    assert [(arm.label, arm.role) for arm in arms] == [
        ("default", "baseline"), ("a", "arm"), ("b", "arm"), ("teacher", "teacher"),
    ]  # fmt: skip
    assert why is None


def test_arm_uses_the_runs_that_count_and_only_without_one_the_others():
    frame = runs(("a", "a-1", 0, True), ("a", "a-1", 1, False), ("b", "b-1", 0, False), ("b", "b-1", 1, False))
    a, b = group_arms(frame, ["a-1/0", "a-1/1", "b-1/1"], baseline="a")[0]
    assert (a.used, a.counted, a.seeds) == (("a-1/0",), True, (0,))
    assert (b.used, b.counted, b.runs) == (("b-1/1",), False, ("b-1/0", "b-1/1"))


def test_name_of_two_configs_needs_its_hash():
    frame = runs(("default", "default-1", 0, True), ("default", "default-2", 0, True))
    arms, why = group_arms(frame, list(frame["run"]), baseline="default")
    assert {arm.label for arm in arms} == {"default-1", "default-2"} and {arm.role for arm in arms} == {"arm"}
    assert why == "several configs are named default; choose one: baseline=default-1 or baseline=default-2"
    arms, why = group_arms(frame, list(frame["run"]), baseline="default-2")
    assert (arms[0].id, arms[0].role, why) == ("default-2", "baseline", None)


def test_configs_of_one_name_are_called_by_what_differs_and_the_plain_one_is_the_baseline():
    rows = [("default", f"default-{at}", 0, True) for at in range(3)]
    configs = {"default-0": {"gamma": 0.0}, "default-1": {"gamma": 0.5}, "default-2": {"gamma": 0.0, "epochs": 2}}
    frame = runs(*rows)
    arms, why = group_arms(frame, list(frame["run"]), baseline="default", configs=configs)
    assert [(arm.label, arm.differs, arm.role) for arm in arms] == [
        ("default", "", "baseline"), ("default epochs=2", "epochs=2", "arm"), ("default gamma=0.5", "gamma=0.5", "arm"),
    ]  # fmt: skip
    assert why is None
    baseline = "default gamma=0.5"
    arms, why = group_arms(frame, list(frame["run"]), baseline=baseline, configs=configs)
    assert (arms[0].id, arms[0].label, why) == ("default-1", baseline, None)
    assert [(arm.label, arm.differs) for arm in arms[1:]] == [
        ("default", "gamma=0"), ("default epochs=2", "epochs=2 gamma=0"),
    ]  # fmt: skip
    arms, why = group_arms(runs(*rows[:2]), [], baseline="default", configs=configs)
    assert (
        why == "several configs are named default; choose one: baseline=default-0 (default gamma=0) or "
        "baseline=default-1 (default gamma=0.5)"
    )


def test_unfinished_run_is_no_baseline():
    frame = runs(("default", "default-1", 0, False), ("a", "a-1", 0, True))
    arms, why = group_arms(frame, list(frame["run"]), baseline="default")
    assert {arm.role for arm in arms} == {"arm"}
    assert why == "no finished and evaluated run is named default; choose another: baseline=NAME"


@pytest.mark.parametrize(("name", "role"), [("teacher", "teacher"), ("teacher-large", "teacher"), ("teachers", "arm")])
def test_teachers_are_known_by_name(name, role):
    frame = runs((name, "x-1", 0, True))
    assert group_arms(frame, ["x-1/0"], baseline="default")[0][0].role == role


# ---- estimates and differences


def test_difference_by_hand():
    found, differences, left_out = compared(
        records(
            {
                ("default", 0, 1, "x"): [0.0, 0.5, 1.0, 0.5], ("default", 0, 1, "y"): [0.5, 0.5],
                ("a", 0, 1, "x"): [0.5, 0.5, 1.0, 1.0], ("a", 0, 1, "y"): [0.0, 0.5],
            }
        )
    )  # fmt: skip
    assert one(found, "a")["value"] == 0.5 * (0.75 + 0.25)
    assert one(differences, "a", benchmark="x")["value"] == 0.25
    assert one(differences, "a", benchmark="y")["value"] == -0.25
    assert one(differences, "a")["value"] == 0
    assert (one(differences, "a")["problems"], one(differences, "a", benchmark="y")["problems"]) == (6, 2)
    assert left_out == []
    assert set(differences["arm"]) == {"a-hash"}


def test_same_gain_on_every_problem_is_sure():
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 5, 40) / 8
    read = records({("default", 0, 1, "x"): scores, ("a", 0, 1, "x"): scores + 0.25})
    found, differences, _ = compared(read)
    row = one(differences, "a")
    assert (row["value"], row["low"], row["high"]) == (0.25, 0.25, 0.25)
    assert one(found, "a")["high"] - one(found, "a")["low"] > 0.05  # by itself neither score is sure


def test_one_run_on_few_problems_has_exact_intervals_of_its_shares_and_several_runs_have_not():
    solved = [1.0] * 7 + [0.0] * 23
    one_run, _, _ = compared(records({("default", 0, 1, "x"): solved}))
    exact = scipy.stats.binomtest(7, 30).proportion_ci(0.95, "exact")
    best, mean = one(one_run, "default", score="best"), one(one_run, "default")
    assert (best["low"], best["high"]) == pytest.approx((exact.low, exact.high))
    assert (mean["low"], mean["high"]) == pytest.approx(
        beta_binomial_interval(np.array([8] * 7 + [0] * 23), 8, level=0.95)
    )
    runs, _, _ = compared(records({("default", seed, 1, "x"): solved for seed in range(5)}))
    reach = scipy.stats.t(4).ppf(0.975) * scipy.stats.sem(solved)
    assert (one(runs, "default")["low"], one(runs, "default")["high"]) == pytest.approx(
        (7 / 30 - reach, 7 / 30 + reach)
    )


def test_share_has_an_interval_of_shares():
    found, _, _ = compared(records({("default", seed, 1, "x"): [1.0] * 58 + [0.0, 0.5] for seed in range(2)}))
    assert one(found, "default")["high"] == 1 and one(found, "default", score="length")["high"] > 1


def test_p_of_a_difference_is_corrected_for_the_arms_that_are_compared():
    rng = np.random.default_rng(0)
    means = {(name, 0, 1, "x"): rng.random(60) for name in ("default", "a", "b", "c")}
    _, differences, _ = compared(records(means))
    p = {name: one(differences, name)["p"] for name in "abc"}
    base = means["default", 0, 1, "x"]
    assert p["a"] == pytest.approx(scipy.stats.ttest_rel(means["a", 0, 1, "x"], base).pvalue, rel=1e-4)
    first = min(p, key=lambda name: p[name])
    assert one(differences, first)["p_holm"] == pytest.approx(min(1, 3 * p[first]))
    expected = scipy.stats.false_discovery_control([p[name] for name in "abc"])
    assert [one(differences, name)["p_bh"] for name in "abc"] == pytest.approx(list(expected))


def test_chance_that_a_run_is_better_counts_pairs_of_runs():
    means = {("default", seed, 1, "x"): [level] * 3 for seed, level in enumerate((0.2, 0.5))}
    means |= {("a", seed, 1, "x"): [level] * 3 for seed, level in enumerate((0.5, 0.6))}
    _, differences, _ = compared(records(means))
    assert one(differences, "a")["prob_improvement"] == 3.5 / 4


def test_problem_of_one_side_only_stays_out_by_name():
    read = records({("default", 0, 1, "x"): [0.0, 0.0, 1.0], ("a", 0, 1, "x"): [1.0, 0.5]})
    _, differences, left_out = compared(read)
    assert one(differences, "a")["value"] == 0.75 and one(differences, "a")["problems"] == 2
    assert left_out == [("a", "the difference to default", "x: 1 problems were not answered by all runs")]


def test_benchmark_of_one_side_only_stays_out_by_name():
    read = records({("default", 0, 1, "x"): [0.0, 0.0], ("a", 0, 1, "x"): [1.0, 0.5], ("a", 0, 1, "y"): [1.0, 1.0]})
    found, differences, left_out = compared(read)
    assert one(differences, "a")["value"] == 0.75
    assert one(found, "a")["value"] == 0.875
    assert left_out == [("a", "the difference to default", "only a was evaluated on y")]


def test_unlike_k_is_not_compared():
    eight, four = records({("default", 0, 1, "x"): [0.0, 1.0]}), records({("a", 0, 1, "x"): [1.0, 1.0]}, k=4)
    both = {name: pd.concat([getattr(eight, name), getattr(four, name)]) for name in ("runs", "scores")}
    _, differences, left_out = compared(replace(eight, **both))
    assert differences.empty
    assert left_out == [("a", "the difference to default", "x: k is 4 and 8")]


def test_one_problem_has_no_interval():
    found, differences, _ = compared(records({("default", 0, 1, "x"): [0.5], ("a", 0, 1, "x"): [1.0]}))
    for row in (one(found, "a"), one(differences, "a")):
        assert row["value"] in (1.0, 0.5) and np.isnan(row["low"]) and np.isnan(row["high"])


def test_runs_of_the_same_seed_are_not_paired():
    rng = np.random.default_rng(0)
    fate = [rng.random(30), rng.random(30) + 0.3, rng.random(30) + 0.6]  # what a seed brings, to both arms alike
    means = {("default", seed, 1, "x"): fate[seed] for seed in range(3)}
    same = compared(records(means | {("a", seed, 1, "x"): fate[seed] + 0.1 for seed in range(3)}))[1]
    apart = compared(records(means | {("a", seed + 3, 1, "x"): fate[seed] + 0.1 for seed in range(3)}))[1]
    fewer = compared(records(means | {("a", seed, 1, "x"): fate[seed] + 0.1 for seed in range(2)}))[1]
    assert one(same, "a")["value"] == pytest.approx(0.1)
    assert one(same, "a")["high"] - one(same, "a")["low"] > 0.3
    assert one(same, "a") == one(apart, "a")
    expected = np.mean([*(fate[0] + 0.1), *(fate[1] + 0.1)]) - np.mean(fate)  # all seeds of both sides count
    assert one(fewer, "a")["value"] == pytest.approx(expected)
    assert (one(fewer, "a")["seeds"], one(fewer, "a")["baseline_seeds"]) == (2, 3)


def test_unfinished_arm_has_scores_and_no_difference():
    read = records({("default", 0, 1, "x"): [0.5, 0.5], ("a", 0, 1, "x"): [1.0, 0.0]})
    read = replace(read, runs=read.runs.assign(counted=read.runs["name"] == "default"))
    found, differences, _ = compared(read)
    assert one(found, "a")["value"] == 0.5
    assert differences.empty


def test_interval_does_not_depend_on_which_other_arms_there_are():
    rng = np.random.default_rng(0)
    means = {(name, 0, 1, "x"): rng.random(20) for name in ("default", "a", "b")}
    few = compared(records({key: means[key] for key in means if key[0] != "b"}))[1]
    many = compared(records(means))[1]
    assert one(few, "a") == one(many, "a")


def test_order_of_problems_in_a_record_does_not_matter(tmp_path):
    fake = Fake(num_steps=2, every=2, k=2, benchmarks={"x": 20, "y": 5})
    for root in ("straight", "turned"):
        write_run(tmp_path / root, fake)
        run = write_run(tmp_path / root, replace(fake, name="a"))
        if root == "turned":
            for step in run.evaluations():
                run.write_samples(step, run.samples(step)[::-1])
    straight, turned = (compared(load(tmp_path / root)) for root in ("straight", "turned"))
    pd.testing.assert_frame_equal(straight[0], turned[0])
    pd.testing.assert_frame_equal(straight[1], turned[1])
