"""A finished run's model on the hub: which files with which bytes, and what is said where it does not get there."""

import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import peft
import pytest
import torch
import yaml
from huggingface_hub import constants
from transformers import AutoModelForCausalLM, AutoTokenizer

from opd.config.schema import RunConfig
from opd.errors import UserError
from opd.model.load import load_model
from opd.records.config_argument import expand
from opd.records.run_dir import RunDir
from opd.train import run_dir, train
from tests.integration.conftest import composed
from tests.integration.hub_site import HubSite

TOKEN = "hf_" + "a" * 34


@pytest.fixture(scope="module")
def site() -> Iterator[HubSite]:
    with HubSite(TOKEN) as answering:
        yield answering


@pytest.fixture(autouse=True)
def client(site: HubSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub's client, which finds the site in the hub's place, and a token; files go there whole, without xet."""
    monkeypatch.setattr(constants, "ENDPOINT", site.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    site.refuses = None


@pytest.fixture(scope="module")
def config(small_run: list[str], tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    """A run with adapters that is not pushed."""
    lean = ["evaluate.benchmarks=[]", "num_steps=2", "tracker=tensorboard"]
    outputs = f"paths.outputs={tmp_path_factory.mktemp('outputs')}"
    return composed([*small_run, *lean, "lora=all_linear", "student.lora.rank=4", "optim.lr=0.02", outputs])


@pytest.fixture(scope="module")
def folder(config: RunConfig) -> RunDir:
    assert train(config).state == "finished"
    return run_dir(config)


def pushing(config: RunConfig, name: str) -> RunConfig:
    return replace(config, hub=replace(config.hub, push=name))


def files_of(final: Path) -> dict[str, bytes]:
    return {file.relative_to(final).as_posix(): file.read_bytes() for file in final.rglob("*") if file.is_file()}


def test_what_arrives_is_the_final_checkpoint_to_the_byte_in_a_private_repository(
    site: HubSite, config: RunConfig, folder: RunDir, capfd: pytest.CaptureFixture[str]
):
    assert train(pushing(config, "me/mine")).state == "finished"  # of a run that has finished before
    final = files_of(folder.checkpoints / "final")
    del final["checksums.json"]
    assert site.files["me/mine"] == final and site.private["me/mine"]
    assert {"model.safetensors", "config.json", "generation_config.json", "README.md", "tokenizer.json"} < final.keys()
    assert {"adapter/adapter_model.safetensors", "adapter/adapter_config.json"} < final.keys()
    said = capfd.readouterr()
    assert f"{folder.path}: pushed to {site.url}/me/mine" in said.out and said.err == ""

    train(pushing(config, "me/mine"))  # again: nothing has changed, so there is no commit
    assert [message for name, message in site.commits if name == "me/mine"] == [folder.path.name]


def test_a_run_is_pushed_when_it_finishes(site: HubSite, small_run: list[str], tmp_path: Path):
    knobs = ["evaluate.benchmarks=[]", "num_steps=1", "hub.push=me/${name}-s${seed}", "hub.private=false"]
    config = composed([*small_run, *knobs, f"paths.outputs={tmp_path}"])
    assert train(config).state == "finished"
    assert "model.safetensors" in site.files["me/default-s0"] and not site.private["me/default-s0"]


def test_no_pushed_file_names_a_place_on_this_machine(config: RunConfig, folder: RunDir, models: Path):
    places = [models, folder.path, Path.cwd(), Path.home(), Path(config.paths.outputs)]
    for name, content in files_of(folder.checkpoints / "final").items():
        for place in places:
            assert str(place).encode() not in content, f"{name} names {place}"
        assert TOKEN.encode() not in content
    card = (folder.checkpoints / "final" / "README.md").read_text()
    assert "| Student | student |" in card and "| Teachers | large |" in card
    of_run = yaml.safe_load(card.split("```yaml\n")[1].split("\n```")[0])
    assert of_run["student"]["model"] == "student" and not {"paths", "tracker", "hub"} & of_run.keys()


def test_the_adapters_still_find_their_base_here(folder: RunDir, models: Path):
    adapter, final = folder.checkpoints / "final" / "adapter", folder.checkpoints / "final"
    ids = torch.arange(8)[None]
    expected = AutoModelForCausalLM.from_pretrained(final)(ids).logits
    base = AutoModelForCausalLM.from_pretrained(models / "student")
    assert not torch.allclose(base(ids).logits, expected, atol=1e-4)
    ours = load_model(str(adapter), revision=None, dtype="float32", key="student.model")(ids).logits
    theirs = peft.PeftModel.from_pretrained(base, str(adapter))(ids).logits
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(theirs, expected)
    assert AutoTokenizer.from_pretrained(final).eos_token


@pytest.mark.parametrize(
    ("status", "token", "reason"),
    [(403, TOKEN, "403 Forbidden"), (None, "hf_" + "b" * 34, "401 Unauthorized")],
    ids=["full", "another's token"],
)
def test_a_push_that_fails_leaves_the_run_finished_and_says_what_to_do(
    status: int | None, token: str, reason: str, site: HubSite, config: RunConfig, folder: RunDir,
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str],
):  # fmt: skip
    monkeypatch.setenv("HF_TOKEN", token)
    site.refuses = status
    assert train(pushing(config, "me/full")).state == "finished"
    said = capfd.readouterr().err
    assert said.startswith("opd: warning: hub.push=me/full: the model was not pushed (") and reason in said
    assert said.endswith("; the same command pushes it again\n") and said.count("\n") == 1 and token not in said
    assert not site.files.get("me/full")


def test_refuses_to_begin_what_it_could_not_push(small_run: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    run = [*small_run, f"paths.outputs={tmp_path / 'outputs'}"]
    for name in ("mine", "me/mine/2", "me/-mine", "me/a b", "me/mine.git"):
        with pytest.raises(UserError, match=r"^hub\.push: a repository of the hub is OWNER/NAME, .*; '"):
            composed([*run, f"hub.push={name}"])
    config = composed([*run, "hub.push=me/mine"])
    monkeypatch.delenv("HF_TOKEN")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no_token"))
    monkeypatch.setenv("HUGGING_FACE_HUB_TOKEN", "")
    with pytest.raises(UserError, match=r"^hub\.push=me/mine: there is no token; log in with `hf auth login`"):
        train(config)
    assert not (tmp_path / "outputs").exists()


def test_a_recorded_config_pushes_nowhere_unless_the_command_line_says_so(folder: RunDir, tmp_path: Path):
    recorded = tmp_path / "config.yaml"
    shutil.copy(folder.config_file, recorded)
    recorded.write_text(recorded.read_text().replace("push: null", "push: somebody/model"))
    with pytest.raises(UserError, match=r"would push its model to somebody/model; give hub.push=somebody/model to"):
        expand([f"config={recorded}"])
    assert "hub.push=null" in expand([f"config={recorded}", "hub.push=null"])
