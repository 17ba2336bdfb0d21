"""The report's tables of runs. Scores are in percent, differences in percentage points, lengths in tokens."""

from collections.abc import Mapping
from typing import Any

from analysis.arms import MARK, Arm
from analysis.evaluation import AVERAGE
from analysis.outcomes import GRADES, SHARES
from analysis.results import Results, rows_of
from analysis.table import Field, Table, table
from opd.printable import printable

_LONGEST = 80  # characters of what differs
MOST_RUNS_WITH_ANSWERS = 60  # of more runs, only the first of each config shows its answers
ByBenchmark = Mapping[tuple[str, str], list[dict[str, Any]]]


def run_tables(results: Results) -> list[Table]:
    """What the runs scored, the summary first."""
    return [make(results) for make in (summary, scores, differences, runs, answers, excluded)]


def summary(results: Results) -> Table:
    """One row an arm: its scores at the last step, averaged over benchmarks, and its differences to the baseline."""
    mean, best = results.label("mean"), results.label("best")
    contrasted, unsettled = not results.differences.empty, not all(arm.counted for arm in results.arms)
    unlike, several = (
        any(arm.asked for arm in results.arms),
        any(arm.differs for arm in results.arms if arm.role == "arm"),
    )
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        Field("before", "Before", "percent"),
        Field("mean_last", mean, "percent", interval=True),
        *([Field("mean_last_diff", f"Δ {mean}", "points", interval=True)] if contrasted else []),
        Field("best_last", best, "percent"),
        *([Field("best_last_diff", f"Δ {best}", "points")] if contrasted else []),
        Field("mean_max", f"max {mean}", "percent"),
        *([Field("state", "State")] if unsettled else []),
        *([Field("asked", f"{MARK} Asked")] if unlike else []),
        *([Field("differs", "Differs in")] if several else []),
    ]
    rows = [
        (
            arm,
            {
                **measures(results.estimated, arm, AVERAGE),
                **measures(results.contrasted, arm, AVERAGE, suffix="_diff"),
                "seeds": len(arm.used),
                "label": arm.marked,
                "asked": arm.asked or None,
                "differs": printable(arm.differs, limit=_LONGEST) if arm.role == "arm" and arm.differs else None,
                "state": state_of(results, arm),
                "before": 100 * results.before[arm.id] if arm.id in results.before else None,
            },
        )
        for arm in results.arms
    ]
    over = f"on {results.benchmarks[0]}" if len(results.benchmarks) == 1 else "averaged over the benchmarks"
    delta = f" Δ: points above {results.baseline.label}." if results.baseline and contrasted else ""
    note = (
        f"Percent at the last step {over}, with 95 % intervals. Before: {mean} before training.{delta} max {mean}: best"
        " over training, chosen on the test sets."
    )
    if unlike:
        note += f" {MARK}: asked otherwise than the others, with which its scores do not compare."
    if several:
        other = results.baseline.label if results.baseline else "most runs"
        note += f" Differs in: the keys whose values are not those of {other}."
    return table("summary", "Summary", note, fields, rows)


def scores(results: Results) -> Table:
    """One row an arm and benchmark: every score at the last step, and the best over training."""
    fields = [
        Field("label", "Run"),
        Field("benchmark", "Benchmark"),
        Field("k", "k", "number"),
        Field("seeds", "Seeds", "number"),
        Field("problems", "Problems", "number"),
        *(Field(f"{score}_last", results.label(score), "percent", interval=True) for score in GRADES),
        Field("truncated_last", results.label("truncated"), "percent"),
        Field("length_last", results.label("length"), "tokens"),
        *(Field(f"{score}_max", f"max {results.label(score)}", "percent", interval=True) for score in GRADES),
    ]
    rows = [
        (arm, {**measures(results.estimated, arm, benchmark), "benchmark": benchmark})
        for arm in results.arms
        for benchmark in benchmarks_of(results, results.estimated, arm)
    ]
    note = (
        f"Percent at the last step; length in tokens. {results.label('best_resampled')} is the expected best of k draws"
        " with replacement from the k answers, which veRL reports as best@k. max: at the step of training with the"
        " highest average over the benchmarks; chosen on the test sets, so it is optimistic."
    )
    return table("scores", "Scores on each benchmark", note, fields, rows)


def differences(results: Results) -> Table:
    """One row an arm that counts and benchmark: its scores minus the baseline's."""
    fields = [
        Field("label", "Run"),
        Field("benchmark", "Benchmark"),
        Field("seeds", "Seeds", "number"),
        Field("problems", "Problems", "number"),
        Field("drawn", "Interval over"),
        *(Field(f"{score}_last_diff", f"Δ {results.label(score)}", "points", interval=True) for score in GRADES),
        *(Field(f"{score}_max_diff", f"Δ max {results.label(score)}", "points", interval=True) for score in GRADES),
    ]
    rows = []
    for arm in results.arms:
        for benchmark in benchmarks_of(results, results.contrasted, arm):
            cells = measures(results.contrasted, arm, benchmark, suffix="_diff")
            own, other = cells["seeds"], cells["baseline_seeds"]
            seeds = f"{own} seeds each" if own == other else f"{own} and {other} seeds"
            drawn = "problems" if own == other == 1 else f"problems, {seeds}"
            rows.append((arm, {**cells, "benchmark": benchmark, "drawn": drawn}))
    name = results.baseline.label if results.baseline else "the baseline"
    note = (
        f"Percentage points, run minus {name}, on the same problems and each with seeds of its own, with 95 %"
        " intervals. An interval over problems alone says nothing about how seeds differ. Same: every score of"
        " every problem is the same."
    )
    return table("differences", f"Differences to {name}", note, fields, rows)


def runs(results: Results) -> Table:
    """One row a run: its state and its scores."""
    fields = [
        Field("label", "Run"),
        Field("seed", "Seed", "number"),
        Field("state", "State"),
        Field("step", "Step", "number"),
        Field("num_steps", "Steps", "number"),
        *(Field(f"{score}_last", results.label(score), "percent") for score in GRADES),
        Field("truncated_last", results.label("truncated"), "percent"),
        Field("length_last", results.label("length"), "tokens"),
        *(Field(f"{score}_max", f"max {results.label(score)}", "percent") for score in GRADES),
        Field("max_step", f"at step ({results.label('mean')})", "number"),
        Field("error", "Error"),
        Field("run", "Directory"),
    ]
    cells = {row["run"]: row for row in rows_of(results.records.runs)}
    for row in rows_of(results.outcomes[results.outcomes["benchmark"] == AVERAGE]):
        own = cells[row["run"]]
        own[f"{row['score']}_{row['which']}"] = _shown(row["score"], row["value"])
        if (row["which"], row["score"]) == ("max", "mean"):
            own["max_step"] = row["step"]
    note = (
        "Every run that could be read, seed by seed: percent at its last evaluation, averaged over the benchmarks; max:"
        " at its best evaluation, chosen on the test sets."
    )
    return table("runs", "Every run", note, fields, [(arm, cells[run]) for arm in results.arms for run in arm.runs])


def answers(results: Results) -> Table:
    """A few answers of each run's last evaluation; texts as far as they were recorded."""
    frame = results.records.answers
    texts = (Field("question", "Problem", "prose"), Field("response", "Response", "prose"))
    fields = [
        Field("label", "Run"),
        Field("seed", "Seed", "number"),
        Field("step", "Step", "number"),
        Field("benchmark", "Benchmark"),
        Field("problem", "Id"),
        *(field for field in texts if frame[field.key].notna().any()),
        Field("prediction", "Its answer"),
        Field("answer", "Right answer"),
        Field("verdict", "Verdict"),
    ]
    seeds = dict(zip(results.records.runs["run"], results.records.runs["seed"], strict=True))
    given: dict[str, list[dict[str, Any]]] = {}
    for row in rows_of(frame):
        verdict = "✓ correct" if row["correct"] else "✗ wrong"
        given.setdefault(row["run"], []).append({**row, "seed": seeds[row["run"]], "verdict": verdict})
    runs = 1 if len(results.records.runs) > MOST_RUNS_WITH_ANSWERS else None
    rows = [(arm, row) for arm in results.arms for run in arm.runs[:runs] for row in given.get(run, [])]
    whose = "each run's" if runs is None else "each config's first run's"
    note = (
        f"The first answer to the first problems of {whose} last evaluation, in the order of the record, not selected."
        " –: no answer could be extracted from the response. Of long texts the middle is left out (…); ↵ is a line"
        " break. Shows the runs selected above."
    )
    return table("answers", "Examples of answers", note, fields, rows)


def excluded(results: Results) -> Table:
    """The records that are left out, of which numbers, and why."""
    fields = [Field("run", "Run"), Field("left_out", "Left out"), Field("reason", "Reason")]
    note = "Damaged, unfinished, foreign or duplicate records: listed here, counted nowhere."
    return table("excluded", "Left out", note, fields, [(None, row) for row in rows_of(results.excluded)])


def measures(estimates: ByBenchmark, arm: Arm, benchmark: str, *, suffix: str = "") -> dict[str, Any]:
    """The cells of one arm and benchmark: `<score>_<which><suffix>` with its interval, k, seeds and problems."""
    cells: dict[str, Any] = {}
    for row in estimates.get((arm.id, benchmark), ()):
        key = f"{row['score']}_{row['which']}{suffix}"
        for end, name in (("value", key), ("low", f"{key}_low"), ("high", f"{key}_high")):
            cells[name] = None if row.get("same") else _shown(row["score"], row[end])
        names = ("seeds", "baseline_seeds", "problems", "same")
        cells |= {"k": row["k"] or None, **{name: row[name] for name in names if name in row}}
    return cells


def _shown(score: str, value: float) -> float:
    return 100 * value if score in SHARES else value


def benchmarks_of(results: Results, estimates: ByBenchmark, arm: Arm) -> list[str]:
    """The arm's benchmarks, preceded by their average where there are several."""
    own = [benchmark for benchmark in results.benchmarks if (arm.id, benchmark) in estimates]
    return [AVERAGE, *own] if len(own) > 1 else own


def state_of(results: Results, arm: Arm) -> str:
    """The state of the runs behind the arm's numbers; where they do not count, how far they came or what they lack."""
    if arm.counted:
        return "finished"
    frame = results.records.runs
    rows = rows_of(frame[frame["run"].isin(arm.used or arm.runs)])
    lacking = "finished, no last evaluation" if arm.used else "finished, no evaluation"
    states = {
        lacking if row["state"] == "finished" else f"{row['state']} {row['step']}/{row['num_steps']}" for row in rows
    }
    return ", ".join(sorted(states))
