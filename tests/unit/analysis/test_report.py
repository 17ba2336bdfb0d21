import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from analysis import report
from analysis.cache import FOLDER, SUFFIX, Cache
from analysis.command import parse
from analysis.report import Arguments, main
from opd.errors import UserError
from tests.unit.analysis.fake_runs import Fake, report_files, write_run

FAST = ["bootstrap=100", "figures=false", "cache=false"]


def test_a_baseline_that_is_no_run_or_several_is_refused_with_those_there(demo_runs, tmp_path, capsys):
    def said(runs: Path, baseline: str) -> str:
        status = main([f"runs={runs}", f"out={tmp_path / 'out'}", f"baseline={baseline}", *FAST])
        error = capsys.readouterr().err
        assert (status, error.count("\n")) == ((2, 1) if error else (0, 0))
        return error

    assert "baseline=kl_70_10: no run has that name; did you mean baseline=kl_70_100? there are " in said(
        demo_runs, "kl_70_10"
    )
    assert said(demo_runs, "kl_70_100") == ""
    for gamma in (0.0, 0.5):
        write_run(tmp_path / "runs", Fake("two", num_steps=2, every=2, config={"gamma": gamma}))
    write_run(tmp_path / "runs", Fake("unfinished", num_steps=4, step=2, every=2, state="running"))
    assert said(tmp_path / "runs", "two") == (
        "baseline=two: several configs have that name; give baseline='two gamma=0' or baseline='two gamma=0.5'\n"
    )
    assert said(tmp_path / "runs", "two gamma=0.5") == said(tmp_path / "runs", "unfinished") == ""


def test_report_is_written_whole(demo_runs, tmp_path, capsys):
    assert main([f"runs={demo_runs}", f"out={tmp_path / 'new' / 'report'}", *FAST]) == 0
    files = {path.relative_to(tmp_path / "new" / "report").as_posix() for path in (tmp_path / "new").rglob("*.*")}
    assert {"report.html", "report.md", "tables/summary.csv", "tables/training.csv", "tables/excluded.csv"} <= files
    assert not any(".part" in file for file in files)
    said = capsys.readouterr()
    assert said.err == "" and "report.html: study demo · 11 finished runs" in said.out
    assert "2 records left out, each listed there" in said.out


def test_same_records_same_bytes_wherever_and_in_whatever_order_they_lie(all_runs, tmp_path):
    """Folders made anew in the opposite order, under another root."""
    moved = tmp_path / "elsewhere"
    for folder in sorted((path for path in all_runs.rglob("*") if path.is_dir()), reverse=True):
        for file in sorted((path for path in folder.iterdir() if path.is_file()), reverse=True):
            target = moved / file.relative_to(all_runs)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    first, again, other = (report_files(f"runs={root}", "out=x", *FAST) for root in (all_runs, all_runs, moved))
    assert first == again
    assert first == other
    assert not any(
        str(root) in str(content) for content in first.values() for root in (all_runs, tmp_path, Path.home())
    )


@pytest.mark.apart
def test_another_process_writes_the_same_bytes_in_another_place_zone_language_and_order_of_hashes(demo_runs, tmp_path):
    """The records copied anew too, so with other times and inodes, and read with a cache and without."""
    shutil.copytree(demo_runs, tmp_path / "a b" / "copy", copy_function=shutil.copyfile)
    for file in (tmp_path / "a b" / "copy").rglob("*.jsonl"):
        os.utime(file, (1e9, 1e9))
    worlds = (
        (demo_runs, {"PYTHONHASHSEED": "1", "TZ": "Asia/Tokyo", "LC_ALL": "C", "PYTHONUTF8": "0"}),
        (
            tmp_path / "a b" / "copy",
            {"PYTHONHASHSEED": "2", "TZ": "America/Lima", "LC_ALL": "C.UTF-8", "LANG": "de_DE"},
        ),
    )
    for number, (runs, world) in enumerate(worlds):
        command = [sys.executable, "-m", "analysis.report", f"runs={runs}", f"out={tmp_path / str(number)}"]
        command += ["bootstrap=100", f"cache={'true' if number else 'false'}"]
        environment = {**os.environ, "PYTHONPATH": str(Path(report.__file__).parents[1]), **world}
        subprocess.run(command, env=environment, cwd=tmp_path, check=True, capture_output=True)
    one, other = (written(tmp_path / number) for number in "01")
    assert one == other and len(one) > 8


def written(out: Path) -> dict[str, bytes]:
    return {path.relative_to(out).as_posix(): path.read_bytes() for path in out.rglob("*") if path.is_file()}


def test_a_cold_a_warm_a_damaged_and_no_cache_write_the_same_bytes(all_runs, tmp_path):
    runs = tmp_path / "runs"
    shutil.copytree(all_runs, runs)
    time.sleep(Cache(runs).margin + 0.1)
    given = [f"runs={runs}", "out=x", "bootstrap=100", "figures=false"]
    none = report_files(*given, "cache=false")
    assert not (runs / FOLDER).exists()
    assert report_files(*given) == none
    kept = sorted((runs / FOLDER).glob(f"*{SUFFIX}"))
    assert len(kept) > 15
    assert report_files(*given, "cache=true") == none
    rng = np.random.default_rng(0)
    for file in kept[::2]:
        content = bytearray(file.read_bytes())
        content[rng.integers(len(content))] ^= 1
        file.write_bytes(content)
    assert report_files(*given) == none


def test_seed_changes_intervals_only(demo_runs):
    one, other = (report_files(f"runs={demo_runs}", "out=x", *FAST, f"seed={seed}") for seed in (0, 1))
    assert one["tables/ranking.csv"] != other["tables/ranking.csv"]
    assert one["tables/runs.csv"] == other["tables/runs.csv"]


def test_old_report_is_replaced(tmp_path):
    write_run(tmp_path / "runs", Fake(num_steps=2, every=2, benchmarks={"x": 3}))
    out = tmp_path / "out"
    arguments = [f"runs={tmp_path / 'runs'}", f"out={out}", *FAST]
    assert main(arguments) == 0
    (out / "report.html").write_text("old")
    assert main(arguments) == 0
    assert (out / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ([], "runs= is missing; give a folder, as runs=DIR"),
        (["runs={runs}"], "out= is missing; give a folder, as out=DIR"),
        (
            ["runs={runs}", "out={out}", "color=red"],
            "color=red is not an argument; the arguments are runs=, out=, baseline=",
        ),
        (["runs={runs}", "out={out}", "fast"], "fast is not an argument; the arguments are "),
        (["runs={runs}", "out={out}", "ema=0"], "ema=0 should be greater than 0"),
        (["runs={runs}", "out={out}", "ema=nan"], "ema=nan should be "),
        (["runs={runs}", "out={out}", "bootstrap=many"], "bootstrap=many should be a valid integer"),
        (["runs={runs}", "out={out}", "bootstrap=10"], "bootstrap=10 should be greater than or equal to 100"),
        (["runs={runs}", "out={out}", "seed=-1"], "seed=-1 should be greater than or equal to 0"),
        (["runs={runs}", "out={out}", "strict=maybe"], "strict=maybe should be a valid boolean"),
        (["runs={runs}", "out={out}", "out=x"], "out= is given twice; give it one value"),
        (["runs={runs}", "out="], "out= is given without a value; give it one value"),
        (["runs={runs}/nowhere", "out={out}"], "/nowhere is not a folder; give one that holds run directories"),
        (["runs={empty}", "out={out}"], "holds no run directory (one with a config.yaml or status.json)"),
        (["runs={runs}", "out={file}"], "cannot be written: "),
        (["runs={runs}", "out={file}/below"], "cannot be written: Not a directory; give another folder"),
    ],
)
def test_mistake_is_one_sentence_and_exit_2(demo_runs, tmp_path, capsys, given, said):
    (tmp_path / "file").write_text("")
    (tmp_path / "empty").mkdir()
    places = {"runs": demo_runs, "out": tmp_path / "out", "file": tmp_path / "file", "empty": tmp_path / "empty"}
    assert (
        main([argument.format(**places) for argument in given] + (FAST if "bootstrap" not in str(given) else [])) == 2
    )
    captured = capsys.readouterr()
    assert said in captured.err and captured.err.count("\n") == 1 and captured.out == ""
    assert not (tmp_path / "out").exists()


def test_only_broken_runs_are_still_a_report(tmp_path):
    (tmp_path / "runs" / "broken").mkdir(parents=True)
    (tmp_path / "runs" / "broken" / "status.json").write_text("{")
    assert main([f"runs={tmp_path / 'runs'}", f"out={tmp_path / 'out'}", *FAST]) == 0
    assert "broken" in (tmp_path / "out" / "report.md").read_text()


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_names_every_argument(capsys, flag):
    assert main([flag]) == 0
    said = capsys.readouterr().out
    assert all(f"{name}=" in said for name in Arguments.__dataclass_fields__)


def test_defaults_are_as_the_help_says():
    assert parse(["runs=a", "out=b"], Arguments) == Arguments(Path("a"), Path("b"), "default", 0.15, 5000, 0)
    for name in ("baseline", "ema", "bootstrap", "seed", "strict", "cache"):
        default = getattr(Arguments, name)
        assert f"{name}={str(default).lower() if isinstance(default, bool) else default} " in (report.__doc__ or "")


def test_parse_raises_user_errors_only():
    with pytest.raises(UserError):
        parse(["runs"], Arguments)


def test_report_needs_no_torch(demo_runs, tmp_path):
    code = "import sys; from analysis.report import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    command = [sys.executable, "-c", code, f"runs={demo_runs}", f"out={tmp_path}", *FAST]
    assert subprocess.run(command, capture_output=True, text=True).stdout.endswith("\nFalse\n")
