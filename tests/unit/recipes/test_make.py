import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.config.recipe import Recipe, model_path
from opd.data import arithmetic
from opd.errors import UserError
from opd.recipes import worker as sft_worker
from opd.recipes.build import build, fresh, save
from opd.recipes.tokenizer import build_tokenizer
from opd.recipes.worker import Example, collate, examples, learning_rate, make, read_examples, response_loss, train
from opd.sft import ensure_models
from tests.forks import run_module
from tests.unit.config.test_recipe import recipe


def quiet(_: dict[str, Any]) -> None: ...


def trained(made: Recipe) -> dict[str, torch.Tensor]:
    model, tokenizer = build(made)
    train(model, tokenizer, made, quiet)
    return {name: value.clone() for name, value in model.state_dict().items()}


# ---- data


def test_examples_are_solved_problems_of_the_training_split_only():
    tokenizer, source = build_tokenizer(), examples(recipe(slip=[0.0, 0.0]), build_tokenizer())
    for _ in range(100):
        example = next(source)
        problem, response = tokenizer.decode(example.prompt), tokenizer.decode(example.response)
        assert response == arithmetic.solution(problem) + tokenizer.eos_token
        assert arithmetic.split_of(problem) == "train"


def test_slips_follow_the_recipe():
    tokenizer = build_tokenizer()
    source = examples(recipe(slip=[0.9, 0.9], mix={"subtraction": [3]}), tokenizer)
    right = 0
    for _ in range(200):
        example = next(source)
        trace = tokenizer.decode(example.response, skip_special_tokens=True)
        right += trace == arithmetic.solution(tokenizer.decode(example.prompt))
    assert 40 < right < 140  # those with nothing to forget, and a tenth of the others


def test_slips_grow_evenly_over_the_training():
    tokenizer = build_tokenizer()
    source = examples(recipe(slip=[0.0, 1.0], mix={"chain": [8]}, steps=100, batch_size=10, max_length=96), tokenizer)
    taken = [0, 0]
    for index in range(1000):
        example = next(source)
        problem, trace = tokenizer.decode(example.prompt), tokenizer.decode(example.response)
        slips = problem.count("-") - trace.count("-")  # each is a minus taken for a plus
        taken[index // 500] += slips
    assert taken[1] / taken[0] == pytest.approx(3, rel=0.2)


def test_long_examples_are_left_out():
    source = examples(recipe(max_length=22, mix={"chain": [3, 4, 5]}), build_tokenizer())
    assert max(len(e.prompt) + len(e.response) for e in (next(source) for _ in range(100))) <= 22


def test_a_length_that_no_example_has_is_refused():
    with pytest.raises(UserError, match="max_length=9: almost no example"):
        next(examples(recipe(max_length=9), build_tokenizer()))


def test_a_file_is_read_in_a_new_order_each_epoch(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text("".join(json.dumps({"problem": f"{i}+1=", "response": str(i + 1)}) + "\n" for i in range(8)))
    tokenizer = build_tokenizer()
    source = examples(recipe(mix=None, file=str(file)), tokenizer)
    epochs = [[tokenizer.decode(next(source).prompt) for _ in range(8)] for _ in range(3)]
    assert all(sorted(epoch) == [f"{i}+1=" for i in range(8)] for epoch in epochs)
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", "line 2: is not JSON"),
        ("[1]", "line 2: is not a JSON object"),
        ('{"problem": "1+1="}', 'line 2: should be an object with texts "problem" and "response"'),
        ('{"problem": "", "response": "2"}', "line 2: should be an object"),
        ('{"problem": "1+1=", "response": 2}', "line 2: should be an object"),
    ],
)
def test_bad_lines_are_refused_with_their_number(tmp_path: Path, line: str, said: str):
    file = tmp_path / "data.jsonl"
    file.write_text('{"problem": "1+1=", "response": "2"}\n' + line + "\n")
    with pytest.raises(UserError, match=said):
        read_examples(file, build_tokenizer(), template="raw", max_length=20)


def test_a_file_of_too_long_examples_is_refused(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"problem": "1+1=", "response": "2"}\n')
    with pytest.raises(UserError, match="no example has at most max_length=3 tokens"):
        read_examples(file, build_tokenizer(), template="raw", max_length=3)


def test_a_chat_template_shapes_the_prompt_and_its_absence_is_refused(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"problem": "1+1=", "response": "2"}\n')
    tokenizer = build_tokenizer()
    with pytest.raises(UserError, match="no chat template"):
        read_examples(file, tokenizer, template="chat", max_length=20)
    tokenizer.chat_template = "({{ messages[0]['content'] }}){% if add_generation_prompt %};{% endif %}"
    (example,) = read_examples(file, tokenizer, template="chat", max_length=20)
    assert tokenizer.decode(example.prompt) == "(1+1=);"
    assert example.response == [*tokenizer.encode("2"), tokenizer.eos_token_id]


# ---- loss and schedule


def test_loss_is_the_mean_over_response_tokens_whatever_the_padding():
    made = recipe()
    model, tokenizer = build(made)
    rows = [Example(tokenizer.encode("1+1="), [*tokenizer.encode("2"), 1]), Example([12], tokenizer.encode("3+4=7"))]
    nll = []
    for row in rows:
        logp = torch.log_softmax(model(input_ids=torch.tensor([row.prompt + row.response])).logits[0], dim=-1)
        nll += [-logp[len(row.prompt) + i - 1, token].item() for i, token in enumerate(row.response)]
    together = response_loss(model, *collate(rows, tokenizer.pad_token_id)).item()
    assert together == pytest.approx(sum(nll) / len(nll), rel=1e-5)


def test_prompts_are_not_learned():
    tokens, learned = collate([Example([5, 6, 7], [8, 1]), Example([5], [1])], 0)
    assert tokens.tolist() == [[5, 6, 7, 8, 1], [5, 1, 0, 0, 0]]
    assert learned.tolist() == [[False, False, False, True, True], [False, True, False, False, False]]


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [1 / 3, 2 / 3, 1, 1, 1, 1]),
        ("linear", [1 / 3, 2 / 3, 1, 0.775, 0.55, 0.325]),
        ("cosine", [1 / 3, 2 / 3, 1, 0.86819805, 0.55, 0.23180195]),
    ],
)
def test_learning_rate(schedule: str, expected: list[float]):
    made = recipe(schedule=schedule, lr=1.0, warmup_steps=2, steps=6, final_lr=0.1)
    assert [learning_rate(made, step) for step in range(6)] == pytest.approx(expected)


def test_training_learns():
    made = recipe(mix={"addition": [2]}, steps=60, batch_size=16, slip=[0.0, 0.0])
    losses: list[float] = []
    model, tokenizer = build(made)
    train(model, tokenizer, made, lambda message: losses.append(message["loss"]))
    assert len(losses) == 60 and losses[-1] < 0.7 * losses[0]


def test_a_loss_that_is_not_a_number_ends_the_training_with_what_to_change():
    made = recipe()
    model, tokenizer = build(made)
    with torch.no_grad():
        model.get_input_embeddings().weight.fill_(float("nan"))
    with pytest.raises(UserError, match=r"the loss is nan at step 1; lower lr=0\.01"):
        train(model, tokenizer, made, quiet)


def test_matrices_alone_decay():
    """AdamW's decay is apart from its step: of one step it takes lr · decay of each weight, and of norms nothing."""
    made = recipe(steps=1, warmup_steps=0, weight_decay=0.0, lr=0.01)
    start = {name: value.clone() for name, value in build(made)[0].state_dict().items()}
    plain, decayed = trained(made), trained(recipe(steps=1, warmup_steps=0, weight_decay=0.5, lr=0.01))
    for name, weight in start.items():
        share = 0.01 * 0.5 if weight.ndim > 1 else 0.0
        torch.testing.assert_close(plain[name] - decayed[name], share * weight, rtol=0, atol=1e-6)


# ---- determinism


def test_a_recipe_gives_the_same_weights_whatever_the_threads_and_the_random_state():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        first = trained(recipe())
        torch.set_num_threads(2)
        torch.manual_seed(1234)
        second = trained(recipe())
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_another_seed_gives_other_weights():
    first, second = trained(recipe(seed=0)), trained(recipe(seed=1))
    assert not all(torch.equal(first[name], second[name]) for name in first)


def test_building_leaves_the_random_state_alone():
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    build(recipe())
    assert torch.equal(torch.random.get_rng_state(), before)


# ---- the directory


def test_a_made_model_loads_as_any_hugging_face_model(tmp_path: Path):
    make(recipe(), tmp_path / "m", quiet)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "m")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "m")
    assert type(model).__name__ == "Qwen3ForCausalLM"
    assert model.generation_config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    expected = trained(recipe())
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert json.loads((tmp_path / "m" / "recipe.json").read_text())["steps"] == 6
    assert sorted(path.name for path in tmp_path.iterdir()) == [".m.lock", "m"]


def test_a_model_that_is_there_is_not_made_again(tmp_path: Path):
    (tmp_path / "m").mkdir()
    make(recipe(), tmp_path / "m", quiet)
    assert not list((tmp_path / "m").iterdir())


def test_two_at_once_make_a_model_once(tmp_path: Path):
    reports: list[int] = []

    def slow(message: dict[str, Any]) -> None:
        reports.append(message["step"])
        time.sleep(0.1)

    with ThreadPoolExecutor(2) as pool:
        for job in [pool.submit(make, recipe(), tmp_path / "m", slow) for _ in range(2)]:
            job.result()
    assert reports == [1, 2, 3, 4, 5, 6]


def test_training_killed_half_way_leaves_no_model_and_the_next_one_tidies_up(tmp_path: Path):
    def die(_: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    child = os.fork()
    if child == 0:
        make(recipe(), tmp_path / "m", die)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    assert not (tmp_path / "m").exists() and list(tmp_path.glob(".m.*.part"))
    make(recipe(), tmp_path / "m", quiet)
    assert (tmp_path / "m" / "model.safetensors").exists() and not list(tmp_path.glob(".m.*.part"))


def test_a_failure_leaves_nothing_behind(tmp_path: Path):
    def fail(_: dict[str, Any]) -> None:
        raise RuntimeError("no")

    with pytest.raises(RuntimeError):
        make(recipe(), tmp_path / "m", fail)
    assert [path.name for path in tmp_path.iterdir()] == [".m.lock"]


def test_training_can_start_from_a_directory(tmp_path: Path):
    file = tmp_path / "data.jsonl"
    file.write_text('{"problem": "1+1=", "response": "2"}\n')
    tokenizer, architecture = build_tokenizer(), recipe().architecture
    assert architecture is not None
    save(fresh(architecture, tokenizer, seed=9), tokenizer, tmp_path / "start")
    warm = recipe(architecture=None, mix=None, start=str(tmp_path / "start"), file=str(file), lr=1e-9, weight_decay=0.0)
    make(warm, tmp_path / "m", quiet)
    before = load_file(tmp_path / "start" / "model.safetensors")
    after = load_file(tmp_path / "m" / "model.safetensors")
    assert before.keys() == after.keys()
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in before)
    assert not all(torch.equal(before[name], after[name]) for name in before)


def test_a_start_that_cannot_be_loaded_is_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match=r"empty': no tokenizer .* this directory: it has no tokenizer\.json"):
        build(recipe(architecture=None, start=str(tmp_path / "empty")))


# ---- several at once


def test_missing_models_are_made_in_processes_and_found_the_next_time(tmp_path: Path, capsys, monkeypatch):
    recipes = {"a": recipe(), "b": recipe(seed=1)}
    paths = ensure_models(recipes, tmp_path)
    assert paths == {name: model_path(name, made, tmp_path) for name, made in recipes.items()}
    log = capsys.readouterr().err
    assert "training a (6 steps), b (6 steps), kept in " in log and "a is ready" in log and "b 6/6 loss" in log
    expected = trained(recipes["b"])
    assert all(
        torch.equal(value, expected[name]) for name, value in load_file(paths["b"] / "model.safetensors").items()
    )
    monkeypatch.setattr(subprocess, "Popen", None)
    assert ensure_models(recipes, tmp_path) == paths
    assert not capsys.readouterr().err
    # As from another working folder: a checkout's models are copied.
    monkeypatch.setattr("opd.recipes.make.MADE", (tmp_path / "nothing", tmp_path))
    copies = ensure_models(recipes, tmp_path / "elsewhere" / "models")
    for name, copy in copies.items():
        assert copy.parent == tmp_path / "elsewhere" / "models"
        assert {file.name: file.read_bytes() for file in copy.iterdir()} == {
            file.name: file.read_bytes() for file in paths[name].iterdir()
        }
    assert not capsys.readouterr().err


def test_a_model_that_fails_is_named_and_the_others_are_ended(tmp_path: Path):
    endless = recipe(steps=10**7)
    bad = recipe(architecture=None, start=str(tmp_path / "nothing"))
    start = time.monotonic()
    with pytest.raises(UserError, match=r"recipes\.bad: the model could not be made: start=.*nothing': there is no"):
        ensure_models({"endless": endless, "bad": bad}, tmp_path)
    assert time.monotonic() - start < 120
    assert not model_path("endless", endless, tmp_path).exists()


def test_a_worker_ends_with_its_parent(tmp_path: Path):
    request = {"recipe": json.loads(json.dumps(recipe_dict(steps=10**7))), "target": str(tmp_path / "m")}
    worker = subprocess.Popen(
        [sys.executable, "-m", "opd.recipes.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert worker.stdin is not None and worker.stdout is not None
    worker.stdin.write(json.dumps(request).encode() + b"\n")
    worker.stdin.flush()
    worker.stdin.close()
    worker.stdout.close()
    assert worker.wait(timeout=120) != 0
    assert not (tmp_path / "m").exists()


def recipe_dict(**changes: Any) -> dict[str, Any]:
    from dataclasses import asdict

    return asdict(recipe(**changes))


def test_the_worker_speaks_only_of_its_steps_on_its_output(tmp_path: Path):
    request = json.dumps({"recipe": recipe_dict(), "target": str(tmp_path / "m")})
    done = run_module(sft_worker.__name__, given=request + "\n")
    assert done.returncode == 0, done.stderr
    messages = [json.loads(line) for line in done.stdout.splitlines()]
    assert [message.get("step") for message in messages] == [1, 2, 3, 4, 5, 6, None]
    assert messages[-1] == {"done": True}
