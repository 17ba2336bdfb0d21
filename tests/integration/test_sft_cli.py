"""`python -m opd.sft`, as a user types it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.forks import run_module

NAMES = ("student", "small", "medium", "large")
SHORT = [
    override
    for name in NAMES
    for override in (
        f"recipes.{name}.steps=2",
        f"recipes.{name}.warmup_steps=0",
        f"recipes.{name}.batch_size=2",
        f"recipes.{name}.architecture.hidden_size=16",
    )
]


def sft(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    here = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return run_module("opd.sft", f"paths.models={folder / 'models'}", *overrides, cwd=folder, env=here)


@pytest.mark.apart
def test_it_makes_every_model_of_the_scale_once(tmp_path: Path):
    first = sft(tmp_path, *SHORT)
    assert first.returncode == 0, first.stderr
    paths = [Path(line) for line in first.stdout.splitlines()]
    assert sorted(path.name.partition("-")[0] for path in paths) == sorted(NAMES)
    assert all((path / "model.safetensors").is_file() for path in paths)
    assert all(f"{name} is ready" in first.stderr for name in NAMES)
    assert [path.name for path in tmp_path.iterdir()] == ["models"]

    made = {path: (path / "model.safetensors").stat().st_mtime_ns for path in paths}
    again = sft(tmp_path, *SHORT)
    assert again.returncode == 0 and again.stdout == first.stdout and not again.stderr
    assert made == {path: (path / "model.safetensors").stat().st_mtime_ns for path in paths}


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("recipes.student.lr=-1", "recipes.student.lr"),
        ("recipes.student.slip=[0,2]", "recipes.student.slip.1"),
        ("recipes.student.momentum=1", "recipes.student.momentum"),
        ("recipes.student.mix.addition=[17]", "addition has no difficulty 17"),
        ("recipes.student.file=nowhere.jsonl", "exactly one of mix and file"),
        ("scale=qwen3_4b", "has no recipes"),
    ],
)
def test_what_cannot_be_made_is_refused_in_one_sentence(tmp_path: Path, override: str, said: str):
    refused = sft(tmp_path, override)
    assert refused.returncode == 2
    assert said in refused.stderr and "Traceback" not in refused.stderr
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_hold_models_is_refused(tmp_path: Path):
    (tmp_path / "models").write_text("")
    refused = sft(tmp_path, *SHORT)
    assert refused.returncode == 2 and "Traceback" not in refused.stderr
    assert "models" in refused.stderr
