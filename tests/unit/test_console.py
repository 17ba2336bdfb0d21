"""The command `opd`: a short name for each of the modules that are run."""

import subprocess
import sys
from pathlib import Path

import pytest

from opd.console import COMMANDS, overview
from tests.forks import run_module

ROOT = Path(__file__).parents[2]

# Modules that other commands run.
INNER = {"opd.__main__", "opd.console", "opd.grading.worker", "opd.recipes.worker", "sweeps.local", "sweeps.task"}


def test_every_command_of_the_packages_has_a_name_and_a_sentence():
    files = [file for package in ("opd", "sweeps", "analysis") for file in (ROOT / package).rglob("*.py")]
    run = {file for file in files if 'if __name__ == "__main__":' in file.read_text()}
    modules = {".".join(file.relative_to(ROOT).with_suffix("").parts) for file in run}
    assert {module for module, _ in COMMANDS.values()} == modules - INNER
    assert all(f"  {name:<11}  {what}\n" in overview() for name, (_, what) in COMMANDS.items())


def test_it_lists_them_without_importing_torch_or_hydra():
    script = (
        "import sys; from opd.console import main; main(); assert not {'torch', 'hydra', 'numpy'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", overview() + "\n")


@pytest.mark.parametrize("name", ["train", "status", "report"])  # Hydra's, of the sweeps, of the analysis
def test_a_command_says_and_ends_as_its_module_does(name: str, tmp_path: Path):
    for arguments in (["--help"], ["no-argument"]):
        long = run_module(COMMANDS[name][0], *arguments, cwd=tmp_path)
        short = run_module("opd.console", name, *arguments, cwd=tmp_path)
        # The server of forks has imported some modules, which Python remarks upon.
        said = [line for line in short.stderr.splitlines() if "found in sys.modules" not in line]
        assert (short.returncode, short.stdout, said) == (long.returncode, long.stdout, long.stderr.splitlines())
        assert short.stdout if arguments == ["--help"] else short.returncode


def test_refuses_an_unknown_command_with_the_nearest():
    done = run_module("opd.console", "trian", "gamma=0")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "opd: 'trian': there is no such command; did you mean train? opd --help lists all\n"


@pytest.mark.parametrize(
    ("line", "offers"),
    [
        ("opd ", set(COMMANDS)),
        ("opd tr", set(COMMANDS)),
        ("opd train divergence=hel", {"divergence=hellinger"}),
        ("opd evaluate optim.l", {"optim.lr="}),
        ("opd report ", set()),
    ],
)
def test_bash_completes_commands_and_what_hydra_knows(line: str, offers: set[str]):
    done = run_module("opd.console", "-sc", "query=bash", env={"COMP_LINE": line})
    assert set(done.stdout.split()) == offers and done.returncode == 0
