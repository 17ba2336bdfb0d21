"""The package as it is installed: built, put into an environment outside the tree, and put to work there."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.apart

ROOT = Path(__file__).parents[2]

# What is built from; nothing else of a checkout is needed.
SOURCES = ("setup.py", "pyproject.toml", "README.md", "LICENSE", "conf", "opd", "sweeps", "analysis", "hydra_plugins")

# A world of seconds: models of two steps, runs of two.
TINY = [
    *(f"recipes.{name}.{setting}" for name in ("student", "large") for setting in ("steps=2", "warmup_steps=1")),
    "num_steps=2",
    "batch_size=4",
    "samples_per_prompt=2",
    "max_response_length=16",
    "evaluate.k=2",
    "evaluate.max_response_length=16",
    "evaluate.sources.arithmetic.num=4",
]


class Installed:
    """An environment that has this project's wheel, and sees the libraries of ours but not our code."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = folder / "environment" / "bin" / "python"
        venv.create(folder / "environment", with_pip=False, symlinks=True)
        found = self._run("-c", "import sysconfig; print(sysconfig.get_path('purelib'))", cwd=folder)
        self.packages = Path(found.strip())
        # As a plain folder of the path: links to a checkout, which may stand in it, are not followed there.
        (self.packages / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
        self.work = folder / "work"
        self.work.mkdir()
        # Like an environment inside a repository of somebody else's, whose commit is not that of our code.
        commit = ["-c", "user.name=else", "-c", "user.email=", "commit", "--quiet", "--allow-empty", "-m", "theirs"]
        for words in (["init", "--quiet"], commit):
            subprocess.run(["git", *words], cwd=folder, check=True)

    def install(self, wheel: Path) -> None:
        pip = [sys.executable, "-m", "pip", "--quiet", "--python", str(self.python), "install"]
        subprocess.run([*pip, "--no-deps", "--no-index", "--no-warn-conflicts", str(wheel)], check=True)

    def __call__(self, *arguments: str) -> str:
        return self._run(*arguments, cwd=self.work)

    def _run(self, *arguments: str, cwd: Path) -> str:
        ours = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "VIRTUAL_ENV"))}
        done = subprocess.run(
            [self.python, *arguments], cwd=cwd, capture_output=True, text=True, timeout=600,
            env=ours | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout


def build(what: str, source: Path, into: Path) -> Path:
    """A `wheel` or an `sdist`, as build's front ends ask for one."""
    script = f"from setuptools import build_meta; print(build_meta.build_{what}({str(into)!r}))"
    done = subprocess.run([sys.executable, "-c", script], cwd=source, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return into / done.stdout.splitlines()[-1]


@pytest.fixture(scope="module")
def sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, source / name)
    return build("sdist", source, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def wheel(sdist: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution alone."""
    folder = tmp_path_factory.mktemp("unpacked")
    shutil.unpack_archive(sdist, folder)
    (source,) = folder.iterdir()
    return build("wheel", source, sdist.parent)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Installed:
    found = Installed(tmp_path_factory.mktemp("installed"))
    found.install(wheel)
    return found


def files(*folders: str) -> set[str]:
    kinds = (".py", ".yaml", ".jinja", ".css", ".js", ".json", ".safetensors")
    there = [file for folder in folders for file in (ROOT / folder).rglob("*") if file.suffix in kinds]
    return {file.relative_to(ROOT).as_posix() for file in there}


def test_the_source_distribution_has_code_and_values(sdist: Path):
    with tarfile.open(sdist) as archive:
        has = {name.partition("/")[2] for name in archive.getnames()}
    assert files("opd", "sweeps", "analysis", "hydra_plugins", "conf") | {"LICENSE", "README.md"} <= has


def test_the_wheel_has_the_same_the_values_inside_the_package_and_nothing_else(wheel: Path):
    values = {f"opd/{name}" for name in files("conf")}
    with zipfile.ZipFile(wheel) as archive:
        has = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert has == files("opd", "sweeps", "analysis", "hydra_plugins") | values and "opd/conf/config.yaml" in has


def test_all_of_it_works_where_it_is_installed(installed: Installed):
    where = """
        import json, analysis, sweeps, opd, hydra_plugins.opd_sweeper as plugin
        from opd.config.places import CONF
        from sweeps.snapshot import _files
        found = [CONF, *(each.__file__ for each in (analysis, sweeps, opd, plugin)), *_files()]
        print(json.dumps([str(place) for place in found]))
    """
    places = json.loads(installed("-c", "\n".join(line.strip() for line in where.splitlines())))
    assert places[0] == str(installed.packages / "opd" / "conf")
    assert all(Path(place).is_relative_to(installed.packages) for place in places)
    assert {Path(place).relative_to(installed.packages).parts[0] for place in places} == {
        "analysis", "hydra_plugins", "opd", "sweeps",
    }  # fmt: skip
    assert not [place for place in places if "submitit" in place], "another's plugin is not our code"

    assert "reverse_kl" in installed("-m", "opd.train", "--help")
    assert installed("-m", "opd.train", "--help") == installed(str(installed.python.parent / "opd"), "train", "--help")
    assert "step 2/2" in installed("-m", "opd.train", *TINY)
    (run,) = (installed.work / "outputs" / "main").iterdir()
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    manifest = json.loads((run / "manifest.json").read_text())
    assert (manifest["git_commit"], manifest["git_dirty"]) == (None, None) and manifest["packages"]["opd"]
    assert "mean@1" in installed("-m", "opd.evaluate", f"run={run}", "evaluate.k=1")

    sweep = ["+sweep=epochs", "sweep.grid=[{gamma:[0.5]}]", "sweep.seeds=[0,1]", "study=swept"]
    assert "submitted 2 runs" in installed("-m", "sweeps.submit", *sweep, *TINY, "cluster=local")
    assert "2 runs: 2 finished" in installed("-m", "sweeps.status", "study=swept", "--wait")
    (kept,) = (installed.work / "outputs" / "swept" / ".sweep" / "code").iterdir()
    assert (kept / "opd" / "conf" / "config.yaml").is_file() and not (kept / "conf").exists()

    installed("-m", "analysis.report", "runs=outputs", "out=report", "bootstrap=100", "figures=false")
    page = (installed.work / "report" / "report.html").read_text()
    assert "gamma" in page and "<script" in page
