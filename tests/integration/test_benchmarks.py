"""The benchmark of whole steps, as far as it runs without TRL, and the study that the report's benchmark makes up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.study import Size, write_study
from opd.records.run_dir import RunDir

pytestmark = pytest.mark.apart


def test_the_benchmark_of_whole_steps_samples_every_token_and_prints_speed_memory_and_stages() -> None:
    sizes = ["--vocabularies", "32", "--batch", "2", "--tokens", "4", "--prompt", "8", "--steps", "1"]
    command = [sys.executable, "-m", "benchmarks.trl", "--arms", "full", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    row = re.search(r"^full +([\d,]+) .* ([\d,]+) MB +rollout .* backward", done.stdout, re.M)
    assert row and int(row[1].replace(",", "")) > 0 and int(row[2].replace(",", "")) > 0, done.stdout


def test_an_arm_that_cannot_start_ends_the_benchmark_with_its_name() -> None:
    command = [sys.executable, "-m", "benchmarks.trl", "--arms", "trl", "--trl", "false", "--vocabularies", "32"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "trl: ended with status 1"


def test_the_study_that_is_made_up_is_one_of_whole_runs_however_long(tmp_path: Path) -> None:
    write_study(tmp_path, Size(runs=20, steps=1000, evaluations=3, problems=2, samples=1))
    runs = [RunDir(folder) for folder in (tmp_path / "big").iterdir()]
    assert len(runs) == 20
    assert all(run.status().step == run.config()["num_steps"] == len(run.metrics()) - 1 == 1000 for run in runs)


def test_the_benchmark_of_the_report_damages_a_study_and_compares_what_is_left() -> None:
    size = ["--runs", "20", "--steps", "10", "--evaluations", "3", "--problems", "5", "--samples", "2"]
    command = [sys.executable, "-m", "benchmarks.report", *size, "--damaged", "0.1"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    found = re.search(
        r"^(\d+) runs have a damaged file, (\d+) of them are named, .* (\d+) others read", done.stdout, re.M
    )
    assert found and 0 < int(found[2]) <= int(found[1]) == 20 - int(found[3]) > 0, done.stdout


def test_the_benchmark_of_checkpoints_writes_and_reads_one_over_ranks() -> None:
    sizes = ["--ranks", "2", "--width", "128", "--layers", "2", "--vocabulary", "100"]
    command = [sys.executable, "-m", "benchmarks.checkpoint", *sizes]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^ +2 +\d+ MB( +[\d.]+ s){3} +[\d,]+ MB$", done.stdout, re.M), done.stdout
