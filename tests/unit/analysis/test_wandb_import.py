import json
import math
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from analysis.report import main
from analysis.wandb_import import EXPORTED, history_points, read_wandb
from opd.errors import UserError

KL, NORM = "divergence/reverse_kl", "grad_norm"


def curve(frame: pd.DataFrame, run: str, metric: str) -> dict[int, float]:
    return frame[frame["run"] == run].set_index("step")[metric].dropna().to_dict()


def written(folder: Path, name: str, text: str) -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_export_of_a_panel(tmp_path):
    """As the page of a project exports it: a column a run, its least and greatest value beside it, quoted."""
    text = (
        f'"step","a-b - c-0123abcd-s1 - {KL}","a-b - c-0123abcd-s1 - {KL}__MIN","a-b - c-0123abcd-s1 - {KL}__MAX",'
        f'"other - {KL}","other - {KL}__MIN","other - {KL}__MAX"\n'
        '"1","0.5","0.5","0.5","","",""\n"2","0.25","0.1","0.9","NaN","",""\n"3","1e-3","","","7","7","7"\n'
    )
    found, run = read_wandb(written(tmp_path, "export.csv", text)), "a-b - c-0123abcd-s1"
    assert found["run"].tolist() == [run] * 3 + ["other"] and set(found["state"]) == {EXPORTED}
    assert curve(found, run, KL) == {1: 0.5, 2: 0.25, 3: 0.001} and curve(found, run, NORM) == {}
    assert curve(found, "other", KL) == {3: 7.0}


def test_export_of_a_history_with_and_without_runs_and_in_several_files(tmp_path):
    one = written(
        tmp_path, "x-0123abcd-s0.csv", f"_step,{KL},evaluate/mean@8,_runtime\n0,,0.3,1\n1.0,0.5,,2\n2,Infinity,,3\n"
    )
    two = written(tmp_path, "two.csv", f"run,step,{NORM}\nx-0123abcd-s0,1,3\ny,2,4\n\n")
    found, run = read_wandb(f"{one},{two}"), "x-0123abcd-s0"
    assert curve(found, run, KL) == {1: 0.5} and curve(found, run, NORM) == {1: 3.0}
    assert curve(found, "y", NORM) == {2: 4.0} and found["run"].tolist() == [run, "y"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "No such file or directory; give a CSV export"),
        ("", "is not a CSV file in UTF-8"),
        (f"{KL}\n1\n", "has no column step or _step"),
        ("step,loss2\n1,2\n", f"has no value of a metric of metrics.jsonl, such as {KL}"),
        (f"step,{KL}\n1,2\n1,2,3\n", "is not a CSV file in UTF-8"),
        (f"step,{KL}\n1,2\n1.5,2\n", "row 2 has no valid step"),
        (f"step,{KL}\n1e30,2\n", "row 1 has no valid step"),
        (f"step,{KL}\n1,\n", f"has no value of a metric of metrics.jsonl, such as {KL}"),
    ],
)
def test_mistake_is_one_sentence(tmp_path, capsys, text, said):
    file = tmp_path / "export.csv"
    if text is not None:
        file.write_text(text)
    (tmp_path / "runs").mkdir()
    assert main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", f"wandb={file}", "bootstrap=100"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"wandb={file}") and said in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("head", "said"),
    [
        (f"Step,a - {KL},b - {KL},a - {KL}", f"has the column 'a - {KL}' twice; give each run a name of its own"),
        (f"Step,study: demo - {KL}", f"'study: demo - {KL}' is a mean over a group of runs; export the panel without"),
    ],
)
def test_columns_of_two_runs_or_of_a_group_are_refused(tmp_path, head: str, said: str):
    with pytest.raises(UserError, match=re.escape(said)):
        read_wandb(written(tmp_path, "export.csv", head + "\n1" + ",0.5" * head.count(",") + "\n"))


def test_bytes_that_are_no_text_are_refused(tmp_path):
    (tmp_path / "x.csv").write_bytes(b"step\xff\xfe")
    with pytest.raises(UserError, match="is not a CSV file in UTF-8"):
        read_wandb(str(tmp_path / "x.csv"))


class Service:
    """Answers wandb's client as its service does, from rows: what the network would be asked for."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def send_api_request(self, request: Any) -> Any:
        from wandb.proto import wandb_api_pb2 as pb

        asked = request.read_run_history_request
        if asked.HasField("scan_run_history_init"):
            init = pb.ScanRunHistoryInitResponse(request_id=7)
            return pb.ApiResponse(read_run_history_response=pb.ReadRunHistoryResponse(scan_run_history_init=init))
        scan = asked.scan_run_history
        assert scan.request_id == 7
        rows = [
            pb.HistoryRow(
                history_items=[
                    pb.ParquetHistoryItem(key=key, value_json=json.dumps(value)) for key, value in row.items()
                ]
            )
            for row in self.rows
            if scan.min_step <= row["_step"] < scan.max_step
        ]
        history = pb.RunHistoryResponse(history_rows=rows)
        return pb.ApiResponse(read_run_history_response=pb.ReadRunHistoryResponse(run_history=history))

    def execute_graphql(self, query: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        assert "historyKeys" in query
        return {"project": {"run": {"historyKeys": {"lastStep": self.rows[-1]["_step"]}}}}

    def finalize(self, *args: Any) -> None: ...


def test_history_as_wandb_s_client_gives_it(tmp_path, monkeypatch):
    """A run of wandb's own client, whose service is answered for; one that went back to step 2 and made it anew."""
    from wandb.apis.public import Run

    monkeypatch.chdir(tmp_path)
    rows: list[dict[str, Any]] = [
        {"_step": 0, "step": 0, "evaluate/mean@8": 0.3},
        {"_step": 1, "step": 1, KL: 0.5, NORM: 2},
        {"_step": 2, "step": 2, KL: 0.4, NORM: "NaN"},
        {"_step": 3, "step": 3, KL: 0.3},
        {"_step": 4, "step": 2, KL: 0.45},
        {"_step": 5, "step": 2, "rollouts": {"_type": "html-file"}},
        {"_step": 1500, "step": 4, KL: 0.2},
    ]
    known = {"displayName": "a-0123abcd-s0", "state": "finished", "config": "{}"}
    run = Run(Service(rows), "entity", "project", "id", attrs=known)
    assert (run.name, run.state) == ("a-0123abcd-s0", "finished")
    points = history_points(run.scan_history(), run.name).drop_duplicates(["step", "metric"], keep="last")
    values = {metric: rows.set_index("step")["value"].to_dict() for metric, rows in points.groupby("metric")}
    assert values == {KL: {1: 0.5, 2: 0.45, 3: 0.3, 4: 0.2}, NORM: {1: 2.0}}


def test_project_without_a_login_or_network_is_refused_in_a_sentence(tmp_path, monkeypatch):
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(
        UserError, match=r"^wandb=me/study: .*; log in with `wandb login`, and give the name of an existing"
    ):
        read_wandb("me/study")
    with pytest.raises(UserError, match=r"^wandb=study: is neither FILE.csv nor ENTITY/PROJECT"):
        read_wandb("study")


def test_numbers_as_json_and_csv_write_them():
    values = ["1", " 2.5 ", "-1e-3", ".5", 3, 2.0, "", "NaN", "Infinity", "1_0", "1e999", None, {}, math.inf]
    points = history_points([{"step": step, KL: value} for step, value in enumerate(values)], "run")
    assert points["value"].tolist() == [1.0, 2.5, -0.001, 0.5, 3.0, 2.0]
    steps = ["3", "3.0", "3.5", -1, None, "NaN", 1e300]
    assert history_points([{"step": step, KL: 1} for step in steps], "run")["step"].tolist() == [3, 3]
