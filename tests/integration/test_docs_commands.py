"""Every command of README.md and docs/ is run as it stands, in order, or composed where its mark says why it cannot be.

Each page has a folder of its own, with the tiny world's models, which are kept in the checkout's models/, and the files
that the page shows.
"""

import gzip
import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from analysis.command import parse
from opd.cli import key_values
from opd.config.words import as_read
from opd.records.run_dir import RunDir, Status, find_runs
from sweeps import cli, submit
from sweeps.compose import composer
from tests.blocks import ROOT, Block, blocks, pages

LIMIT = 420  # seconds of a block; the first one may have to train the tiny world's models
RUN_PAGES = [page for page in pages() if any(block.runs for block in blocks(page))]
MARKED = [block for page in pages() for block in blocks(page) if block.mark and block.language == "sh"]
# Programs of other projects, which a composed or unrun block may show.
FOREIGN = {"vllm", "wandb", "source", "hf"}


@pytest.mark.apart
@pytest.mark.parametrize("page", RUN_PAGES, ids=lambda page: page.name)
def test_the_commands_of_a_page_run_as_they_stand(page: Path, tmp_path: Path):
    (ROOT / "models").mkdir(exist_ok=True)
    for shared in ("models", "examples"):
        (tmp_path / shared).symlink_to(ROOT / shared)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "COLUMNS": "120"}
    for block in blocks(page):
        if block.file:
            (tmp_path / block.file).write_text(block.text)
        if block.runs:
            shell = ["bash", "-euo", "pipefail", "-c"] if block.language == "sh" else [sys.executable, "-c"]
            done = subprocess.run(
                [*shell, block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=LIMIT
            )
            told = f"{page.name}, line {block.line}:\n{block.text}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
            assert done.returncode == 0 and "Traceback" not in done.stderr, told
    assert not undocumented(tmp_path / "outputs")


@pytest.mark.apart
@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("python -m opd.train divergence=hell", "divergence=hellinger"),
        ("python -m opd.train optim.lr=1e-3 scale=q", "scale=qwen3_0_6b scale=qwen3_4b"),
        ("python -m http.server ", ""),
    ],
)
def test_the_completion_that_a_page_gives_completes(typed: str, offered: str):
    (function,) = [block.text for block in blocks(ROOT / "docs" / "getting-started.md") if "_opd()" in block.text]
    press = 'COMP_LINE=$1 COMP_POINT=${#1}; read -ra COMP_WORDS <<< "$1"; _opd; echo "${COMPREPLY[@]}"'
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    pressed = subprocess.run(
        ["bash", "-euc", function + press, "bash", typed],
        cwd=ROOT,
        env=os.environ | {"PATH": path},
        capture_output=True,
        text=True,
        check=True,
    )
    assert pressed.stdout.strip() == offered, pressed.stderr


def undocumented(outputs: Path) -> set[str]:
    """Keys and files of these runs' records that docs/records.md does not name."""
    said = (ROOT / "docs" / "records.md").read_text()
    named = set(re.findall(r"`([^`\n]+)`", re.sub(r"```.*?```", "", said, flags=re.S)))
    found: set[str] = set()
    for run in find_runs(outputs) if outputs.is_dir() else []:
        found |= set(json.loads(run.status_file.read_text())) | set(run.manifest())
        found |= {name for line in run.metrics() for name in map(general, line)}
        for step in run.evaluations():
            found |= set(json.loads(run.samples_file(step).read_text().splitlines()[0]))
        for file in run.texts().values():
            found |= set(json.loads(gzip.decompress(file.read_bytes()).splitlines()[0]))
        found |= {
            file.name for file in run.path.iterdir() if file.is_file() and file.name[0] != "." and file.name not in said
        }
    return found - named


def test_a_key_that_the_page_of_records_does_not_name_is_found(tmp_path: Path):
    run = RunDir(tmp_path / "default-00000000-s0")
    run.write_config("name: default\n")
    run.write_status(Status("finished", 0, 0, None, "", "", "", None, 1))
    run.write_manifest({"python": "3.11", "colour": "blue"})
    run.append_metrics(
        {"step": 0, "time/rollout": 1.0, "time/lunch": 1.0, "evaluate/gsm8k/mean@8": 0.5, "evaluate/luck": 1}
    )
    assert undocumented(tmp_path) == {"colour", "lunch", "evaluate/luck"}


def general(key: str) -> str:
    """A metric's key as the page writes it: stages of time by themselves, scores of any benchmark and k as one."""
    if key.startswith("evaluate/"):
        benchmark = "<benchmark>/" if key.count("/") > 1 else ""
        score = re.sub(r"@\d+", "@k", key.rpartition("/")[2])
        return f"evaluate/{benchmark}<score>" if score in SCORES else key
    return key.removeprefix("time/")


SCORES = ("mean@k", "best@k", "best@k_resampled", "maj@k", "truncated", "num_tokens")


@pytest.mark.parametrize("block", MARKED, ids=lambda block: f"{block.page}:{block.line}")
def test_a_block_that_is_not_run_could_be(block: Block, tmp_path: Path, capsys: pytest.CaptureFixture):
    for words in block.commands():
        if words[0] == "make":
            subprocess.run([*words, "-n"], cwd=ROOT, check=True, capture_output=True)
        elif words[0] == "torchrun" or words[:2] == ["python", "-m"]:
            assert block.mark == "composed", words
            could_run(*module_and_arguments(words), tmp_path)
        else:
            assert words[0] in FOREIGN, f"{words[0]}: nothing is known of this program"


def module_and_arguments(words: list[str]) -> tuple[str, list[str]]:
    place = words.index("-m") + 1
    return words[place], words[place + 1 :]


def could_run(module: str, arguments: list[str], folder: Path) -> None:
    """Composes and checks what the command would; raises `UserError` where it would be refused."""
    if module == "opd.train":
        parser = OverridesParser.create()
        given = [word for word in arguments if word not in ("--cfg", "job", "-m") and not word.startswith("hydra")]
        given = as_read(given, multirun="-m" in arguments)
        # Of a search the values are Hydra's to choose; what is left must be a run.
        given = [word for word in given if not parser.parse_override(word).is_sweep_override()]
        if any(word.startswith("+sweep=") for word in given):
            return submit.main([*given, f"paths.outputs={folder}", "--dry-run"])
        with composer() as composed:
            composed.config(given)
    elif module == "sweeps.submit":
        submit.main([*(word for word in arguments if word != "--dry-run"), f"paths.outputs={folder}", "--dry-run"])
    elif module in ("analysis.report", "analysis.study"):
        parse(arguments, importlib.import_module(module).Arguments)
    else:
        known = importlib.import_module(module)
        key_values(cli.flags(arguments, known.FLAGS)[1], known.KEYS)
