"""Bad input: one clear sentence that names the key and what would be right, exit status 2, no traceback."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from opd import cli, evaluate, train
from opd.errors import UserError
from opd.records import config_argument
from opd.records.run_dir import RunDir
from tests.integration.conftest import composed


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path, small_run: list[str]):
    """Runs `python -m opd.train …` (or another entry) in this process; returns exit status and what stderr says."""

    def run(*arguments: str, entry: Callable[[], None] | None = None, small: bool = True) -> tuple[int, str]:
        main, rewrite = (train._main, config_argument.expand) if entry is None else (entry, evaluate.arguments)
        base = [*small_run, f"paths.outputs={tmp_path / 'outputs'}"] if small else [f"paths.outputs={tmp_path}"]
        monkeypatch.setattr(sys, "argv", ["opd", *base, *arguments])
        capfd.readouterr()
        try:
            cli.main(main, rewrite)
        except SystemExit as stop:
            status = stop.code
        else:
            status = 0
        return status, capfd.readouterr().err.strip()

    return run


def one_sentence(error: str) -> str:
    """The sentence that stands on the last line; nothing else but warnings may stand there."""
    lines = [line for line in error.splitlines() if line.startswith("opd:") and "warning" not in line]
    assert len(lines) == 1, error
    assert "Traceback" not in error
    assert len(lines[0]) < 400
    return lines[0].removeprefix("opd: ")


# arguments → what the sentence must name
CONFIG = {
    "optim.lr=-1": "optim.lr=-1: should be greater than 0",
    "optim.lr=nan": "optim.lr=",
    "optim.lrr=1": "optim.lrr: there is no such key; did you mean optim.lr?",
    "+foo=1": "foo: there is no such key",
    "++student.modl=x": "did you mean student.model?",
    "batch_size=3.5": "batch_size=3.5: should be a valid integer",
    "batch_size=abc": "batch_size='abc'",
    "batch_size=true": "batch_size=True",
    "batch_size=100000": "batch_size=100000: the prompt set has only 32 prompts",
    "gamma=2": "gamma=2: should be less than or equal to 1",
    "seed=-1": "seed=-1",
    "name=../../etc": "name='../../etc'",
    "num_steps=1000": "num_steps=1000: epochs=1 over 32 prompts gives 8 steps; set epochs=125",
    "whitening=bad": "should be 'none', 'sample', 'group' or 'batch'",
    "signal.entropy=-0.1": "signal.entropy=-0.1: should be a number that is at least 0, or [first, last]",
    "signal.reward=[1.0]": "signal.reward=[1.0]: should",
    "+signal.rewrd=1": "signal.rewrd: there is no such term; did you mean signal.reward?",
    "signal.divergence=0": "signal: every weight is 0, so nothing is learned; give a term a weight",
    "support=full whitening=none signal.divergence=0 signal.reward=1": "signal and support: only the divergence is",
    "support=full signal.reward=1 shaping.extrapolation=2": "support and shaping.extrapolation: ",
    "shaping.reward_baseline=group": "set signal.reward above 0, or shaping.reward_baseline=none",
    "shaping.anchor=sft:small": "shaping.anchor and signal: no term uses the anchor",
    "entropy_coef=-0.1": "entropy_coef: there is no such key; it is now signal.entropy",
    "max_response_length=0": "max_response_length=0",
    "evaluate.texts=-1": "evaluate.texts=-1: should be greater than or equal to 0",
    "divergence=nope": "divergence=nope: there is no such choice; the choices are",
    "+experiment=nope": "experiment=nope: there is no such choice; the choices are",
    "scale=nope": "scale=nope: there is no such choice",
    "nogroup=3": "nogroup: there is no such key",
    "divergence._target_=os.system": "only functions of opd.objective.divergence may stand here",
    "divergence._target_=opd.objective.divergence.torch.load": "only functions of opd.objective.divergence",
    "filter._target_=opd.objective.filter.getattr": "only functions of opd.objective.filter may stand",
    "+divergence.alhpa=0.5": "divergence.alhpa: reverse_kl has no such knob",
    "filter=none filter.p_min=30": "filter.p_min=30: should be 0 for filter=none",
    "filter=kl filter.p_min=101": "filter.p_min=101",
    "filter=kl filter.p_min=70 filter.p_max=30": "the percentile range keeps nothing",
    "filter=kl filter.score=loudness": "filter.score='loudness'",
    "rollout_correction=none rollout_correction.low=0.3": "rollout_correction.low=0.3: should be None",
    "rollout_correction.low=1.5": "ratio 1, would lie outside the range",
    "rollout_correction.low=3": "would lie outside the range",
    "rollout.temperature=0": "rollout.temperature=0: should be greater than 0",
    "scale.lr=0": "scale.lr=0: should be greater than 0",
    "lr=1": "lr: there is no such key; did you mean optim.lr?",
    "student.lora.rank=8": "student.lora.rank: there is no such key with this choice; lora=all_linear has it",
    "rollout.top_p=1.5": "rollout.top_p=1.5",
    "rollout.dtype=int3": "rollout.dtype='int3'",
    "ensemble=hard_switch": "hard_switch",
    "teacher=ladder": "single",
    "+experiment=hard_switch ensemble.boundaries=[0.5]": "ensemble.boundaries",
    "+experiment=hard_switch ensemble.boundaries=[0.7,0.2]": "ensemble.boundaries",
    "teacher.models=[]": "teacher.models=[]",
    "teacher.models=[sft:nope]": "'sft:nope' names no recipe",
    "evaluate.benchmarks=[nope]": "'nope' has no entry in evaluate.sources; known here: arithmetic",
    "+experiment=hard_switch ensemble=geometric ensemble.normalize=true": "set ensemble.normalize=false",
    "gamma=0.5 divergence=hellinger": "set gamma=0 and credit=reward_to_go instead of gamma=0.5, divergence=reverse_kl",
    "filter=partition": "set divergence=split too",
    "divergence=split": "set filter=partition too",
    "divergence=split filter=partition divergence.inside._target_=os.system": "only functions of",
    "evaluate.temperature=0": "greedy answers are all alike",
    "optim.betas=[0.9]": "optim.betas",
    "optim.warmup_steps=4": "the learning rate would never reach optim.lr",
    "checkpoint.keep=0": "checkpoint.keep=0",
    "recipes.student.steps=0": "recipes.student.steps=0",
    "prompts.source.kind=web": "prompts.source",
}


SERVED = "teacher.engine=server teacher.server.urls=[[http://h:1]]"
ENGINES = {
    "teacher.engine=remote": "teacher.engine='remote': should be 'local', 'server' or 'vllm'",
    "teacher.engine=server": "teacher.server.urls has 0 entries for 1 teachers; give [[URL]]",
    "teacher.engine=server teacher.server.urls=[http://h:1]": "teacher.server.urls.0='http://h:1': should be a valid",
    f"{SERVED} teacher=ladder ensemble=arithmetic": "teacher.server.urls has 1 entries for 3 teachers",
    "teacher.engine=server teacher.server.urls=[[http://me:hush@h]]": "looks like an address with a user",
    'teacher.engine=server teacher.server.urls=[["http://h/?api_key=hush"]]': "looks like an address with a key",
    'teacher.engine=server teacher.server.urls=[["http://h/?region=hush"]]': "without user, password or query",
    "teacher.engine=server teacher.server.urls=[[host:8000]]": "must be like [http://host:8000]",
    "teacher.engine=server teacher.server.urls=[[http://h,http://h/v1]]": "teacher.server.urls.0 names a server twice",
    "teacher.server.urls=[[http://h:1]]": "teacher.engine=local does not use it; set teacher.engine=server",
    "teacher.server.patience=5": "teacher.server.patience and teacher.engine: teacher.engine=local does not use it",
    "teacher.vllm.max_num_seqs=5": "set teacher.engine=vllm, or leave it out",
    f"{SERVED} teacher.server=null": "teacher.server: is null, and teacher.engine=server needs it",
    f"{SERVED} teacher.server.concurency=5": "did you mean teacher.server.concurrency?",
    f"{SERVED} teacher.server.api_key_env=sk-8": "teacher.server.api_key_env='sk-8'",
    "teacher.engine=vllm teacher.dtype=int8": "set teacher.dtype=bfloat16, or teacher.engine=local",
    "teacher.dtype=int8 compute.offload=true": "set teacher.dtype=bfloat16, or compute.offload=false",
    "compute.attention=flash_attention_2": "set compute.dtype=bfloat16, or compute.attention=sdpa",
    "compute.attention=flash_attention_2 compute.dtype=bfloat16": "set teacher.dtype=bfloat16, or compute.attention=",
    f"{SERVED} teacher.dtype=bfloat16": "leave out teacher.dtype=bfloat16, and give it to the server",
    f"{SERVED} rollout.temperature=0.7": "set rollout.temperature=1.0, which teacher.temperature (now 0.7) follows",
    f"{SERVED} support=full whitening=none": "set support=topk or sampled, or teacher.engine=local",
    f"{SERVED} support=topk support.of=union whitening=none": "set support.of=teacher, or teacher.engine=local",
    f"{SERVED} filter=exact_kl filter.p_min=70": "set filter=kl, or teacher.engine=local",
    f"{SERVED} filter=teacher_entropy filter.p_max=20": "set filter=student_entropy or filter=kl, or",
    f"{SERVED} divergence=entropy_aware": "set another divergence, or teacher.engine=local",
    "teacher.engine=vllm ensemble=best_of teacher=ladder ensemble.by=entropy": "set ensemble.by=likelihood, or",
    "teacher.engine=vllm teacher.temperature=2.0": "teacher.temperature (now 2.0)",
    "teacher.engine=vllm teacher.vllm.gpu_memory_utilization=0.5": "give one of the two, and null for the other",
    "teacher.engine=vllm support=topk whitening=none teacher=ladder ensemble=arithmetic": "set ensemble=single or hard",
}


# What the command alone refuses, and what only the models and prompts show.
BEGUN = {
    "max_response_length=60": "more than the student's 64 positions",
    "evaluate.max_response_length=64": "evaluate.max_response_length=64",
    "prompts.template=chat": "chat template",
    "prompts.max_prompt_length=1": "prompts.max_prompt_length",
    "batch_size": "batch_size: has no value; type batch_size=VALUE",
    "+sweep=gamma": "+sweep=gamma: names several runs; submit them with python -m sweeps.submit +sweep=gamma, or give",
    "divergence hellinger": "divergence: has no value; type divergence=hellinger",
    "signal={a:": "signal: '{a:' cannot be read",
    "experiment=mis": "experiment: has no default choice here to override; give +experiment=mis",
    "lora=all_linear student.lora.rank=100000": "student.lora.rank=100000: no layer has a rank of more than",
    "config=/nowhere/config.yaml": "config=/nowhere/config.yaml: there is no such file",
    "teacher.engine=server teacher.server.urls=[[http://127.0.0.1:9]]": "http://127.0.0.1:9 cannot be reached",
}
# Of the others one of each kind is given to the command too.
KINDS = [
    "optim.lr=-1",
    "optim.lrr=1",
    "divergence=nope",
    "nogroup=3",
    "divergence._target_=opd.objective.divergence.torch.load",
    "filter=partition",
    "batch_size=100000",
    "teacher.engine=server teacher.server.urls=[[http://me:hush@h]]",
]


@pytest.mark.parametrize("arguments", CONFIG | ENGINES)
def test_a_bad_config_is_refused_in_one_sentence(arguments: str, small_run: list[str]):
    with pytest.raises(UserError) as refused:
        composed([*small_run, *arguments.split()])
    sentence = str(refused.value)
    assert (CONFIG | ENGINES)[arguments] in one_sentence(f"opd: {sentence}") and "\n" not in sentence
    assert "hush" not in sentence, "what was given in the place of a key is not repeated"


@pytest.mark.parametrize("arguments", [*BEGUN, *KINDS])
def test_the_command_refuses_in_one_sentence(arguments: str, command, small_run: list[str]):
    status, error = command(*arguments.split())
    sentence = one_sentence(error)
    assert status == 2 and "hush" not in error
    if arguments in BEGUN:
        assert BEGUN[arguments] in sentence
    else:
        with pytest.raises(UserError) as refused:
            composed([*small_run, *arguments.split()])
        assert sentence == str(refused.value)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("", "student.model: has no value; give it one, as student.model=VALUE"),
        (
            "student.model=x",
            "prompts.source.file: has no value; give it a file of problems (JSONL, CSV or Parquet), or name a dataset "
            "of the Hugging Face Hub as prompts.source.hub=OWNER/NAME",
        ),
    ],
)
def test_what_a_scale_leaves_open_must_be_given(given: str, sentence: str, command):
    status, error = command("scale=own", *given.split(), small=False)
    assert status == 2 and one_sentence(error) == sentence


def break_model(source: Path, target: Path, damage: Callable[[Path], None]) -> Path:
    shutil.copytree(source, target)
    damage(target)
    return target


def other_vocabulary(folder: Path) -> None:
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["7"], vocabulary["8"] = vocabulary["8"], vocabulary["7"]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))


def nan_weights(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"].fill_(float("nan"))
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def truncate(name: str) -> Callable[[Path], None]:
    return lambda folder: os.truncate(folder / name, (folder / name).stat().st_size // 2)


MODELS = {
    "absent": (lambda folder: shutil.rmtree(folder), "there is no such directory"),
    "empty": (lambda folder: [file.unlink() for file in folder.iterdir()], "can be loaded from this directory"),
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "can be loaded from this directory"),
    "torn weights": (truncate("model.safetensors"), "can be loaded from this directory"),
    "torn config": (truncate("config.json"), "can be loaded from this directory"),
    "torn tokenizer": (truncate("tokenizer.json"), "can be loaded from this directory"),
    "NaN weights": (nan_weights, "logits are not finite"),
}


OF_STUDENTS = ("torn weights", "NaN weights")  # in make test; the others apart


@pytest.mark.parametrize(
    ("damage", "role"),
    [
        pytest.param(damage, role, marks=[] if role == "teacher" or damage in OF_STUDENTS else [pytest.mark.apart])
        for damage in MODELS
        for role in ("student", "teacher")
    ],
)
def test_a_bad_model_is_refused_by_its_key(damage: str, role: str, command, models: Path, tmp_path: Path):
    breaks, says = MODELS[damage]
    bad = break_model(models / "medium", tmp_path / "bad", breaks)
    key = {"student": "student.model", "teacher": "teacher.models"}[role]
    status, error = command(f"student.model={bad}" if role == "student" else f"teacher.models=[{bad}]")
    sentence = one_sentence(error)
    assert status == 2 and sentence.startswith(key) and says in sentence


def test_a_teacher_of_another_vocabulary_is_refused(command, models: Path, tmp_path: Path):
    bad = break_model(models / "medium", tmp_path / "bad", other_vocabulary)
    status, error = command(f"teacher.models=[{bad}]")
    assert status == 2 and "its vocabulary is not the student's: token" in one_sentence(error)


def edited(source: Path, target: Path, file: str, **changes: object) -> Path:
    shutil.copytree(source, target)
    (target / file).write_text(json.dumps(json.loads((target / file).read_text()) | changes))
    return target


def test_a_teacher_with_too_few_positions_is_refused(command, models: Path, tmp_path: Path):
    short = edited(models / "medium", tmp_path / "short", "config.json", max_position_embeddings=16)
    status, error = command(f"teacher.models=[{short}]")
    assert status == 2 and one_sentence(error).startswith("teacher.models.0: has 16 positions, and the longest prompt")
    status, error = command(f"teacher.models=[{short}]", "preflight=true")
    assert status == 2 and "teacher.models.0: has 16 positions" in one_sentence(error)


def test_sampling_settings_of_a_model_that_does_not_sample_fail_no_checkpoint(command, models: Path, tmp_path: Path):
    greedy = {"do_sample": False, "temperature": 0.6, "top_p": 0.95}
    mended = edited(models / "student", tmp_path / "mended", "generation_config.json", **greedy)
    status, _ = command(f"student.model={mended}")
    assert status == 0
    refused = edited(models / "student", tmp_path / "refused", "generation_config.json", max_new_tokens=-1, **greedy)
    status, error = command(f"student.model={refused}")
    assert status == 2 and "its generation_config.json cannot be used: `max_new_tokens` must" in one_sentence(error)


# What only the models, the prompts and the machine show.
LATE = {
    "teacher.models=[{missing}]": "teacher.models.0='{missing}': there is no such directory",
    "student.model={file}": "student.model='{file}': is a file; give the directory that holds the model",
    "scale=own prompts.source.file={missing}": "prompts.source.file={missing}: there is no such file",
    "scale=own prompts.source.file={folder}": "prompts.source.file={folder}: is a directory; name a file in it",
    "+benchmark@evaluate.sources.aime24=aime24 evaluate.benchmarks=[aime24] evaluate.sources.aime24.file={folder}": (
        "evaluate.sources.aime24.file={folder}: is a directory; name a file in it"
    ),
    "max_response_length=60": "more than the student's 64 positions",
}


@pytest.mark.parametrize("given", LATE)
def test_a_new_run_that_is_refused_leaves_no_directory(given: str, command, models: Path, tmp_path: Path):
    (tmp_path / "folder").mkdir()
    places = {"missing": tmp_path / "missing", "file": tmp_path / "file", "folder": tmp_path / "folder"}
    places["file"].write_text("")
    own = [f"student.model={models / 'student'}", f"paths.outputs={tmp_path / 'outputs'}"] if "own" in given else []
    status, error = command(*given.format(**places).split(), *own, small=not own)
    assert status == 2 and LATE[given].format(**places) in one_sentence(error)
    assert error.count(str(places["missing"])) <= 1 and not (tmp_path / "outputs").exists()


def test_a_refused_run_can_go_on_when_it_is_mended(command, models: Path, tmp_path: Path):
    teacher = tmp_path / "teacher"
    assert command(f"teacher.models=[{teacher}]")[0] == 2
    shutil.copytree(models / "large", teacher)
    assert command(f"teacher.models=[{teacher}]")[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    assert RunDir(path).status().state == "finished" and RunDir(path).status().attempts == 1


def test_the_records_of_a_run_that_cannot_be_resumed_stay_as_they_are(command, models: Path, tmp_path: Path):
    teacher = tmp_path / "teacher"
    shutil.copytree(models / "large", teacher)
    assert command(f"teacher.models=[{teacher}]")[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    RunDir(path).update_status(state="preempted")
    teacher.rename(tmp_path / "moved")
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    status, error = command(f"teacher.models=[{teacher}]")
    assert status == 2 and "there is no such directory" in one_sentence(error)
    assert before == {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_a_submitted_run_records_its_refusal(command, tmp_path: Path, monkeypatch):
    monkeypatch.setenv(train.SUBMITTED, "1")
    status, error = command(f"teacher.models=[{tmp_path}/missing]")
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    assert status == 2 and RunDir(path).status().state == "failed"
    assert RunDir(path).status().error == one_sentence(error)


def test_a_run_that_fails_while_it_trains_says_so_in_its_record(command, tmp_path: Path, monkeypatch):
    from opd.step import loop

    def failing(*_):
        raise UserError("no such luck")

    monkeypatch.setattr(loop, "step", failing)
    assert command()[0] == 2
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    assert RunDir(path).status().state == "failed" and RunDir(path).status().error == "no such luck"


def test_a_changed_config_in_an_old_directory_is_refused_by_its_keys(command, tmp_path: Path):
    assert command()[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    file = path / "config.yaml"
    file.write_text(file.read_text().replace("gamma: 0.0", "gamma: 0.5").replace("batch_size: 4", "batch_size: 5"))
    before = {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}
    status, error = command()
    assert status == 2 and "differs in batch_size, gamma" in one_sentence(error)
    assert before == {each: each.read_bytes() for each in path.rglob("*") if each.is_file()}


def test_the_second_process_on_a_directory_is_refused(command, small_run: list[str], tmp_path: Path):
    from filelock import FileLock

    folder = train.run_dir(composed([*small_run, f"paths.outputs={tmp_path / 'outputs'}"]))
    folder.path.mkdir(parents=True)
    with FileLock(folder.path / ".lock"):
        status, error = command()
    assert status == 2 and "another process is running this run" in one_sentence(error)
    assert not folder.config_file.exists()


def test_an_unwritable_outputs_folder_is_refused(command, tmp_path: Path):
    (tmp_path / "outputs").write_text("a file, not a folder")
    status, error = command()
    assert status == 2 and "paths.outputs" in one_sentence(error)


@pytest.mark.parametrize("entry", [None, evaluate._main])
def test_outputs_where_no_folder_can_be_made_are_refused_before_any_work(
    entry, command, models: Path, monkeypatch: pytest.MonkeyPatch
):
    from opd.step import benchmarks as answers

    monkeypatch.setattr(answers, "answer_benchmarks", lambda *given, **knobs: pytest.fail("it answered first"))
    examined = [f"model={models / 'student'}", "evaluate.benchmarks=[gsm8k]"] if entry else []
    status, error = command(*examined, "paths.outputs=/proc/nowhere", entry=entry, small=entry is None)
    assert status == 2 and "No folder can be made there (/proc/nowhere" in (said := one_sentence(error))
    assert said.endswith("choose a writable folder with paths.outputs=DIR and paths.models=DIR")


def test_a_damaged_checkpoint_is_named_and_the_one_before_it_used(command, tmp_path: Path):
    assert command()[0] == 0
    (path,) = (tmp_path / "outputs" / "main").iterdir()
    RunDir(path).update_status(state="running")
    truncate("model.safetensors")(path / "checkpoints" / "step_000004")
    status, error = command()
    assert status == 0 and error.count("step_000004") == 1 and "\n" not in error.strip()
    assert error.startswith("opd: warning: ") and error.endswith("going on from the one before it")
    assert RunDir(path).status().state == "finished"


EVALUATE = {
    "": "give either run=DIR",
    "run=a model=b": "give either run=DIR",
    "run=/nowhere": "there is no such checkpoint",
    "model=/nowhere": "evaluate.benchmarks=[]: name at least one, as evaluate.benchmarks=[gsm8k] or a file of yours, [",
    "model=/nowhere scale=own evaluate.benchmarks=[gsm8k]": "student.model='/nowhere'",
    "model=/no,where=[x] evaluate.benchmarks=[gsm8k]": "student.model='/no,where=[x]'",
    "model=sft:nope": "'sft:nope' names no recipe",
    "model=x step=3": "step=: goes with run=DIR",
}


@pytest.mark.parametrize("arguments", EVALUATE)
def test_bad_arguments_of_evaluate(arguments: str, command):
    status, error = command(*arguments.split(), entry=evaluate._main, small=False)
    assert status == 2 and EVALUATE[arguments] in one_sentence(error)
