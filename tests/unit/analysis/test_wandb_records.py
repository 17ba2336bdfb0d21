from dataclasses import replace
from pathlib import Path

import pandas as pd

from analysis.columns import TRAINING_COLUMNS
from analysis.command import parse
from analysis.load import load
from analysis.report import Arguments, build, main
from analysis.wandb_import import read_wandb, with_imported
from tests.unit.analysis.fake_runs import Fake, write_run

SMALL = Fake(num_steps=4, every=2, k=2, benchmarks={"arithmetic": 3})


def exported(folder: Path, *names: str) -> str:
    """The export of a panel in which each run's gradient norm is ten times the step."""
    head = ",".join(["step", *(f"{name} - grad_norm" for name in names)])
    lines = [",".join([str(step), *[str(10 * step)] * len(names)]) for step in range(1, 4)]
    (folder / "export.csv").write_text("\n".join([head, *lines]) + "\n")
    return str(folder / "export.csv")


def test_a_run_s_own_curves_come_first_and_missing_ones_are_filled(tmp_path):
    whole, broken = (write_run(tmp_path / "runs", replace(SMALL, seed=seed)) for seed in range(2))
    broken.metrics_file.write_text("nonsense\n")
    before = load(tmp_path / "runs")
    names = (whole.path.name, broken.path.name, f"{whole.path.name[:-1]}7", "someone's run")
    after = with_imported(before, read_wandb(exported(tmp_path, *names)))
    own, filled = (f"demo/{run.path.name}" for run in (whole, broken))
    curves = after.training.set_index(["run", "step"])["grad_norm"]
    pd.testing.assert_frame_equal(
        after.training[after.training["run"] == own], before.training[before.training["run"] == own]
    )
    for run in (filled, f"wandb: {names[2]}", "wandb: someone's run"):
        assert curves[run].to_dict() == {1: 10.0, 2: 20.0, 3: 30.0}
    rows = after.runs.set_index("run")
    assert rows.loc[f"wandb: {names[2]}", ["arm", "seed", "study", "state", "counted"]].tolist() == [
        rows.loc[own, "arm"], 7, "wandb", "exported", False,
    ]  # fmt: skip
    assert rows.loc["wandb: someone's run", ["arm", "name", "seed"]].tolist() == ["someone's run", "someone's run", 0]
    assert len(rows) == 4
    added = {tuple(row) for row in after.excluded.to_numpy()} - {tuple(row) for row in before.excluded.to_numpy()}
    assert added == {
        (f"wandb: {names[0]}", "its curves", f"those of {own} are used"),
        (f"wandb: {names[2]}", "its scores", "Weights & Biases has no graded answers"),
        ("wandb: someone's run", "its scores", "Weights & Biases has no graded answers"),
    }
    assert after.damage == before.damage
    for name in ("scores", "answers"):
        pd.testing.assert_frame_equal(getattr(after, name), getattr(before, name))
    assert after.runs.dtypes.to_dict() == before.runs.dtypes.to_dict()


def test_scores_are_as_without_and_the_report_names_what_was_exported(tmp_path):
    for seed in range(2):
        write_run(tmp_path / "runs", replace(SMALL, seed=seed))
    given = [f"runs={tmp_path / 'runs'}", "out=x", "bootstrap=100", "figures=false", "cache=false"]
    made, said = build(
        parse([*given, f"wandb={exported(tmp_path, 'other-0123abcd-s0', '<script>alert(1)</script>')}"], Arguments)
    )
    without, _ = build(parse(given, Arguments))
    assert made["tables/summary.csv"].splitlines()[1] == without["tables/summary.csv"].splitlines()[1] + ',"finished"'
    assert "wandb: other-0123abcd-s0" in made["tables/excluded.csv"]
    assert "<script>alert(1)" not in made["report.html"] and "unfinished" not in said


def test_curves_alone_are_a_report(tmp_path):
    (tmp_path / "empty").mkdir()
    given = [f"runs={tmp_path / 'empty'}", f"out={tmp_path / 'out'}", "bootstrap=100", "figures=false"]
    assert main([*given, f"wandb={exported(tmp_path, 'other-0123abcd-s0')}", "strict=true"]) == 0
    assert "other" in (tmp_path / "out/report.html").read_text()
    training = pd.read_csv(tmp_path / "out/tables/training.csv")
    assert training["grad_norm"].tolist() == [10.0, 20.0, 30.0]
    assert set(training.columns) == {"run", "step", *(column.name for column in TRAINING_COLUMNS)}
