"""The published tables on a made-up study of published arms."""

import re
from dataclasses import replace

import pytest

from analysis.claims import verdicts
from analysis.contrasts import Bootstrap
from analysis.costs import costs
from analysis.load import load
from analysis.published_tables import all_tables, filters, hyperparameters, ranking_table, settings
from analysis.results import Results, analyse
from analysis.table import Field, table
from analysis.text import latex
from analysis.topics import members
from tests.unit.analysis.fake_runs import HOSTILE


@pytest.fixture(scope="module")
def study(published_runs) -> Results:
    return analyse(load(published_runs), baseline="mis", bootstrap=Bootstrap(count=100, seed=0))


def test_settings_stand_beside_the_published_ones(study):
    rows = {row["key"]: row for row in settings(study).frame.to_dict("records")}
    assert (rows["optim.lr"]["published"], rows["optim.lr"]["here"]) == ("1e-5", "0.0004")
    assert rows["divergence._target_"]["here"] == "divergence.reverse_kl"
    assert rows["optim.betas"]["here"] == "0.9, 0.95" and rows["teacher.models"]["here"] == "large"


def test_ranking_begins_with_the_best_and_its_rank_lies_in_its_interval(study):
    rows = ranking_table(study).frame.to_dict("records")
    assert [row["rank"] for row in rows] == sorted(row["rank"] for row in rows) and rows[0]["rank"] == 1
    assert all(row["rank_low"] <= row["rank"] <= row["rank_high"] for row in rows)
    assert sum(row["best"] for row in rows) == pytest.approx(100)
    assert rows[0]["mean_last"] == max(row["mean_last"] for row in rows)


def test_filters_hold_scores_and_what_training_ended_with(study):
    rows = {row["label"]: row for row in filters(study, members(study)).frame.to_dict("records")}
    assert list(rows) == ["mis", "kl_0_30", "kl_70_100"]
    runs = study.records.runs
    training = study.records.training
    last = training[training["step"] == 20].set_index("run")["divergence/reverse_kl"]
    own = last[runs.loc[runs["name"] == "kl_0_30", "run"]]
    assert rows["kl_0_30"]["kl"] == pytest.approx(own.mean())
    assert rows["kl_0_30"]["mean_max"] >= rows["kl_0_30"]["mean_last"]


def test_hyperparameters_have_a_row_a_value_and_benchmark(study):
    frame = hyperparameters(study, members(study)).frame
    rows = frame[frame["axis"] == "Rollout temperature"]
    assert list(rows["value"].unique()) == ["0.5", "1.0", "1.2"]
    assert list(rows["benchmark"].unique()) == ["average", "aime24", "hmmt25"] and len(rows) == 9


def test_verdicts_follow_the_summary_unless_no_claim_was_run(study):
    known = verdicts(study)
    assert any(one.verdict != "not run" for one in known)
    for shown, at in ((known, 1), ([replace(one, verdict="not run") for one in known], -1)):
        tables = all_tables(study, members=members(study), costs=costs(study), verdicts=shown)
        assert tables[0].name == "summary" and tables[at].name == "verdicts"


def test_every_table_is_latex_that_balances(study):
    for each in all_tables(study, members=members(study), costs=costs(study), verdicts=verdicts(study)):
        text = each.latex()
        assert text.count("{") - text.count("\\{") == text.count("}") - text.count("\\}")
        assert text.startswith("\\begin{table}") and "\\toprule" in text and "\\bottomrule" in text
        widths = {len(re.findall(r"(?<!\\)&", line)) for line in text.splitlines() if line.endswith(r" \\")}
        assert widths == {len(each.fields) - 1}


@pytest.mark.parametrize("text", [*HOSTILE, r"\input{/etc/passwd} $x^2$ ~ # % & _ {", "漢字 α − ✓"])
def test_text_of_a_record_is_no_latex(text):
    written = table("t", "T", "n", [Field("name", "Name")], [(None, {"name": text})]).latex()
    row = written[written.index(r"\midrule") : written.index(r"\bottomrule")]
    commands = set(re.findall(r"\\([a-zA-Z]+)", row))
    assert commands <= {"midrule", "textbackslash", "textasciitilde", "textasciicircum", "textless", "textgreater",
                        "textbar", "ensuremath", "alpha"}  # fmt: skip
    assert not re.search(r"(?<!\\)[$%#_&^~]", latex(text.replace("\N{NO-BREAK SPACE}", "")))
