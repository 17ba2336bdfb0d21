"""`preflight=true` and the checks that every run begins with: what they show, and what they refuse."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from opd import cli, train
from opd.config import plugins
from opd.data import hub
from opd.data.tasks import load as load_problems
from opd.model.load import load_model, load_tokenizer, stop_token_ids
from opd.preflight import checks
from opd.records import config_argument
from opd.records.run_dir import RunDir
from opd.step import startup_checks
from tests.integration.conftest import composed

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, small_run: list[str]):
    """Runs `python -m opd.train …` on the random models in this process; returns exit status, stdout and stderr."""

    def run(*arguments: str, small: bool = True) -> tuple[int, str, str]:
        base = small_run if small else []
        monkeypatch.setattr(sys, "argv", ["opd", *base, f"paths.outputs={tmp_path / 'outputs'}", *arguments])
        capfd.readouterr()
        status = 0
        try:
            cli.main(train._main, config_argument.expand)
        except SystemExit as stop:
            status = int(stop.code or 0)
        said = capfd.readouterr()
        return status, said.out, said.err.strip()

    return run


@pytest.fixture
def other_end(models: Path, tmp_path: Path) -> Path:
    """A teacher that is the large one, and ends its texts with <|unknown|> too."""
    folder = tmp_path / "other_end"
    shutil.copytree(models / "large", folder)
    file = folder / "generation_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"eos_token_id": [1, 2]}))
    return folder


def test_a_preflight_shows_the_run_and_trains_nothing(command: Command, tmp_path: Path):
    status, out, err = command("preflight=true", "epochs=1", "+experiment=hard_switch")
    assert status == 0, err
    for shown in ("Texts", "student.model", "teacher.models.2", "<|end|> 1", "as the student's"):
        assert shown in out
    source = composed([]).prompts.source
    first = load_problems("train", num=1, seed=0, mix=source.mix)[0]  # pyright: ignore[reportAttributeAccessIssue]
    title = f"the first prompt, {first.id}, as student and teachers read it, in {len(first.problem)} tokens:"
    assert f"{title}\n  {first.problem!r}\n" in out
    work = {line[:46].strip(): line[46:].split() for line in out.splitlines() if line.startswith(" ")}
    assert "Work of 4 steps over 32 prompts" in out
    assert work["prompts"] == ["4", "16"] and work["responses sampled"] == ["8", "32"]
    assert work["tokens sampled, at most"] == ["96", "384"]
    assert work["tokens scored by teachers, at most"] == [str(8 * 76), f"{4 * 8 * 76:,}"]
    assert work["evaluations"] == ["3"] and work["answers of an evaluation"] == ["6", "18"]
    assert out.count(": mean entropy, nats") == 3
    (itself,) = [line for line in out.splitlines() if "student as its own teacher" in line]
    assert abs(float(itself.split()[-2])) <= 1e-6
    assert "Memory of each of 1 ranks, MiB, on a cpu device" in out and "1 at once" in out
    assert out.splitlines()[-1] == "preflight: this run can start"
    assert not (tmp_path / "outputs").exists()


def test_a_preflight_shows_the_users_first_prompt_to_the_letter(
    command: Command, models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "examples" / "plugin")
    monkeypatch.setattr(plugins, "_used", {})
    student = tmp_path / "student"
    shutil.copytree(models / "student", student)
    (student / "chat_template.jinja").write_text("{% for turn in messages %}{{ turn.content }};{% endfor %}")
    (tmp_path / "own.csv").write_text('question,more\n"17+26= ","5\n-3,"\n1+1,2\n')
    own = [f"student.model={student}", "prompts=own", f"prompts.source.file={tmp_path / 'own.csv'}", "batch_size=1"]
    own += [
        "prompts.source.problem={question}\\n{more}",
        "prompts.suffix=",
        "prompts.max_prompt_length=40",
        "num_steps=2",
    ]
    given = [f"scale.teacher={models / 'large'}", f"paths.outputs={tmp_path / 'outputs'}", "evaluate.benchmarks=[]"]
    given += ["max_response_length=12", "preflight=true"]
    status, out, err = command(*own, *given, small=False)
    assert status == 0, err
    assert "the first prompt, own-00001, as student and teachers read it, in 14 tokens:" in out
    assert "  '17+26= <|unknown|>5<|unknown|>-3,;'\n" in out  # as the tokenizer reads the ends of lines
    status, out, err = command(*own, *given, "plugins=[opd_example]", "context=twice", small=False)
    assert status == 0, err
    assert "as the student reads it, in 14 tokens:" in out and "the same, as the teachers read it, in 28 tokens:" in out
    (student / "chat_template.jinja").write_text(
        "{% for turn in messages %}{{ turn.role[0] }}:{{ turn.content }}{% endfor %}"
    )
    status, out, err = command(*own, *given, small=False)
    assert status == 0 and err.count("ignores add_generation_prompt and leaves 'a:', which it writes before") == 1, err


def test_a_preflight_leaves_the_run_to_be_run(command: Command, tmp_path: Path):
    assert command("preflight=true")[0] == 0
    assert command()[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    assert command("preflight=true")[0] == 0 and RunDir(path).status().state == "finished"


def test_the_published_setting_is_planned_without_its_weights(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "reachable", lambda: False)
    where = ["scale=qwen3_4b", "preflight=true", "plan.ranks=8", "plan.gpu_gib=80"]
    status, out, err = command(*where, small=False)
    assert status == 2 and err.startswith("opd: memory: learning takes ")
    for knob in ("compute.dtype=bfloat16", "teacher.dtype=bfloat16", "compute.activation_checkpointing=true"):
        assert knob in err
    turned = err.partition("; set ")[2].partition(", or start")[0].split()
    status, out, err = command(*where, *turned, small=False)
    assert status == 0 and "Memory of each of 8 ranks, GiB, on a cuda device of 80.0" in out, err
    assert "not checked: tokenizers: student.model='Qwen/Qwen3-4B-Base'" in out and "<|im_end|> 151645" in out


def test_a_run_that_cannot_fit_here_is_refused_before_it_begins(command: Command, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(startup_checks, "SMALL", 0)
    monkeypatch.setattr(startup_checks, "free_memory", lambda: 2**18)
    status, _, err = command()
    assert (
        status == 2 and err.startswith("opd: memory: ") and "GiB of each of 1 ranks" in err and "Traceback" not in err
    )
    monkeypatch.setattr(startup_checks, "free_memory", lambda: 2**30)
    assert command()[0] == 0


def test_a_teacher_that_ends_otherwise_is_refused_unless_the_student_stops_there_too(
    command: Command, other_end: Path, tmp_path: Path
):
    teacher = f"teacher.models=[{other_end}]"
    status, _, err = command(teacher)
    assert status == 2 and "ends a text with <|unknown|> (2)" in err and "Traceback" not in err
    setting = err.partition("; set ")[2].strip('"')
    assert setting == "student.stop_tokens=['<|end|>','<|unknown|>']"
    assert command(teacher, setting)[0] == 0
    assert (
        command(teacher, "student.stop_tokens=['<|end|>']")[2].count("but the student stops only at") == 1
    )  # a choice: a warning
    assert "is not a token of the student's vocabulary" in command("student.stop_tokens=['<|nope|>']")[2]


def test_stop_tokens_end_responses_and_go_into_checkpoints(command: Command, models: Path, tmp_path: Path):
    from opd.data.batch import Prompt, Sampling
    from opd.model.sharded import shard
    from opd.ranks import dist
    from opd.step.assemble import build_sampler, load_student, load_student_tokenizer

    tokens = ["<|end|>", "3", "4", "5"]
    setting = f"student.stop_tokens={tokens}".replace(" ", "")
    config = composed([f"student.model={models / 'student'}", setting])
    tokenizer = load_student_tokenizer(config)
    model = load_student(config, tokenizer)
    ids = {tokenizer.get_vocab()[token] for token in tokens}
    prompt = Prompt("0", "", "", "", tuple(tokenizer.encode("17+26=")))
    root = shard(model, dist.start(timeout=60.0), config.compute, learns=False)
    rollout = build_sampler(config, root, tokenizer).sample([prompt], Sampling(64, 24, 1.0, 1.0, 0), key=(0,))
    rows = [row[mask].tolist() for row, mask in zip(rollout.tokens, rollout.mask, strict=True)]
    assert all(not ids & set(row[:-1]) for row in rows)
    assert {row[-1] for row in rows} >= ids - {tokenizer.eos_token_id}

    assert command(setting)[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    final = str(path / "checkpoints" / "final")
    kept = load_model(final, revision=None, dtype="float32", key="")
    assert set(stop_token_ids(kept, load_tokenizer(final, revision=None, key=""))) == ids


def test_a_teacher_without_knowledge_is_refused(command: Command, models: Path, tmp_path: Path):
    folder = tmp_path / "uniform"
    shutil.copytree(models / "large", folder)
    model = load_model(str(folder), revision=None, dtype="float32", key="")
    with torch.no_grad():
        model.get_input_embeddings().weight.mul_(1e-3)  # pyright: ignore
    model.save_pretrained(folder)
    status, _, err = command("preflight=true", f"teacher.models=[{folder}]")
    assert status == 2 and "nearly uniform" in err and err.startswith("opd: teacher.models.0=")


@pytest.mark.parametrize("fault", ["temperature", "alignment", "precision"])
def test_a_fault_of_the_teachers_path_shows_in_the_student_as_its_own_teacher(
    fault: str, command: Command, monkeypatch: pytest.MonkeyPatch
):
    loader = checks.scorer_loader

    def faulty(*given, **more):
        scorer = loader(*given, **more)()
        if fault == "temperature":
            scorer.temperature *= 1.1
        elif fault == "precision":
            scorer.root.model.bfloat16()
        else:
            scores = scorer.scores

            def shifted(*given):
                found = scores(*given)
                return type(found)(found.logp.roll(1, 1), found.entropy)

            scorer.scores = shifted
        return lambda: scorer

    monkeypatch.setattr(checks, "scorer_loader", faulty)
    status, _, err = command("preflight=true")
    assert status == 2 and "from its own as a teacher" in err and "Traceback" not in err


def test_another_teacher_temperature_is_a_choice(command: Command):
    status, out, _ = command("preflight=true", "teacher.temperature=1.5")
    assert status == 0 and "at another teacher.temperature" in out


REFUSED = {
    "plan.ranks=8": "a plan needs both to describe a machine",
    "plan.ranks=8 plan.gpu_gib=80": "set preflight=true",
    "plan.ranks=0 plan.gpu_gib=80 preflight=true": "plan.ranks=0",
    "student.stop_tokens=[]": "student.stop_tokens",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_a_plan_that_means_nothing_is_refused(arguments: str, command: Command):
    status, _, err = command(*arguments.split())
    assert status == 2 and REFUSED[arguments] in err and len(err.splitlines()) == 1
