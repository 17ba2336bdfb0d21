"""The example package, installed outside of the tree: each of its methods in a run, and who may load it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from opd.records.run_dir import RunDir

pytestmark = pytest.mark.apart

ROOT = Path(__file__).parents[2]
NAMED = "plugins=[opd_example]"
# Every group once; a divergence over the vocabulary has no policy gradient, so it is a run of its own.
RUNS = {
    "sampled": [
        "divergence=chi_squared", "ensemble=newest", "teacher=ladder", "filter=unsure", "rollout_correction=softened",
        "loss=constant", "responses=later", "environment=again", "context=twice", "alignment=as_it_is",
        "prompts=counting", "+signal.brevity=0.1", "+signal.surprise=[0.1,0.0]", "signal.reward=1.0",
        "evaluate.sources.arithmetic.grader=last_digit",
    ],
    "exact": ["divergence=chi_squared", "support=likeliest", "support.k=4", "whitening=none", "+signal.surprise=0.1"],
}  # fmt: skip


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the example is installed into."""
    folder, source = tmp_path_factory.mktemp("installed"), tmp_path_factory.mktemp("source") / "plugin"
    shutil.copytree(ROOT / "examples" / "plugin", source)  # an installation writes beside what it installs
    pip = [sys.executable, "-m", "pip", "--quiet", "install", "--no-deps", "--no-index", "--no-build-isolation"]
    subprocess.run([*pip, "--target", str(folder), str(source)], check=True)
    return folder


@pytest.fixture(scope="module")
def opd(installed: Path, small_run: list[str], tmp_path_factory: pytest.TempPathFactory):
    """A command in a folder of its own, beside the installed package; its output."""
    folder = tmp_path_factory.mktemp("work")
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{installed}", "OMP_NUM_THREADS": "1"}

    def run(module: str, *words: str, status: int = 0) -> str:
        own = [word for word in small_run if not word.startswith("prompts.")] if module == "opd.train" else []
        given = [*own, *words] if not any(word.startswith("config=") for word in words) else words
        done = subprocess.run(
            [sys.executable, "-P", "-m", module, *given], cwd=folder, env=environment, capture_output=True, text=True
        )
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    run.folder = folder  # pyright: ignore[reportFunctionMemberAccess]
    return run


def numbers(folder: RunDir) -> list[dict[str, float]]:
    """What a run has measured, without what it took."""
    cost = ("time", "throughput/", "memory/")
    return [{key: value for key, value in line.items() if not key.startswith(cost)} for line in folder.metrics()]


def the_run(opd, study: str) -> RunDir:
    (folder,) = (opd.folder / "outputs" / study).glob("*-s0")
    return RunDir(folder)


@pytest.mark.parametrize("name", RUNS)
def test_a_method_of_each_group_learns_and_is_recorded(name: str, opd, installed: Path):
    opd("opd.train", NAMED, f"study={name}", "evaluate.texts=0", *RUNS[name])
    run = the_run(opd, name)
    assert run.status().state == "finished" and len(numbers(run)) == 5
    assert all(line["grad_norm"] > 0 for line in numbers(run)[1:])
    config, manifest = run.config(), run.manifest()
    assert config["plugins"] == ["opd_example"] and config["divergence"]["_target_"] == "opd_example.chi_squared"
    assert len(manifest["plugins"]["opd_example"]) == 64
    if name == "sampled":
        samples = [json.loads(line) for file in run.evaluations().values() for line in file.read_text().splitlines()]
        assert {sample["score"] for sample in samples} <= {0.0, 0.5, 1.0} and 0.5 in {s["score"] for s in samples}

    # Its record alone runs nothing of the package, and says what does.
    again = [f"config={run.config_file}", f"study={name}-again"]
    said = opd("opd.train", *again, status=2)
    assert "needs the plug-in opd_example" in said and f"give {NAMED} too" in said
    opd("opd.train", *again, NAMED)
    assert numbers(the_run(opd, f"{name}-again")) == numbers(run)
    assert the_run(opd, f"{name}-again").path.name == run.path.name


def test_a_sweep_hands_the_plug_in_to_its_tasks(opd, small_run: list[str]):
    few = [word for word in small_run if not word.startswith("prompts.")]
    words = ["+sweep=gamma", "study=swept", "sweep.seeds=[0]", *few, NAMED, "filter=unsure"]
    opd("sweeps.submit", *words)
    opd("sweeps.status", "study=swept", "--wait")
    runs = [RunDir(folder) for folder in (opd.folder / "outputs" / "swept").glob("*-s0")]
    assert runs and all(run.status().state == "finished" for run in runs)
    assert all(run.config()["filter"]["_target_"] == "opd_example.unsure" for run in runs)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["filter=unsure"], "filter=unsure: there is no such choice"),
        (["divergence._target_=opd_example.chi_squared"], "only functions of opd.objective.divergence may stand here"),
        (["plugins=[opd_exampel]"], "plugins=[opd_exampel]: there is no such package"),
        ([NAMED, "filter=unsure", "filter.entropy=-1"], "filter.entropy=-1: should be greater than or equal to 0"),
        ([NAMED, "filter=unsure", "+filter.p_min=3"], "filter.p_min: unsure has no such knob; its knobs are"),
        ([NAMED, "+signal.brevty=1"], "did you mean signal.brevity?"),
        ([NAMED, "+signal.brevity=1", "whitening=sample"], "signal and whitening: a term that is the same"),
        ([NAMED, "evaluate.sources.arithmetic.grader=last"], "grader=last: there is no such grader; the choices are"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(words: list[str], sentence: str, opd):
    assert sentence in opd("opd.train", *words, status=2)
