"""What `python -m sweeps.status` says of runs of one name."""

import json
from pathlib import Path

from opd.records.run_dir import RunDir
from sweeps import status
from sweeps.differences import add_differences
from sweeps.ledger import Ledger
from sweeps.state import read
from tests.unit.sweeps.conftest import submitted, write_status

PLAIN, HALF, NAMED = (f"{arm}-s0" for arm in ("default-01234567", "default-89abcdef", "mis-01234567"))


def shown(study: Path) -> tuple[dict[str, str], list[str]]:
    runs = read(Ledger(study)).runs
    add_differences(Ledger(study), runs)
    return {run.run: run.differs for run in runs}, status.table(runs).splitlines()


def write(study: Path, run: str, **config: object) -> RunDir:
    folder = write_status(study / run, "finished")
    folder.write_config(json.dumps({"name": run.rpartition("-")[0], **config}) + "\n")
    return folder


def test_runs_of_one_name_have_a_column_of_what_differs(tmp_path: Path):
    write(tmp_path, PLAIN, gamma=0.0)
    write(tmp_path, NAMED, gamma=0.9)
    differs, table = shown(tmp_path)
    assert set(differs.values()) == {""} and "differs in" not in table[0]
    write(tmp_path, HALF, gamma=0.5)
    differs, table = shown(tmp_path)
    assert differs == {PLAIN: "gamma=0", HALF: "gamma=0.5", NAMED: ""}
    assert table[0].split()[:3] == ["run", "differs", "in"]
    assert [line.split()[:3] for line in table[1:4]] == [
        [PLAIN, "gamma=0", "finished"], [HALF, "gamma=0.5", "finished"], [NAMED, "finished", "3/10"],
    ]  # fmt: skip


def test_a_run_that_waits_is_told_by_the_config_of_its_submission(tmp_path: Path):
    write(tmp_path, PLAIN, gamma=0.0)
    submitted(Ledger(tmp_path), [HALF], config={"name": "default", "gamma": 0.5})
    assert shown(tmp_path)[0] == {PLAIN: "gamma=0", HALF: "gamma=0.5"}


def test_configs_that_cannot_be_read_leave_the_others_alone(tmp_path: Path):
    write(tmp_path, PLAIN, gamma=0.0)
    write(tmp_path, HALF, gamma=0.5)
    for place, content in enumerate(("[", "- 1", "divergence: 7\n", "a: 1\na: 2\n")):
        run = write_status(tmp_path / f"default-{place:08d}-s0", "finished")
        run.config_file.write_text(content)
    write_status(tmp_path / "default-aaaaaaaa-s0", "finished")
    differs = shown(tmp_path)[0]
    assert differs[PLAIN].endswith("gamma=0") and differs[HALF].endswith("gamma=0.5")
