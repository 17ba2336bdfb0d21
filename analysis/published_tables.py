"""The published tables: settings, the hyper-parameter explorer's numbers, the token filters, cost, and the verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.arms import Arm
from analysis.cells import Field, Table, table
from analysis.claims import Verdict
from analysis.costs import COSTS, Cost
from analysis.evaluation import AVERAGE
from analysis.figures.explorer import axes, shown
from analysis.results import Results, rows_of
from analysis.settings import SETTINGS
from analysis.tables import benchmarks_of, measures, own_tables


def all_tables(
    results: Results, *, members: Mapping[str, list[str]], costs: Mapping[str, Cost], verdicts: Sequence[Verdict]
) -> list[Table]:
    """Every table of the report: the verdicts, the summary, the published tables that have rows, and the rest.

    Where no published claim was run the verdicts come last.
    """
    published = [
        settings(results),
        hyperparameters(results, members),
        filters(results, members),
        cost_table(results, costs),
        ranking_table(results),
    ]
    first, *rest = own_tables(results)
    decided = [verdict_table(verdicts)] if verdicts else []
    others = [first, *(table for table in published if len(table.frame)), *rest]
    return [*decided, *others] if any(one.verdict != "not run" for one in verdicts) else [*others, *decided]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a published claim, those that the runs decided first."""
    fields = [
        Field("says", "Published claim"),
        Field("published", "Published"),
        Field("verdict", "Verdict"),
        Field("ours", "Here", "points", interval=True),
        Field("note", "Why"),
        Field("metric", "On"),
        Field("seeds_needed", "Seeds needed", "number"),
        Field("runs", "Runs", "number"),
        Field("source", "Source"),
        Field("id", "Claim"),
    ]
    rows = [
        {
            "says": verdict.says,
            "source": f"{verdict.source}, {verdict.section}" if verdict.section else verdict.source,
            "published": verdict.published,
            "ours": verdict.value,
            "ours_low": verdict.low,
            "ours_high": verdict.high,
            "verdict": verdict.verdict,
            "note": verdict.note,
            "seeds_needed": verdict.seeds_needed,
            "metric": verdict.metric,
            "id": verdict.id,
            "runs": len(verdict.runs),
        }
        for verdict in sorted(verdicts, key=lambda verdict: ORDER.index(verdict.verdict))
    ]
    counts = Counter(verdict.verdict for verdict in verdicts)
    counted = ", ".join(f"{counts[word]} {word}" for word in ORDER if counts[word])
    note = (
        f"{counted}. Here: the difference in points that decides the claim, with its interval, corrected for how many"
        " claims of its sweep are tested. Reproduced: it lies wholly where the claim has it. Contradicted: wholly"
        " elsewhere. Not settled: neither; seeds needed an arm would settle it four times in five."
    )
    return table("verdicts", "Published claims", note, fields, rows, [None] * len(rows))


ORDER = ("reproduced", "contradicted", "not settled", "report only", "not run")


def settings(results: Results) -> Table:
    """Table 1 of the adventures post beside what the baseline was set to."""
    baseline = results.baseline
    details = results.records.details.get(baseline.id) if baseline else None
    fields = [
        Field("group", "Part"),
        Field("setting", "Setting"),
        Field("published", "Published"),
        Field("here", "Here"),
        Field("key", "Key"),
    ]
    rows = [
        {
            "group": setting.group,
            "setting": setting.label,
            "published": setting.published,
            "here": _setting(details.config[setting.key]),
            "key": setting.key,
        }
        for setting in SETTINGS
        if details and setting.key in details.config
    ]
    label = baseline.label if baseline else ""
    note = f"What was published as the default, and what {label} was set to; the complete config is with each run."
    return table("settings", "Settings of the default", note, fields, rows, [None] * len(rows))


def hyperparameters(results: Results, members: Mapping[str, list[str]]) -> Table:
    """One row a hyper-parameter, value and benchmark."""
    mean, best = results.label("mean"), results.label("best")
    fields = [
        Field("label", "Run"),
        Field("axis", "Hyper-parameter"),
        Field("value", "Value"),
        Field("benchmark", "Benchmark"),
        Field("seeds", "Seeds", "number"),
        Field("mean_max", f"max {mean}", "percent", interval=True),
        Field("best_max", f"max {best}", "percent", interval=True),
        Field("mean_last", f"last {mean}", "percent", interval=True),
        Field("best_last", f"last {best}", "percent", interval=True),
    ]
    rows: list[dict[str, Any]] = []
    arms: list[Arm | None] = []
    for topic, values in axes(results, members):
        for value, arm in values:
            for benchmark in benchmarks_of(results, results.estimated, arm):
                own = {"axis": topic.title, "value": value, "benchmark": benchmark}
                rows.append({**measures(results.estimated, arm, benchmark), **own})
                arms.append(arm)
    note = "One hyper-parameter at a time, all else as in the default. max: chosen on the test sets, so it flatters."
    return table("hyperparameters", "Hyper-parameters, one at a time", note, fields, rows, arms)


def filters(results: Results, members: Mapping[str, list[str]]) -> Table:
    """Table 2 of the adventures post."""
    mean, best = results.label("mean"), results.label("best")
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        Field("mean_max", f"{mean} (max)", "percent", interval=True),
        Field("best_max", f"{best} (max)", "percent", interval=True),
        Field("mean_last", f"{mean} (last)", "percent", interval=True),
        Field("best_last", f"{best} (last)", "percent", interval=True),
        Field("kl", "Train KL (last)", "decimal"),
        Field("entropy", "Entropy (last)", "decimal"),
    ]
    training = results.records.training.sort_values(["run", "step"])
    last = training.groupby("run")[["divergence/reverse_kl", "entropy/student"]].last()
    rows, arms = [], []
    for arm in results.arms:
        if arm.id not in members.get("filter", ()):
            continue
        own = last.loc[[run for run in arm.used if run in last.index]].mean()
        rows.append(
            {
                **measures(results.estimated, arm, AVERAGE),
                "seeds": len(arm.used),
                "kl": float(own["divergence/reverse_kl"]),
                "entropy": float(own["entropy/student"]),
            }
        )
        arms.append(arm)
    note = (
        "Percent, averaged over the benchmarks, at the best step (chosen on the test sets, so it flatters) and at the"
        " last one; train KL and the student's entropy at the last step, nats a token."
    )
    return table("filters", "Token filters", note, fields, rows, arms)


def cost_table(results: Results, costs: Mapping[str, Cost]) -> Table:
    """What an arm's runs took on average, beside what they scored."""
    mean = results.label("mean")
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        *(Field(kind, title, "decimal") for kind, title in COSTS),
        Field("mean_last", f"last {mean}", "percent", interval=True),
        Field("mean_max", f"max {mean}", "percent", interval=True),
    ]
    own = [arm for arm in results.arms if arm.id in costs and arm.role != "teacher"]
    rows = [{**measures(results.estimated, arm, AVERAGE), "seeds": len(arm.used), **vars(costs[arm.id])} for arm in own]
    note = "The mean over an arm's runs: hours of all devices together, without evaluations, and tokens sampled."
    return table("costs", "Cost", note, fields, rows, own)


def ranking_table(results: Results) -> Table:
    """The settled arms by their score at the last step, each with the interval of its rank."""
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        Field("rank", "Rank", "number", interval=True),
        Field("best", "Best in", "percent"),
        Field("mean_last", f"last {results.label('mean')}", "percent", interval=True),
    ]
    arms = {arm.id: arm for arm in results.arms}
    shown = [row for row in rows_of(results.ranking) if (row["score"], row["which"]) == ("mean", "last")]
    rows = [
        {
            **measures(results.estimated, arms[row["arm"]], AVERAGE),
            "rank": row["rank"],
            "rank_low": row["low"],
            "rank_high": row["high"],
            "best": 100 * row["best"],
        }
        for row in shown
    ]
    note = (
        "By the score at the last step, averaged over the benchmarks, with the 95 % interval of the rank over resamples"
        " of problems and seeds. Best in: the share of resamples, in percent, in which the run is first."
    )
    return table("ranking", "Ranking", note, fields, rows, [arms[row["arm"]] for row in shown])


def _setting(value: Any) -> str | None:
    """A value as a reader says it; a function by its own name."""
    return None if value is None else shown(value).removeprefix("opd.objective.").rpartition(":")[2]
