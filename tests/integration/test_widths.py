"""Runs whose models have heads of unequal width: they are the runs of models that were cut by hand, bit for bit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from opd import cli, evaluate
from opd.errors import UserError
from opd.model.load import load_model
from opd.records.run_dir import RunDir
from opd.step import startup_checks
from opd.train import run_dir, train
from tests.forks import run_ranks
from tests.integration import child
from tests.integration.conftest import composed
from tests.integration.test_ranks import free_port
from tests.integration.test_resume import content
from tests.random_models import save_random
from tests.unit.teacher.tiny_server import TinyServer

ROWS, WIDE = 31, 40  # of the tiny world's tokenizer, and of a head that is wider
ENDS = ("embed_tokens.weight", "lm_head.weight")


def widened(model: Path, rows: int = WIDE) -> Path:
    """A copy of the model whose head has `rows` rows: the further ones are likelier than the others."""
    folder = model.with_name(f"{model.name}-{rows}")
    shutil.copytree(model, folder)
    weights, draw = load_file(folder / "model.safetensors"), torch.Generator().manual_seed(1)
    for name in [name for name in weights if name.endswith(ENDS)]:
        further = 2 * torch.randn(rows - ROWS, weights[name].shape[1], generator=draw)
        weights[name] = torch.cat([weights[name], further])
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    assert config["vocab_size"] == ROWS
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": rows}))
    return folder


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student, tied, and a teacher, untied, each as wide as the tokenizer and wider."""
    folder = tmp_path_factory.mktemp("heads")
    save_random(folder, {"student": {}, "teacher": {"num_layers": 2, "tie_embeddings": False}})
    for name in ("student", "teacher"):
        widened(folder / name)
    widened(folder / "student", 34)
    return folder


@pytest.fixture
def run(heads: Path, small_run: list[str], tmp_path: Path) -> Callable[..., RunDir]:
    """Trains that student with that teacher; returns the run directory."""

    def train_with(student: str, teacher: str, *overrides: str) -> RunDir:
        models = (f"student.model={heads / student}", f"scale.teacher={heads / teacher}")
        given = (*small_run, *models, "optim.lr=0.02", f"paths.outputs={tmp_path / student / teacher}", *overrides)
        config = composed([*given])
        assert train(config).state == "finished"
        return run_dir(config)

    return train_with


FULL = ("support=full", "filter=exact_kl", "filter.p_min=20", "shaping=near_start")
TOPK = ("support=topk", "support.k=5", "whitening=none", "teacher.dtype=int8", "optim.weight_decay=0.1")


@pytest.mark.parametrize("knobs", [FULL, TOPK], ids=["full", "topk"])
def test_a_wider_teacher_teaches_as_one_cut_by_hand(knobs: tuple[str, ...], run, capsys: pytest.CaptureFixture[str]):
    expected = content(run("student", "teacher", *knobs))
    said = capsys.readouterr()
    assert "vocabulary" not in said.out + said.err
    wide = run("student", f"teacher-{WIDE}", *knobs)
    assert content(wide) == expected
    said = capsys.readouterr()
    assert (said.out + said.err).count("further rows take no part") == 1
    assert f"of the output head of teacher.models.0 ({WIDE} rows), further rows" in said.out + said.err
    assert wide.manifest()["vocab_size"] is None
    assert all("response/unused_ids" not in line for line in wide.metrics())


def test_a_wider_student_learns_as_one_cut_by_hand_and_has_its_rows_again(
    run, heads: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    expected = content(run("student", "teacher", *FULL))
    wide = run(f"student-{WIDE}", "teacher", *FULL)
    found = content(wide)
    final = "checkpoints/final/model.safetensors"
    assert {name: found[name] for name in found if name != final} == {n: expected[n] for n in expected if n != final}
    assert wide.manifest()["vocab_size"] == ROWS

    start, end = load_file(heads / f"student-{WIDE}" / "model.safetensors"), load_file(wide.path / final)
    last = load_file(wide.checkpoints / "step_000004" / "model.safetensors")
    assert start.keys() == end.keys() == last.keys()
    for name, weight in end.items():
        if name.endswith(ENDS):
            assert torch.equal(weight[ROWS:], start[name][ROWS:]) and weight.shape == (WIDE, 16)
            assert not torch.equal(weight[:ROWS], start[name][:ROWS]), "the others have learned"
        assert torch.equal(weight[: len(last[name])], last[name])
    folders = {"own": heads / f"student-{WIDE}", "step": wide.checkpoints / "step_000004"}
    folders["final"] = (wide.path / final).parent
    config = {name: json.loads((folder / "config.json").read_text()) for name, folder in folders.items()}
    assert (config["step"]["vocab_size"], config["final"]["vocab_size"]) == (ROWS, WIDE)
    assert config["final"] == config["own"]

    for later in ("step_000003", "step_000004", "final"):
        shutil.rmtree(wide.checkpoints / later)
    wide.update_status(state="preempted")
    assert content(run(f"student-{WIDE}", "teacher", *FULL)) == found, "resumed, it ends as if it had stayed"

    scores = []
    for step in ([], ["step=4"], ["student.vocab_size=null"]):
        outputs = tmp_path / f"evaluated{len(scores)}"
        monkeypatch.setattr("sys.argv", ["opd", f"run={wide.path}", *step, f"paths.outputs={outputs}"])
        cli.main(evaluate._main, evaluate.arguments)
        (folder,) = (outputs / "evaluate").iterdir()
        scores.append([vars(sample) for sample in RunDir(folder).samples(0)])
    assert scores[0] == scores[1] != scores[2], "evaluated over the vocabulary of the run, unless it is said otherwise"


def test_adapters_are_merged_into_a_model_of_its_own_width(run, heads: Path):
    lora = ("lora=all_linear", "student.lora.rank=4")
    narrow = load_file(run("student", "teacher", *lora).checkpoints / "final" / "model.safetensors")
    wide = load_file(run(f"student-{WIDE}", "teacher", *lora).checkpoints / "final" / "model.safetensors")
    start = load_file(heads / f"student-{WIDE}" / "model.safetensors")
    assert wide.keys() == narrow.keys()
    for name, weight in wide.items():
        assert torch.equal(weight[: len(narrow[name])], narrow[name])
        assert torch.equal(weight[len(narrow[name]) :], start[name][len(narrow[name]) :])
        assert weight.shape == start[name].shape


@pytest.mark.apart
def test_two_ranks_give_a_wider_student_its_rows_again(run, heads: Path, small_run: list[str], tmp_path: Path):
    alone = load_file(run(f"student-{WIDE}", "teacher").checkpoints / "final" / "model.safetensors")
    models = [f"student.model={heads / f'student-{WIDE}'}", f"scale.teacher={heads / 'teacher'}", "optim.lr=0.02"]
    outputs = tmp_path / "two"
    outputs.mkdir()
    run_ranks(child.rank, (2, free_port(), [*small_run, *models, f"paths.outputs={outputs}"], outputs), 2)
    (final,) = outputs.glob("main/default-*/checkpoints/final")
    weights = {name: weight for file in final.glob("model-*") for name, weight in load_file(file).items()}
    assert weights.keys() == alone.keys() and json.loads((final / "config.json").read_text())["vocab_size"] == WIDE
    for name, weight in weights.items():
        torch.testing.assert_close(weight, alone[name], atol=1e-4, rtol=1e-3)
        if name.endswith(ENDS):
            assert torch.equal(weight[ROWS:], alone[name][ROWS:])


def test_ids_that_no_token_has_are_sampled_as_others_and_counted(run):
    folder = run("student-34", f"teacher-{WIDE}", "rollouts.every=1")
    shares = [line["response/unused_ids"] for line in folder.metrics() if line["step"]]
    assert len(shares) == 4 and 0 < min(shares) < 1
    tokens = [
        token
        for page in sorted(folder.path.glob("rollouts/*.json"))
        for response in json.loads(page.read_text())["responses"]
        for token in response["tokens"]
    ]
    assert sum(token == "" for token in tokens) / len(tokens) == pytest.approx(sum(shares) / 4, abs=0.05)


def test_a_server_of_another_width_is_said_and_teaches(run, heads: Path, capsys: pytest.CaptureFixture[str]):
    wide = str(heads / f"teacher-{WIDE}")
    server = TinyServer(load_model(wide, revision=None, dtype="float32", key=""), name=wide)
    engine = ("teacher.engine=server", f"teacher.server.urls=[[{server.url}]]")
    knobs = ("support=topk", "support.k=6", "whitening=none", "num_steps=2", "evaluate.benchmarks=[]")
    try:
        run("student", f"teacher-{WIDE}", *engine, *knobs)
    finally:
        server.stop()
    said = capsys.readouterr()
    assert (
        f"scores by its server are taken as they are, over {WIDE} ids; the vocabulary has {ROWS}" in said.out + said.err
    )
    models = (f"student.model={heads / 'student-34'}", f"scale.teacher={heads / 'teacher'}")
    (narrower,) = startup_checks.uncut(composed([*models, *engine]), 34)
    assert narrower.endswith(f"may write any of 34; student.vocab_size={ROWS} leaves out the others")


def test_a_vocabulary_below_the_tokens_is_refused(run):
    with pytest.raises(
        UserError, match=r"^student\.vocab_size: its vocabulary is 30 ids, and the tokenizer has tokens"
    ):
        run("student", "teacher", "student.vocab_size=30")
    with pytest.raises(UserError, match=r"^student\.vocab_size=40: the output head of student\.model has 31 rows; "):
        run("student", f"teacher-{WIDE}", "student.vocab_size=40")


def test_a_preflight_of_a_wider_student_passes(heads: Path, small_run: list[str], tmp_path: Path, capsys):
    from opd.preflight.run import preflight

    models = (f"student.model={heads / f'student-{WIDE}'}", f"scale.teacher={heads / 'teacher'}")
    config = composed(
        [*small_run, *models, f"paths.outputs={tmp_path}", "preflight=true", "support=full", "whitening=none"]
    )
    preflight(config, run_dir(config))
    said = capsys.readouterr()
    assert "this run can start" in said.out
    assert f"student.model ({WIDE} rows)" in said.out + said.err
