"""Teachers on a real vLLM server and on vLLM engines in this process, against the local one, token by token."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from opd.data.batch import Rollout, TeacherScores
from opd.errors import UserError
from opd.model.load import load_model
from opd.model.policy import Scorer
from opd.records.run_dir import RunDir
from opd.teacher.local import LocalTeachers, Teachers
from opd.teacher.replicas import Replicas
from opd.teacher.server import Server, ServerTeachers
from opd.teacher.vllm import VllmScorer, VllmTeachers
from opd.train import run_dir, train
from tests.integration.conftest import composed
from tests.integration.test_resume import content
from tests.unit.small import ALONE, rollout_of, root
from tests.vllm.serving import VllmServer
from tests.vllm.test_parallel import torchrun
from tests.vllm.test_run import VLLM

BOUND = 1e-4
ENGINE = {
    "max_model_len": None, "max_num_batched_tokens": 64, "max_num_seqs": 4, "kv_cache_bytes": 64 << 20,
    "gpu_memory_utilization": None, "enforce_eager": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A student and two teachers of one vocabulary, of 256 positions, whose heads vLLM can do."""
    from opd.config.recipe import Architecture
    from opd.recipes.build import fresh, save
    from opd.recipes.tokenizer import build_tokenizer

    folder, tokenizer = tmp_path_factory.mktemp("models"), build_tokenizer()
    for seed, name in enumerate(("student", "teacher", "other")):
        architecture = Architecture(
            hidden_size=32, num_layers=2, num_heads=2, num_kv_heads=1, head_dim=32, intermediate_size=48,
            max_position_embeddings=256, rope_theta=1e4, tie_embeddings=True, init_std=0.3,
        )  # fmt: skip
        save(fresh(architecture, tokenizer, seed=seed), tokenizer, folder / name)
    return folder


@pytest.fixture(scope="module")
def server(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[VllmServer]:
    serving = VllmServer(models / "teacher", tmp_path_factory.mktemp("log") / "vllm.log", key="sk-8cbe1f")
    serving.start()
    serving.ready()
    yield serving
    serving.kill()


@pytest.fixture(scope="module")
def rollout() -> Rollout:
    """Ragged and long and short; some of one token, some that reach over blocks of the cache; stop and pad ids too."""
    draw = torch.Generator().manual_seed(5)

    def rows(lengths: list[int]) -> list[list[int]]:
        return [torch.randint(0, 30, (length,), generator=draw).tolist() for length in lengths]

    return rollout_of(rows([1, 1, 7, 100, 130, 3, 16]), rows([1, 60, 1, 50, 100, 17, 2]))


def local(models: Path, *names: str) -> LocalTeachers:
    def load(name: str) -> Scorer:
        model = load_model(str(models / name), revision=None, dtype="float32", key="teacher")
        return Scorer(root(model), ALONE, micro_batch_tokens=512, logit_chunk=64, temperature=1.0)

    return LocalTeachers([lambda name=name: load(name) for name in names])


def on(server: VllmServer, models: Path, *, longest: int = 230) -> Server:
    replicas = Replicas([server.url], name="teacher.server.urls.0", timeout=60.0, patience=5.0, key=server.key)
    return Server(str(models / "teacher"), replicas, longest=longest, responses_per_request=3, concurrency=2)


def in_process(models: Path, *names: str, longest: int = 230, **knobs) -> VllmTeachers:
    knobs = ENGINE | {"dtype": "float32", "revision": None, "longest": longest, "key": "teacher.models.0"} | knobs
    return VllmTeachers([lambda name=name: VllmScorer(str(models / name), **knobs) for name in names], ALONE)


def agree(found: TeacherScores, expected: TeacherScores, rollout: Rollout, teacher: int = 0) -> None:
    gap = (found.logp[teacher] - expected.logp[0])[rollout.mask].abs()
    assert gap.max() < BOUND
    assert (found.logp[teacher][~rollout.mask] == 0).all(), "padding is no token"
    assert torch.isnan(found.entropy[teacher][rollout.mask]).all()
    for shift in (1, -1):
        shifted = torch.roll(expected.logp[0], shift, -1)
        assert (found.logp[teacher] - shifted)[rollout.mask].abs().max() > 0.1, "a shift would be seen"


def test_a_server_agrees_with_the_local_teacher(models: Path, server: VllmServer, rollout: Rollout):
    teacher = on(server, models)
    assert asyncio.run(teacher.check()) == [str(models / "teacher")]
    teachers = ServerTeachers([teacher], ALONE)
    expected = local(models, "teacher").score(rollout, [0])
    for _ in range(2):  # of the second time nothing may come from a cache of the first
        agree(teachers.score(rollout, [0]), expected, rollout)


def test_engines_in_this_process_agree_and_one_is_held_at_a_time(models: Path, rollout: Rollout):
    from opd.rollout.vllm_engine import ENGINES

    teachers = in_process(models, "teacher", "other")
    assert isinstance(teachers, Teachers) and len(teachers) == 2
    for index, name in [(0, "teacher"), (1, "other"), (1, "other"), (0, "teacher")]:
        before = torch.random.get_rng_state()
        found = teachers.score(rollout, [index])
        assert torch.equal(before, torch.random.get_rng_state())
        agree(found, local(models, name).score(rollout, [0]), rollout, index)
        assert torch.isnan(found.logp[1 - index]).all() and len(ENGINES) == 1
    both = teachers.score(rollout, [0, 1])
    assert len(ENGINES) == 2
    for index, name in enumerate(("teacher", "other")):
        agree(both, local(models, name).score(rollout, [0]), rollout, index)
    teachers.score(rollout, [])
    assert not ENGINES


def test_what_cannot_be_asked_is_refused(models: Path, server: VllmServer, rollout: Rollout):
    def refusal(model: str, longest: int, key: str | None) -> str:
        replicas = Replicas([server.url], name="teacher.server.urls.0", timeout=60.0, patience=0.0, key=key)
        teacher = Server(model, replicas, longest=longest, responses_per_request=3, concurrency=2)
        with pytest.raises(UserError) as refused:
            asyncio.run(teacher.check())
        return str(refused.value)

    here = str(models / "teacher")
    assert "takes 256 tokens, and the longest prompt, max_response_length and one more are 257" in refusal(
        here, 256, server.key
    )
    assert f"serves {here}, not {models / 'other'}; name that in teacher.models" in refusal(
        str(models / "other"), 9, server.key
    )
    assert refusal(here, 9, "sk-wrong").endswith("refuses /v1/models with status 401: Unauthorized")
    too_long = rollout_of([[3] * 200], [[4] * 57])
    with pytest.raises(UserError, match=r"refuses /v1/completions with status 400: .*256"):
        ServerTeachers([on(server, models)], ALONE).score(too_long, [0])
    foreign = rollout_of([[3]], [[10_000]])
    with pytest.raises(UserError, match=r"refuses /v1/completions with status 400: .*vocabulary"):
        ServerTeachers([on(server, models)], ALONE).score(foreign, [0])
    with pytest.raises(UserError, match=r"teacher.vllm.max_model_len: .* takes 256 tokens, and the longest .* are 257"):
        in_process(models, "teacher", longest=256).score(rollout, [0])
    with pytest.raises(UserError, match=r"teacher.vllm.kv_cache_bytes=1000: not enough memory"):
        in_process(models, "teacher", kv_cache_bytes=1000).score(rollout, [0])


def test_the_likeliest_tokens_are_the_same_from_a_server_and_an_engine(
    models: Path, server: VllmServer, rollout: Rollout
):
    named = [
        ServerTeachers([replace(on(server, models), likeliest=8)], ALONE).score(rollout, [0]).top[0],
        in_process(models, "teacher", likeliest=8).score(rollout, [0]).top[0],
    ]
    model = load_model(str(models / "teacher"), revision=None, dtype="float32", key="teacher")
    for top in named:
        place = 0
        for row in range(len(rollout)):
            prompt, tokens = rollout.prompt[row][rollout.prompt_mask[row]], rollout.tokens[row][rollout.mask[row]]
            with torch.no_grad():
                logp = model(torch.cat([prompt, tokens])[None]).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            these = slice(place, place + len(tokens))
            assert torch.equal(top.ids[these, 0], tokens)
            assert (top.logp[these] - logp.gather(-1, top.ids[these])).abs().max() < BOUND
            # Of ties, and of tokens that rounding takes for ties, any may be named.
            least = top.logp[these].topk(8).values[:, -1]
            assert (least >= logp.topk(8).values[:, -1] - BOUND).all()
            place += len(tokens)


# ---- whole runs


@pytest.fixture
def overrides(models: Path, server: VllmServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Those of a run of four steps, its teacher on the engine that is named."""
    monkeypatch.setenv("OPD_TEST_KEY", server.key or "")
    small = [
        f"student.model={models / 'student'}", f"scale.teacher={models / 'teacher'}", "num_steps=4", "batch_size=4",
        "samples_per_prompt=2", "max_response_length=12", "evaluate.at_start=false", "evaluate.k=1",
        "evaluate.sources.arithmetic.num=3", "checkpoint.every=1", "prompts.source.num=32",
    ]  # fmt: skip
    engines = {
        "local": [],
        "server": [f"teacher.server.urls=[[{server.url}]]", "teacher.server.api_key_env=OPD_TEST_KEY"],
        "vllm": [f"teacher.vllm.kv_cache_bytes={64 << 20}", "teacher.vllm.max_num_seqs=64"],
    }

    def overrides(engine: str, *more: str, to: str | None = None) -> list[str]:
        outputs = f"paths.outputs={tmp_path / (to or engine)}"
        return [*small, outputs, f"teacher.engine={engine}", *engines[engine], *more]

    return overrides


@pytest.fixture
def config(overrides):
    return lambda *arguments, **named: composed(overrides(*arguments, **named))


def lines(folder: RunDir) -> list[dict[str, float]]:
    return [line for line in folder.metrics() if line["step"] > 0]


def test_runs_have_the_same_numbers_on_every_engine(config):
    """vllm together with rollout=vllm, which takes two engines in one process."""
    found = {}
    for engine, more in (("local", VLLM), ("server", VLLM), ("vllm", VLLM)):
        run = config(engine, *more)
        assert train(run).state == "finished"
        found[engine] = lines(run_dir(run))
    for engine in ("server", "vllm"):
        for ours, theirs in zip(found["local"], found[engine], strict=True):
            for name in ("loss", "grad_norm", "divergence/reverse_kl", "whitening/std", "response/tokens"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (engine, name)


def test_on_two_ranks_every_engine_has_the_numbers_of_a_local_teacher_on_one(config, overrides):
    """Each rank asks the server about its own responses, or has an engine of its own."""
    alone = config("local", to="alone")
    assert train(alone).state == "finished"
    for engine in ("server", "vllm"):
        torchrun("-m", "opd.train", *overrides(engine, to=f"two-{engine}"))
        found = run_dir(config(engine, to=f"two-{engine}"))
        assert found.status().state == "finished" and found.manifest()["world_size"] == 2
        for ours, theirs in zip(lines(found), lines(run_dir(alone)), strict=True):
            for name in ("loss", "grad_norm", "divergence/reverse_kl", "whitening/std", "response/tokens"):
                assert ours[name] == pytest.approx(theirs[name], rel=1e-3, abs=1e-5), (engine, name)


def test_a_server_killed_in_mid_run_is_waited_for_and_its_end_is_survived(
    config, server: VllmServer, monkeypatch: pytest.MonkeyPatch
):
    """Killed at step 2 and restarted: the numbers of an undisturbed run. Killed for good: failed, then finished."""
    undisturbed = config("server", to="undisturbed")
    train(undisturbed)
    expected, ask = content(run_dir(undisturbed)), ServerTeachers.start_scoring

    def killing(run, then):
        def killed(self, rollout, needed):
            if run_dir(run).status().step == 1 and server.process is not None:
                server.kill()
                then()
            return ask(self, rollout, needed)

        return killed

    waited_for = config("server", "teacher.server.patience=300", to="waited_for")
    with monkeypatch.context() as patch:
        patch.setattr(ServerTeachers, "start_scoring", killing(waited_for, server.start))
        assert train(waited_for).state == "finished"
    assert run_dir(waited_for).status().attempts == 1 and content(run_dir(waited_for)) == expected

    ended = config("server", "teacher.server.patience=2", to="ended")
    with monkeypatch.context() as patch:
        patch.setattr(ServerTeachers, "start_scoring", killing(ended, lambda: None))
        began = time.monotonic()
        with pytest.raises(UserError, match=f"{server.url} did not answer within the teacher.server.patience of 2 s"):
            train(ended)
    assert time.monotonic() - began < 60
    status = run_dir(ended).status()
    assert (status.state, status.step) == ("failed", 1) and server.url in (status.error or "")
    server.start()
    server.ready()
    assert train(ended).state == "finished"
    assert content(run_dir(ended)) == expected
    files = [file for file in run_dir(ended).path.rglob("*") if file.is_file()]
    assert not [file for file in files if (server.key or "").encode() in file.read_bytes()]
