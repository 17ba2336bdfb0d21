"""Verdicts on runs whose scores are made up so that the right verdict is known."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
import yaml

from analysis.arm_details import ArmDetails
from analysis.claims import Verdict, verdicts
from analysis.contrasts import Bootstrap
from analysis.decisions import KINDS
from analysis.evidence import gather
from analysis.outcomes import MEASURES
from analysis.published import Claim, Published, Witness, published
from analysis.results import Results, analyse
from analysis.tables import differences
from opd.config.schema import CONF
from tests.unit.analysis.test_contrasts import records

REFERENCE = Path(__file__).parents[3].parent / "shared" / "reference" / "claims.yaml"
SOURCES = {"adventures", "nanochat", "thinking", "revisiting", "verl"}
BOOTSTRAP = Bootstrap(count=200, seed=0)


def claim(kind: str, **changes) -> Claim:
    plain = Claim(
        id="c", source="s", section="1", sweep="sweep", kind=kind, says="It is so.", arms=("a",), baseline=("mis",),
        score="mean", which="last", expected=None, effect=None, published="so", why="",
    )  # fmt: skip
    return replace(plain, **changes)


def results(
    levels: dict[str, float], *, seeds: int = 5, spread: float = 0.002, problems: int = 200, draw: int = 1
) -> Results:
    """Arms with these true scores. Seeds differ by `spread`, problems by much, and answers hardly at all."""
    rng = np.random.default_rng(draw)
    hard = rng.uniform(-0.2, 0.2, problems)
    hard -= hard.mean()
    return analyse(
        records(
            {
                (name, seed, 1, "x"): level + hard + rng.normal(0, spread) + rng.normal(0, 0.01, problems)
                for name, level in levels.items()
                for seed in range(seeds)
            }
        ),
        baseline=next(iter(levels)),
        bootstrap=BOOTSTRAP,
    )


def judged(found: Results, *claims: Claim) -> list[Verdict]:
    return verdicts(found, known=replace(published(), claims=claims))


def word(levels: dict[str, float], one: Claim, **design) -> str:
    (verdict,) = judged(results(levels, **design), one)
    return verdict.verdict


# ---- the list


def test_every_published_claim_is_there_once_with_its_source():
    ids = [one.id for one in published().claims]
    assert len(ids) == len(set(ids)) == 43
    if not REFERENCE.exists():
        pytest.skip(f"{REFERENCE} is not there")
    stated = {entry["id"]: entry for entry in yaml.safe_load(REFERENCE.read_text())["claims"]}
    assert ids == list(stated)
    for one in published().claims:
        entry = stated[one.id]
        assert one.source == entry["source"]
        if "metric" in entry and "@8" in entry["metric"]:
            assert entry["metric"] == f"{ {'mean': 'mean', 'best_resampled': 'best'}[one.score] }@8 {one.which}"
        if isinstance(entry.get("effect"), float):
            assert one.effect == entry["effect"]
        if "value" in entry and "baseline_value" in entry and one.effect is not None:
            share = 100 if entry["value"] < 1 else 1
            assert one.effect == pytest.approx(share * (entry["value"] - entry["baseline_value"]))
        if entry.get("kind") in ("stability", "monotone", "flat", "ranking", "argmax"):
            assert one.kind == entry["kind"]


def test_a_claim_is_decided_on_what_there_is():
    for one in published().claims:
        assert one.kind in KINDS and one.source in SOURCES and one.says.endswith(".") and one.published
        assert (one.which, one.score) in MEASURES
        assert (one.kind == "effect") <= bool(one.effect), one.id
        assert (one.kind == "direction") == (one.expected in ("above", "below")), one.id
        assert (one.kind in ("report only", "not run")) == bool(one.why), one.id
        assert one.witness is None or one.witness in published().witnesses
        assert (one.kind == "not run") == (one.sweep is None) == (not one.arms), one.id


def sweep_files() -> dict[str, dict]:
    files = (file for file in (CONF / "sweep").glob("*.yaml") if file.stem != "base")
    return {file.stem: yaml.safe_load(file.read_text())["sweep"] for file in files}


def test_the_arms_of_a_claim_are_experiments_of_the_sweep_that_names_it():
    sweeps = sweep_files()
    arms = {name: {arm for block in sweep["grid"] for arm in block["+experiment"]} for name, sweep in sweeps.items()}
    arms["everything"] = set.union(*arms.values())
    tested = [one for one in published().claims if one.sweep is not None]
    for one in tested:
        assert one.id in sweeps[str(one.sweep)]["claims"]
        assert {*one.arms, *one.baseline} <= arms[str(one.sweep)], one.id
        assert all((CONF / "experiment" / f"{arm}.yaml").exists() for arm in (*one.arms, *one.baseline)), one.id
    assert sorted(id for sweep in sweeps.values() for id in sweep["claims"]) == sorted(one.id for one in tested)


# ---- each kind, true, false and open


@pytest.mark.parametrize(
    ("one", "true", "false", "open_"),
    [
        (claim("direction", expected="above"), {"a": 0.56}, {"a": 0.44}, {"a": 0.5001}),
        (claim("direction", expected="below"), {"a": 0.44}, {"a": 0.56}, {"a": 0.5001}),
        (claim("effect", effect=1.3), {"a": 0.56}, {"a": 0.44}, {"a": 0.5001}),
        (claim("effect", effect=-1.6), {"a": 0.44}, {"a": 0.56}, {"a": 0.5001}),
        (claim("equivalence", effect=0.0), {"a": 0.5}, {"a": 0.56}, {"a": 0.51}),
        (claim("no worse"), {"a": 0.56}, {"a": 0.44}, {"a": 0.49}),
        (claim("stability"), {"a": 0.1}, {"a": 0.5}, {"a": 0.3334}),
        (claim("flat", arms=("a", "b")), {"a": 0.5, "b": 0.5}, {"a": 0.5, "b": 0.56}, {"a": 0.5, "b": 0.51}),
        (claim("monotone", arms=("a", "mis", "b")), {"a": 0.4, "b": 0.6}, {"a": 0.4, "b": 0.4}, {"a": 0.4, "b": 0.5}),
        (claim("argmax", arms=("mis",), baseline=("a", "b")), {"a": 0.4, "b": 0.4}, {"a": 0.4, "b": 0.6},
         {"a": 0.4, "b": 0.5}),
        (claim("ranking", arms=("mis", "a", "b")), {"a": 0.5, "b": 0.3}, {"a": 0.5, "b": 0.6}, {"a": 0.5, "b": 0.51}),
    ],
    ids=lambda value: value.kind if isinstance(value, Claim) else None,
)  # fmt: skip
def test_a_claim_is_reproduced_contradicted_or_open(one: Claim, true: dict, false: dict, open_: dict):
    found = [word({"mis": 0.5} | levels, one) for levels in (true, false, open_)]
    assert found == ["reproduced", "contradicted", "not settled"]


def test_values_are_percentage_points_and_the_interval_holds_the_true_difference():
    (verdict,) = judged(results({"mis": 0.5, "a": 0.55}), claim("effect", effect=1.3))
    assert verdict.value == pytest.approx(5, abs=0.3) and verdict.low < 5 < verdict.high
    assert (verdict.metric, verdict.seeds_needed) == ("mean@8 last", None)
    assert verdict.runs == tuple(f"{name}/{seed}" for name in ("a", "mis") for seed in range(5))


def test_claims_of_one_sweep_are_corrected_for_each_other_and_for_no_others():
    found, one = results({"mis": 0.5, "a": 0.5001}), claim("direction", expected="above")

    def width(*beside: Claim) -> float:
        verdict = judged(found, one, *beside)[0]
        return verdict.high - verdict.low

    assert width() == width(replace(one, id="d", sweep="another")) < width(replace(one, id="d"))


def test_a_claim_has_the_seeds_of_the_side_that_has_fewest():
    rng = np.random.default_rng(2)
    levels = {("mis", 0): 0.4, **{("a", seed): 0.6 for seed in range(4)}}
    made = {(name, seed, 1, "x"): level + rng.normal(0, 0.01, 100) for (name, seed), level in levels.items()}
    found = analyse(records(made), baseline="mis", bootstrap=BOOTSTRAP)
    (verdict,) = judged(found, claim("direction", expected="above"))
    assert verdict.verdict == "not settled" and verdict.note.startswith("mis ran with one seed")


def test_of_several_differences_the_one_that_decides_is_shown():
    best = claim("argmax", arms=("mis",), baseline=("a", "b"))
    (holds,) = judged(results({"mis": 0.5, "a": 0.3, "b": 0.48}), best)
    (fails,) = judged(results({"mis": 0.5, "a": 0.4, "b": 0.6}), best)
    assert holds.value == pytest.approx(2, abs=0.5) and "mis − b" in holds.note
    assert fails.value == pytest.approx(-10, abs=0.5) and "mis − b" in fails.note


def test_one_seed_settles_nothing():
    (verdict,) = judged(results({"mis": 0.5, "a": 0.9}, seeds=1), claim("direction", expected="above"))
    assert verdict.verdict == "not settled" and verdict.value == pytest.approx(40, abs=1)
    assert verdict.note == "a and mis ran with one seed, which says nothing about how seeds differ."


def test_scores_that_do_not_vary_settle_nothing():
    read = records(
        {(name, seed, 1, "x"): [score] * 30 for name, score in (("a", 0.0), ("mis", 1.0)) for seed in range(3)}
    )
    found = analyse(read, baseline="mis", bootstrap=BOOTSTRAP)
    (verdict,) = judged(found, claim("equivalence", effect=0.0))
    assert verdict.verdict == "not settled" and "does not vary" in verdict.note
    assert verdict.low < verdict.value == -100 < verdict.high


# ---- what cannot show


WITNESS = Witness("rollout_correction/abs_log_ratio", 0.01, "sampler and learner disagree")


@pytest.mark.parametrize(
    ("measured", "expected"),
    [(0.02, "reproduced"), (0.01, "reproduced"), (0.009, "cannot show here"), (math.nan, "cannot show here")],
)
def test_a_claim_is_judged_only_where_its_mechanism_is_at_work(measured: float, expected: str):
    found = results({"mis": 0.5, "a": 0.56, "b": 0.1})
    steps = [(f"{name}/{seed}", step, drift * measured) for name, drift in (("a", 1.5), ("mis", 0.5), ("b", 100.0))
             for seed in range(5) for step in (1, 2)]  # fmt: skip
    training = pd.DataFrame(steps, columns=["run", "step", WITNESS.metric])
    found = replace(found, records=replace(found.records, training=training))
    one = claim("direction", expected="above", witness="mismatch")
    (verdict,) = verdicts(found, known=replace(published(), claims=(one,), witnesses={"mismatch": WITNESS}))
    assert verdict.verdict == expected
    if expected == "cannot show here":
        said = "was not recorded" if math.isnan(measured) else "is 0.009"
        assert f"abs_log_ratio {said}, where 0.01 was asked for beforehand" in verdict.note and verdict.value is None


def test_the_same_runs_cannot_show_a_difference():
    levels = {("mis", 0): 0.5, ("mis", 1): 0.52, ("a", 0): 0.5, ("a", 1): 0.52}
    read = records({(*key, 1, "x"): level + np.linspace(-0.1, 0.1, 50) for key, level in levels.items()})
    found = analyse(read, baseline="mis", bootstrap=BOOTSTRAP)
    for kind in ("stability", "equivalence"):
        (verdict,) = judged(found, claim(kind))
        assert verdict.verdict == "cannot show here"
        assert verdict.note == "a and mis have the same results, number by number."
    row = found.differences.iloc[0]
    assert row["same"] and np.isnan(row["low"]) and np.isnan(row["p"])
    cells = [str(cell) for _, cells in differences(found).rows() for cell in cells]
    assert cells.count("same") == 8 and "0.0" not in " ".join(cells)


def test_baselines_that_are_the_same_runs_count_once():
    best = claim("argmax", arms=("mis",), baseline=("a", "b", "c"))
    found = results({"mis": 0.5, "a": 0.3, "c": 0.2})
    scores = found.records.scores
    copies = scores[scores["run"].str.startswith("a/")].assign(run=lambda rows: "b" + rows["run"].str[1:])
    runs = found.records.runs
    more = runs[runs["name"] == "a"].assign(run=lambda rows: "b" + rows["run"].str[1:], arm="b-hash", name="b")
    read = replace(found.records, scores=pd.concat([scores, copies]), runs=pd.concat([runs, more], ignore_index=True))
    found = analyse(read, baseline="mis", bootstrap=BOOTSTRAP)
    evidence = gather(best, found, published())
    assert [one.statement.baseline for one in evidence.findings] == ["a", "c"]
    (verdict,) = judged(found, best)
    assert verdict.verdict == "reproduced" and "The results of a and b are the same" in verdict.note


def test_what_a_world_was_built_for_is_not_judged_there():
    found = results({"mis": 0.5, "a": 0.56})
    details = {"a-hash": ArmDetails({"scale.name": "small"}, 1, None)}
    found = replace(found, records=replace(found.records, details=details))
    built, other = (claim("direction", expected="above", built_in=(scale,)) for scale in ("small", "tiny"))
    assert [judged(found, one)[0].verdict for one in (built, other)] == ["built in", "reproduced"]


def test_a_claim_without_its_runs_is_not_run_and_says_which():
    lone = results({"mis": 0.5, "a": 0.5})
    assert "run of b" in judged(lone, claim("direction", expected="above", arms=("b",)))[0].note
    unfinished = analyse(
        replace(lone.records, runs=lone.records.runs.assign(counted=lone.records.runs["name"] == "mis")),
        baseline="mis",
        bootstrap=BOOTSTRAP,
    )
    (verdict,) = judged(unfinished, claim("direction", expected="above"))
    assert (verdict.verdict, verdict.value) == ("not run", None)
    (verdict,) = judged(lone, claim("not run", arms=(), baseline=(), why="It cannot be run."))
    assert (verdict.verdict, verdict.note, verdict.runs) == ("not run", "It cannot be run.", ())


def test_the_default_run_stands_in_for_mis():
    assert word({"default": 0.5, "a": 0.56}, claim("direction", expected="above")) == "reproduced"


def test_a_report_only_claim_shows_its_largest_difference():
    one = claim("report only", arms=("a", "b"), why="Nothing was claimed.")
    (verdict,) = judged(results({"mis": 0.5, "a": 0.52, "b": 0.4}), one)
    assert verdict.verdict == "report only" and verdict.value == pytest.approx(-10, abs=0.5)


@pytest.mark.parametrize(("largest", "expected"), [(1e-6, "reproduced"), (0.02, "contradicted"), (math.nan, "not run")])
def test_a_student_that_is_its_own_teacher_is_judged_by_its_divergence(largest: float, expected: str):
    found = results({"self": 0.5, "mis": 0.5}, seeds=1)
    training = found.records.training.reindex(range(2)).assign(run="self/0", step=[1, 2])
    training["divergence/reverse_kl"] = [largest / 2, -largest]
    found = replace(found, records=replace(found.records, training=training))
    (verdict,) = judged(found, claim("identity", arms=("self",), baseline=()))
    assert verdict.verdict == expected


def test_a_collapse_is_described_by_the_runs_own_curves():
    rng = np.random.default_rng(0)
    means = {}
    for seed in range(3):
        for step, level in enumerate((0.3, 0.6, 0.05), start=1):
            means["a", seed, step, "x"] = level + rng.uniform(-0.04, 0.04, 60)
            means["mis", seed, step, "x"] = 0.5 + rng.uniform(-0.2, 0.2, 60)
    found = analyse(records(means), baseline="mis", bootstrap=BOOTSTRAP)
    (verdict,) = judged(found, claim("stability"))
    assert verdict.verdict == "reproduced"
    assert verdict.note.endswith("Of its 3 runs, 3 lost half of their best score, 0 had gradient norm spikes.")


# ---- many claims


def test_the_claims_of_a_sweep_are_corrected_together_and_of_two_sweeps_apart():
    found = results({"mis": 0.5, "a": 0.56})
    one = claim("direction", expected="above")
    (alone,) = judged(found, one)
    same = judged(found, *(replace(one, id=str(number)) for number in range(4)))
    apart = judged(found, one, replace(one, id="other", sweep="another"))
    assert "95 %" in alone.note and "98.8 %" in same[0].note and "95 %" in apart[1].note
    assert same[0].high - same[0].low > alone.high - alone.low == apart[1].high - apart[1].low


def test_more_seeds_are_asked_for_at_the_published_difference_and_would_settle_it():
    design = {"spread": 0.03, "seeds": 8}
    (verdict,) = judged(results({"mis": 0.5, "a": 0.5}, **design), claim("effect", effect=3.0))
    assert verdict.verdict == "not settled" and verdict.seeds_needed > 8
    assert f"{verdict.seeds_needed - 8} more, would settle the published difference" in verdict.note
    enough = {"spread": 0.03, "seeds": verdict.seeds_needed}
    found = [word({"mis": 0.5, "a": 0.53}, claim("effect", effect=3.0), **enough, draw=draw) for draw in range(20)]
    assert found.count("reproduced") >= 12, "16 of 20, and two standard deviations"


def test_any_of_several_differences_may_be_the_one_that_fails_and_all_must_hold():
    """What contradicts a claim of two differences has half of its α; what reproduces it has all of it."""
    best = claim("argmax", arms=("mis",), baseline=("a", "b"))
    fails, holds = results({"mis": 0.5, "a": 0.4, "b": 0.6}), results({"mis": 0.5, "a": 0.3, "b": 0.48})
    for found, word, level, divided in ((fails, "contradicted", "97.5 %", 2), (holds, "reproduced", "95 %", 1)):
        (verdict,) = judged(found, best)
        assert verdict.verdict == word and f"The {level} interval of mis − b " in verdict.note
        (_, one) = gather(best, found, replace(published(), claims=(best,))).findings
        assert one.statement.baseline == "b"
        ends = 100 * one.estimate.interval(1 - published().settings.error / divided)[:, 0]
        assert (verdict.low, verdict.high) == pytest.approx(tuple(ends))


def test_runs_of_the_same_seed_are_not_paired():
    """Which of its seeds an arm has does not matter, only how many."""
    rng, one = np.random.default_rng(0), claim("effect", effect=3.0)
    scores = {name: 0.5 + rng.normal(0, 0.03, (3, 1)) + rng.normal(0, 0.1, (3, 200)) for name in ("mis", "a")}
    means = {("mis", seed, 1, "x"): scores["mis"][seed] for seed in range(3)}
    means |= {("a", seed, 1, "x"): scores["a"][seed] for seed in range(3)}
    means |= {("b", seed + 5, 1, "x"): scores["a"][seed] for seed in range(3)}
    found = analyse(records(means), baseline="mis", bootstrap=BOOTSTRAP)
    same, others = (gather(replace(one, arms=(arm,)), found, published()).findings[0] for arm in ("a", "b"))
    assert vars(same.estimate) == vars(others.estimate) and same.seeds == others.seeds == 3
    by_seed = {name: each.mean(axis=1) for name, each in scores.items()}
    welch = scipy.stats.ttest_ind(by_seed["a"], by_seed["mis"], equal_var=False)
    assert same.estimate.df[0] == pytest.approx(welch.df)


def test_a_scale_has_a_margin_of_its_own():
    found = results({"mis": 0.5, "a": 0.5}, spread=0.005, seeds=5)
    settings = replace(published().settings, margin=0.1, margins={"small": 10.0})
    known = replace(published(), settings=settings, claims=(claim("equivalence"),))
    details = {f"{name}-hash": ArmDetails({"scale.name": "small"}, 1, None) for name in ("mis", "a")}
    small = replace(found, records=replace(found.records, details=details))
    assert [verdicts(one, known=known)[0].verdict for one in (found, small)] == ["not settled", "reproduced"]


def test_verdicts_do_not_depend_on_the_order_of_runs():
    found = results({"mis": 0.5, "a": 0.51, "b": 0.4})
    turned = replace(found, arms=found.arms[::-1])
    claims = [claim("effect", effect=1.0), claim("flat", id="d", arms=("a", "b"))]
    assert judged(found, *claims) == judged(turned, *claims)


def test_the_published_claims_of_no_runs_are_all_not_run():
    found = verdicts(results({"something": 0.5}))
    assert [verdict.claim.id for verdict in found] == [one.id for one in published().claims]
    assert {verdict.verdict for verdict in found} == {"not run"}


def test_published_is_the_file(tmp_path):
    assert isinstance(published(), Published) and published().same == {"mis": "default"}
