"""The published tables: settings, hyper-parameters one at a time, token filters, cost, ranking, and the verdicts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from analysis.claims import Verdict
from analysis.costs import COSTS, Cost
from analysis.decisions import NOT_RUN
from analysis.evaluation import AVERAGE
from analysis.figures.explorer import axes, value_text
from analysis.results import Results, rows_of
from analysis.settings import SETTINGS
from analysis.table import Field, Table, table
from analysis.tables import benchmarks_of, measures, run_tables

VERDICTS = ("reproduced", "contradicted", "not settled", "cannot show here", "built in", "report only", "not run")


def all_tables(
    results: Results, *, members: Mapping[str, list[str]], costs: Mapping[str, Cost], verdicts: Sequence[Verdict]
) -> list[Table]:
    """Every table of the report: the verdicts, the summary, the published tables that have rows, and the rest.

    The summary comes first, and the verdicts second; last where no published claim was tested.
    """
    published = [
        settings(results),
        hyperparameters(results, members),
        filters(results, members),
        cost_table(results, costs),
        ranking_table(results),
    ]
    first, *rest = run_tables(results)
    others = [*(table for table in published if len(table.frame)), *rest]
    decided = [verdict_table(verdicts)] if verdicts else []
    tested = any(one.verdict != NOT_RUN for one in verdicts)
    return [first, *decided, *others] if tested else [first, *others, *decided]


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """One row a published claim, those that the runs decided first."""
    fields = [
        Field("says", "Published claim", "prose"),
        Field("verdict", "Verdict"),
        Field("ours", "Here", "points", interval=True),
        Field("published", "Published", "prose"),
        Field("note", "Why", "prose"),
        Field("metric", "On"),
        Field("seeds_needed", "Seeds needed", "number"),
        Field("runs", "Runs", "number"),
        Field("source", "Source"),
        Field("id", "Claim"),
    ]
    rows = [
        {
            **vars(one.claim),
            **vars(one),
            "source": ", ".join(filter(None, (one.claim.source, one.claim.section))),
            "ours": one.value,
            "ours_low": one.low,
            "ours_high": one.high,
            "runs": len(one.runs),
        }
        for one in sorted(verdicts, key=lambda one: VERDICTS.index(one.verdict))
    ]
    counts = Counter(one.verdict for one in verdicts)
    counted = ", ".join(f"{counts[word]} {word}" for word in VERDICTS if counts[word])
    explained = (
        f" {_settled(counts)} Here: the difference in points that decides the claim, with its interval,"
        " corrected for the number of claims tested in its sweep. Reproduced: the interval lies entirely within the"
        " claim. Contradicted: entirely outside it. Not settled: neither; the seeds needed per arm would settle it in"
        " four of five studies. Cannot show here: the claim's mechanism is not at work in its runs, or they are the"
        " same runs. Built in: the world was made so that the effect is bound to show."
    )
    note = f"{counted}." + explained * any(one.verdict != NOT_RUN for one in verdicts)
    return table("verdicts", "Published claims", note, fields, [(None, row) for row in rows])


def _settled(counts: Mapping[str, int]) -> str:
    settled = counts["reproduced"] + counts["contradicted"]
    tested = settled + counts["not settled"] + counts["cannot show here"]
    return f"{settled} of the {tested} that were tested are settled."


def settings(results: Results) -> Table:
    """Table 1 of the adventures post, compared with the settings of the baseline."""
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
        {**vars(setting), "here": _setting_text(details.config[setting.key])}
        for setting in SETTINGS
        if details and setting.key in details.config
    ]
    label = baseline.label if baseline else ""
    note = f"The published default, and the settings of {label}; the complete config is in each run's directory."
    return table("settings", "Settings of the default", note, fields, [(None, row) for row in rows])


def hyperparameters(results: Results, members: Mapping[str, list[str]]) -> Table:
    """One row a hyper-parameter, value and benchmark."""
    fields = [
        Field("label", "Run"),
        Field("axis", "Hyper-parameter"),
        Field("value", "Value"),
        Field("benchmark", "Benchmark"),
        Field("seeds", "Seeds", "number"),
        *_max_and_last(results, "{which} {score}"),
    ]
    rows = [
        (arm, {**measures(results.estimated, arm, name), "axis": topic.title, "value": value, "benchmark": name})
        for topic, values in axes(results, members)
        for value, arm in values
        for name in benchmarks_of(results, results.estimated, arm)
    ]
    note = "One hyper-parameter at a time, others as in the default. max: chosen on the test sets, hence optimistic."
    return table("hyperparameters", "Hyper-parameters, one at a time", note, fields, rows)


def filters(results: Results, members: Mapping[str, list[str]]) -> Table:
    """Table 2 of the adventures post."""
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        *_max_and_last(results, "{score} ({which})"),
        Field("kl", "Train KL (last)", "decimal"),
        Field("entropy", "Entropy (last)", "decimal"),
    ]
    training = results.records.training.sort_values(["run", "step"])
    last = training.groupby("run")[["divergence/reverse_kl", "entropy/student"]].last()
    rows = []
    for arm in results.arms:
        if arm.id in members.get("filter", ()):
            kl, entropy = last.loc[[run for run in arm.used if run in last.index]].mean()
            own = {"seeds": len(arm.used), "kl": float(kl), "entropy": float(entropy)}
            rows.append((arm, {**measures(results.estimated, arm, AVERAGE), **own}))
    note = (
        "Percent, averaged over the benchmarks, at the best step (chosen on the test sets, so it is optimistic) and at"
        " the last one; training KL and the student's entropy at the last step, in nats a token."
    )
    return table("filters", "Token filters", note, fields, rows)


def _max_and_last(results: Results, label: str) -> list[Field]:
    return [
        Field(f"{score}_{which}", label.format(score=results.label(score), which=which), "percent", interval=True)
        for which in ("max", "last")
        for score in ("mean", "best")
    ]


def cost_table(results: Results, costs: Mapping[str, Cost]) -> Table:
    """The mean cost of an arm's runs, with their scores."""
    mean = results.label("mean")
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        *(Field(kind, title, "decimal") for kind, title in COSTS),
        Field("mean_last", f"last {mean}", "percent", interval=True),
        Field("mean_max", f"max {mean}", "percent", interval=True),
    ]
    rows = [
        (arm, {**measures(results.estimated, arm, AVERAGE), "seeds": len(arm.used), **vars(costs[arm.id])})
        for arm in results.arms
        if arm.id in costs and arm.role != "teacher"
    ]
    note = "The mean over an arm's runs: hours of all devices together, without evaluations, and tokens sampled."
    return table("costs", "Cost", note, fields, rows)


def ranking_table(results: Results) -> Table:
    """The arms by their score at the last step, each with the interval of its rank."""
    fields = [
        Field("label", "Run"),
        Field("seeds", "Seeds", "number"),
        Field("rank", "Rank", "number", interval=True),
        Field("best", "Best in", "percent"),
        Field("mean_last", f"last {results.label('mean')}", "percent", interval=True),
    ]
    arms = {arm.id: arm for arm in results.arms}
    rows = [
        (
            arms[row["arm"]],
            {
                **measures(results.estimated, arms[row["arm"]], AVERAGE),
                "rank": row["rank"],
                "rank_low": row["low"],
                "rank_high": row["high"],
                "best": 100 * row["best"],
            },
        )
        for row in rows_of(results.ranking)
        if (row["score"], row["which"]) == ("mean", "last")
    ]
    note = (
        "By the score at the last step, averaged over the benchmarks, with the 95 % interval of the rank over resamples"
        " of problems and seeds. Best in: the percentage of resamples in which the run ranks first."
    )
    single = sum(len(arm.used) == 1 for arm, _ in rows)
    if single:
        whose = "Every run has" if single == len(rows) else f"{single} of the {len(rows)} runs have"
        note += f" {whose} one seed, so that these ranks say nothing of how seeds differ."
    return table("ranking", "Ranking", note, fields, rows)


def _setting_text(value: Any) -> str | None:
    """A config value in short; a function by its own name."""
    return None if value is None else value_text(value).removeprefix("opd.objective.").rpartition(":")[2]
