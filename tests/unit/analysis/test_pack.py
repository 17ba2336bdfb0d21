"""A study in one archive: read elsewhere as what was packed, and hostile ones refused."""

import re
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from analysis import pack, report, study
from opd.errors import UserError
from tests.unit.analysis.fake_runs import Fake, report_files, write_run

FAST = ["figures=false", "cache=false"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two arms of two seeds, and a run that failed with a path in its reason."""
    folder = tmp_path_factory.mktemp("here") / "runs"
    for name, final in (("default", 0.6), ("hellinger", 0.9)):
        for seed in (0, 1):
            config = {"student": {"model": "Owner/Model"}, "paths": {"outputs": str(folder)}, "gamma": final}
            write_run(folder, Fake(name, seed=seed, final=final, num_steps=4, every=2, config=config))
    error = f"{folder}/main/step_000002/model.safetensors: No space left on device (see ~/notes/disk)"
    write_run(folder, Fake("full", state="failed", step=2, num_steps=4, every=2, error=error))
    (folder / "demo" / "damaged").mkdir()
    (folder / "demo" / "damaged" / "config.yaml").write_text("[")
    return folder


@pytest.fixture(scope="module")
def archive(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("packed") / "main.zip"
    assert study.main([f"runs={runs}", f"out={out}", "baseline=hellinger"]) == 0
    return out


def test_the_report_of_an_archive_is_its_page_and_that_of_its_exports_and_of_the_runs(
    runs: Path, archive: Path, tmp_path: Path
):
    out = tmp_path / "elsewhere"
    assert report.main([f"runs={archive}", f"out={out}", "baseline=hellinger", *FAST]) == 0
    with zipfile.ZipFile(archive) as content:
        assert sorted(content.namelist()) == sorted((*pack.EXPORTS, pack.PAGE))
        content.extractall(tmp_path / "unpacked")
    assert (out / "report.html").read_bytes() == (tmp_path / "unpacked" / "report.html").read_bytes()
    made, again = (
        report_files(f"runs={folder}", "out=x", "baseline=hellinger", "bootstrap=100", *FAST)
        for folder in (runs, tmp_path / "unpacked")
    )
    assert made.keys() == again.keys()
    shown = str(made["tables/runs.csv"])
    assert f"{runs}/main" in shown  # what is of this machine alone
    assert again["tables/runs.csv"] == shown.replace(f"{runs}/main/step_000002/", "").replace("~/notes/", "")
    for name in ("tables/scores.csv", "tables/differences.csv", "tables/ranking.csv", "tables/excluded.csv"):
        assert again[name] == made[name]


def test_equal_contents_are_equal_bytes_and_exports_are_packed_too(runs: Path, archive: Path, tmp_path: Path):
    assert study.main([f"runs={runs}", f"out={tmp_path / 'again.zip'}", "baseline=hellinger"]) == 0
    assert (tmp_path / "again.zip").read_bytes() == archive.read_bytes()
    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path / "exports")
    (tmp_path / "exports" / "report.html").unlink()
    assert study.main([f"runs={tmp_path / 'exports'}", f"out={tmp_path / 'third.zip'}", "baseline=hellinger"]) == 0
    assert (tmp_path / "third.zip").read_bytes() == archive.read_bytes()


def test_an_archive_names_no_place_but_what_a_hash_is_of_which_is_said(
    runs: Path, archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    import pyarrow.parquet as pq

    with zipfile.ZipFile(archive) as content:
        content.extractall(tmp_path)
    for name in pack.EXPORTS:
        file = tmp_path / name
        text = file.read_text() if file.suffix == ".json" else str(pq.read_table(file).to_pylist())
        for place in (str(runs), str(runs.parent), "~/notes", "/tmp"):
            assert place not in text, f"{name} names {place}"
    assert str(runs.parent) not in (tmp_path / "report.html").read_text()
    assert "model.safetensors: No space left on device (see disk)" in str(pq.read_table(tmp_path / "runs.parquet"))

    config = {"student": {"model": "/home/me/models/own"}, "prompts": {"suffix": "/no_think", "source": "a/b"}}
    write_run(tmp_path / "own", Fake(num_steps=2, every=2, benchmarks={"x": 3}, config=config))
    study.write_study(tmp_path / "own", tmp_path / "own.zip")
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and said.startswith("opd: warning: student.model=/home/me/models/own: names a place")


def entry(name: str, content: bytes = b"x", **attributes: int) -> Callable[[zipfile.ZipFile], None]:
    def write(archive: zipfile.ZipFile) -> None:
        info = zipfile.ZipInfo(name)
        for key, value in attributes.items():
            setattr(info, key, value)
        archive.writestr(info, content)

    return write


def bomb(archive: zipfile.ZipFile) -> None:
    info = zipfile.ZipInfo("runs.parquet")
    info.compress_type = zipfile.ZIP_DEFLATED
    with archive.open(info, "w") as file:
        for _ in range(40):
            file.write(bytes(2**20))


@pytest.mark.parametrize(
    ("parts", "wrong"),
    [
        ([entry("../runs.parquet")], r"it has '\.\./runs.parquet', which is not a file of an export"),
        ([entry("/tmp/x")], "it has '/tmp/x', which is not"),
        ([entry("runs.parquet/")], "it has 'runs.parquet/', which is not"),
        ([entry("a\\..\\runs.parquet")], "which is not a file of an export"),
        ([entry("runs.parquet"), entry("runs.parquet")], "or has it twice"),
        ([entry("runs.parquet", b"/etc/passwd", create_system=3, external_attr=0o120777 << 16)], "Parquet file"),
        ([bomb], "its files are larger than"),
        ([entry(f"{number:060}") for number in range(1000)], "does not end as analysis.study writes it"),
        ([entry("report.html")], "holds no run directory"),
    ],
    ids=["up", "root", "folder", "backslash", "twice", "link", "bomb", "many", "empty"],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_a_hostile_archive_is_refused_in_a_sentence_and_leaves_nothing(
    parts: list[Callable[[zipfile.ZipFile], None]], wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setattr(pack, "MOST_BYTES", 2**24)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with zipfile.ZipFile(tmp_path / "hostile.zip", "w") as archive:
        for part in parts:
            part(archive)
    assert report.main([f"runs={tmp_path / 'hostile.zip'}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"runs={tmp_path / 'hostile.zip'}") and said.count("\n") == 1
    assert re.search(wrong, said), said
    assert [file.name for file in tmp_path.iterdir()] == ["hostile.zip"]


def lying(content: bytes) -> bytes:
    """Gives the first file in the list a smaller size than it has, and what is packed another sum."""
    at = content.index(b"PK\1\2")
    return content[: at + 24] + struct.pack("<I", 10) + content[at + 28 :]


@pytest.mark.parametrize(
    "change",
    [
        lambda content: b"",
        lambda content: content[:-1],
        lambda content: content[: len(content) // 2],
        lambda content: content + b"x",
        lambda content: content[:200] + bytes(300) + content[500:],
        lying,
        lambda content: content[:-22] + b"PK\6\7" + bytes(16) + content[-22:],
    ],
    ids=["nothing", "cut", "half", "more", "damaged", "lying", "64 bits"],
)
def test_a_damaged_archive_is_refused_in_a_sentence(
    change: Callable[[bytes], bytes], archive: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "main.zip").write_bytes(change(archive.read_bytes()))
    assert report.main([f"runs={tmp_path / 'main.zip'}", f"out={tmp_path / 'out'}"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"runs={tmp_path / 'main.zip'}: is not a readable archive of analysis.study (")
    assert said.count("\n") == 1


def test_a_sweep_does_not_run_again_what_an_archive_holds(archive: Path):
    from analysis.studies import counted_runs

    with pack.opened(archive) as folder:
        assert len(counted_runs(folder)) == 4
    assert not folder.exists()
    with pytest.raises(UserError, match=r"main.zip: wrong"), pack.opened(archive) as folder:
        raise UserError(f"runs={folder}: wrong")
