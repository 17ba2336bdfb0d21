"""Ways to run code, to read a secret or to reach a server through what a command reads: none works.

Each is tried by the command itself, in this process, on a file that somebody else could have sent. It counts as
refused only if the command ends in one sentence that names the file or the key, without a mark of code that ran.
"""

import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import yaml

from opd import cli, evaluate, train
from opd.check import config as check
from opd.errors import UserError
from opd.records import config_argument
from sweeps.compose import composer
from tests.integration.conftest import composed
from tests.marked import Marked

SECRET = "correct-horse-7f3a9c"


@pytest.fixture(scope="module")
def content(small_run: list[str]) -> dict[str, Any]:
    """What a run of the small world records as its config."""
    return json.loads(json.dumps(check.as_dict(composed([*small_run, "num_steps=1", "evaluate.every=0"]))))


class Trial:
    """A folder with a recorded config that is not ours, and the commands on it.

    Attributes:
        mark: a file that is there once code has run.
    """

    def __init__(self, folder: Path, content: dict[str, Any], patch: pytest.MonkeyPatch, capfd: Any):
        self.folder, self.content, self._patch, self._capfd = folder, content, patch, capfd
        self.mark = folder / "mark"
        self.file = folder / "run" / "config.yaml"
        self.outputs = folder / "outputs"
        (folder / "run" / "checkpoints" / "final").mkdir(parents=True)
        self.given = [f"paths.outputs={self.outputs}"]

    def write(self, text: str | None = None, **more: Any) -> None:
        """The recorded config with more in it, or any text in its place."""
        self.file.write_text(yaml.safe_dump({**self.content, **more}) if text is None else text)

    def touch(self) -> list[str]:
        return ["touch", str(self.mark)]

    def script(self, name: str, text: str = "") -> Path:
        """A program of Python that leaves the mark."""
        file = self.folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"open({str(self.mark)!r}, 'w').close()\n{text}")
        return file

    def refused(self, *arguments: str, entry: Any = train._main, rewrite: Any = config_argument.expand) -> str:
        """Runs a command that must refuse; the sentence."""
        self._patch.setattr(sys, "argv", ["opd", *arguments])
        self._capfd.readouterr()
        before = dict(os.environ)
        try:
            with pytest.raises(SystemExit) as stop:
                cli.main(entry, rewrite)
        finally:
            os.environ.clear()
            os.environ.update(before)
        out, err = self._capfd.readouterr()
        assert not self.mark.exists(), "code ran"
        assert stop.value.code == 2, err
        lines = [line for line in err.splitlines() if line.startswith("opd: ")]
        assert len(lines) == 1 and "Traceback" not in err and len(lines[0]) < 500, err
        assert SECRET not in out + err
        written = [file for file in self.outputs.rglob("*") if file.is_file()] if self.outputs.exists() else []
        assert not any(SECRET.encode() in file.read_bytes() or SECRET in str(file) for file in written)
        return lines[0].removeprefix("opd: ")

    def both_refused(self, key: str) -> None:
        """`opd.train config=` and `opd.evaluate run=` both refuse the file, by the key."""
        said = self.refused(f"config={self.file}", *self.given)
        assert str(self.file) in said and key in said, said
        said = self.refused(f"run={self.file.parent}", *self.given, entry=evaluate._main, rewrite=evaluate.arguments)
        assert str(self.file) in said and key in said, said


@pytest.fixture
def trial(tmp_path: Path, content: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]):
    monkeypatch.setenv("OPD_TEST_SECRET", SECRET)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
    return Trial(tmp_path, json.loads(json.dumps(content)), monkeypatch, capfd)


# ---- sections of Hydra's own


def callback(target: str, *given: Any, **knobs: Any) -> Callable[[Trial], dict[str, Any]]:
    def section(trial: Trial) -> dict[str, Any]:
        values = [value(trial) if callable(value) else value for value in given]
        return {"callbacks": {"mine": {"_target_": target, "_args_": values, **knobs}}}

    return section


def pickled(trial: Trial) -> str:
    file = trial.folder / "numbers.npy"
    file.write_bytes(pickle.dumps(Marked(trial.mark)))
    return str(file)


def searched(trial: Trial) -> dict[str, Any]:
    group = trial.folder / "conf" / "hydra" / "callbacks"
    group.mkdir(parents=True)
    (group / "mine.yaml").write_text(
        yaml.safe_dump({"mine": {"_target_": "sweeps.slurm_commands.ask", "_args_": trial.touch()}})
    )
    return {"searchpath": [f"file://{trial.folder / 'conf'}"]}


def with_git(trial: Trial) -> dict[str, Any]:
    program = trial.folder / "bin" / "git"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ntouch {trial.mark}\n")
    program.chmod(0o755)
    return {"job": {"env_set": {"PATH": f"{program.parent}:{os.environ['PATH']}"}}}


def with_site(trial: Trial) -> dict[str, Any]:
    folder = trial.script("site/sitecustomize.py").parent
    return {"job": {"env_set": {"PYTHONPATH": str(folder)}}}


SECTIONS: dict[str, Callable[[Trial], dict[str, Any]]] = {
    "our command that starts programs": callback("sweeps.slurm_commands.ask", "touch", lambda trial: str(trial.mark)),
    "torchrun": callback("torch.distributed.run.main", lambda trial: ["--nproc-per-node=1", str(trial.script("a.py"))]),
    "a pickle through NumPy": callback("numpy.load", pickled, allow_pickle=True),
    "a pickle through torch": callback("torch.load", pickled, weights_only=False),
    "a module by its path": callback("runpy.run_path", lambda trial: str(trial.script("a.py"))),
    "a process of the standard library": callback("asyncio.run", lambda trial: trial.touch()),
    "another program as git": with_git,
    "other imports for workers": with_site,
    "a log handler made by any function": lambda trial: {
        "job_logging": {"handlers": {"console": {"()": "sweeps.slurm_commands.ask", "command": trial.touch()}}}
    },
    "a log handler's class": lambda trial: {
        "job_logging": {
            "handlers": {"console": {"class": "logging.FileHandler", "filename": str(trial.mark), "formatter": None}}
        }
    },
    "a launcher": lambda trial: {
        "mode": "MULTIRUN", "launcher": {"_target_": "sweeps.slurm_commands.ask", "_args_": trial.touch()}
    },
    "a sweeper": lambda trial: {
        "mode": "MULTIRUN", "sweeper": {"_target_": "sweeps.slurm_commands.ask", "_args_": trial.touch()}
    },
    "a folder to search": searched,
    "a folder to write to": lambda trial: {"output_subdir": ".hydra", "run": {"dir": str(trial.mark)}},
    "help with a secret": lambda trial: {"help": {"header": "${oc.env:OPD_TEST_SECRET}"}},
}  # fmt: skip


@pytest.mark.parametrize("way", SECTIONS)
def test_a_section_of_hydra_in_a_recorded_config(way: str, trial: Trial):
    trial.write(hydra=SECTIONS[way](trial))
    trial.both_refused("hydra: is a section that Hydra would act on")


def test_a_defaults_list_in_a_recorded_config(trial: Trial):
    (trial.file.parent / "secrets.yaml").write_text(f"password: {SECRET}\n")
    for entry in ("secrets", "../run/secrets", {"/hydra/callbacks": "mine"}, {"override hydra/launcher": "joblib"}):
        trial.write(defaults=[entry, "_self_"])
        trial.both_refused("defaults: is a section that Hydra")


@pytest.mark.parametrize("header", ["# @package hydra", "# @package hydra.job.env_set", "# @package _global_"])
def test_a_header_of_hydra_is_a_comment(header: str, trial: Trial):
    trial.write(f"{header}\ncallbacks: {{mine: {{_target_: sweeps.slurm_commands.ask, _args_: {trial.touch()}}}}}\n")
    trial.both_refused("callbacks: there is no such key")


def test_an_unknown_key_anywhere(trial: Trial):
    trial.content["optim"]["hydra"] = {"job": {}}
    trial.write()
    trial.both_refused("optim.hydra")


def test_a_tag_of_yaml_makes_no_object(trial: Trial):
    for tag in ("python/object/apply:os.system ['touch mark']", "python/name:os.system", "python/module:os"):
        trial.write(yaml.safe_dump(trial.content) + f"\nmore: !!{tag}\n")
        trial.both_refused("config.yaml")


# ---- interpolations


def put(*keys: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(content: dict[str, Any]) -> None:
        for key in keys[:-1]:
            content = content[key]
        content[keys[-1]] = value

    return change


ENV = "${oc.env:OPD_TEST_SECRET}"
INTERPOLATED: dict[str, Callable[[dict[str, Any]], None]] = {
    "name": put("name", value=ENV),
    "study": put("study", value=f"a{ENV}"),
    "paths.outputs": put("paths", "outputs", value=f"outputs/{ENV}"),
    "student.model": put("student", "model", value=f"/nowhere/{ENV}"),
    "teacher.models.0": put("teacher", "models", value=[ENV]),
    "prompts.prefix": put("prompts", "prefix", value=ENV),
    "prompts.system": put("prompts", "system", value="${oc.decode:'\"${oc.env:OPD_TEST_SECRET}\"'}"),
    "evaluate": put("evaluate", value="${oc.create:${oc.env:OPD_TEST_SECRET}}"),
    "optim.lr": put("optim", "lr", value="${times:${oc.env:OPD_TEST_SECRET},2}"),
    "divergence.alpha": put("divergence", "alpha", value="${hydra:runtime.cwd}"),
    "tracker.project": put(
        "tracker", value={"kind": "wandb", "project": ENV, "entity": None, "tags": [], "mode": "online"}
    ),
}  # fmt: skip


@pytest.mark.parametrize("key", INTERPOLATED)
def test_an_interpolation_in_a_recorded_config(key: str, trial: Trial):
    INTERPOLATED[key](trial.content)
    trial.write()
    trial.both_refused(key)


def test_an_interpolation_among_the_keys_and_a_value_left_open(trial: Trial):
    trial.write(**{ENV: 1})
    trial.both_refused("oc.env")
    trial.write(prompts=trial.content["prompts"] | {"prefix": "???"})
    trial.both_refused("prompts.prefix='???'")


def test_what_could_not_be_read_again_is_not_started(trial: Trial):
    said = trial.refused(r"prompts.suffix='\${oc.env:OPD_TEST_SECRET}'", *trial.given)
    assert said.startswith("prompts.suffix='${oc.env:OPD_TEST_SECRET}': is an interpolation or missing")


# ---- targets


TARGETS = [
    "os.system",
    "opd.objective.divergence.torch.load",
    "opd.objective.divergence.__builtins__.exec",
    "sweeps.slurm_commands.ask",
]


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_from_elsewhere(target: str, trial: Trial):
    mine = {"_target_": target, "_args_": trial.touch()}
    fine = {"_target_": "opd.objective.divergence.reverse_kl"}
    for node in (mine, {"_target_": "opd.objective.divergence.split", "inside": fine, "outside": mine}):
        trial.write(divergence=node)
        said = trial.refused(f"config={trial.file}", *trial.given)
        assert f"_target_={target!r}: only functions of opd.objective.divergence may stand here" in said


# ---- servers


@pytest.fixture
def listener():
    """A server on loopback that keeps what it is sent."""
    heard: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            heard.append(str(self.headers))
            self.send_error(503)

        do_POST = do_GET

        def log_message(self, format: str, *args: Any) -> None: ...

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", heard
    server.shutdown()
    server.server_close()


def test_a_recorded_config_sends_no_variable_of_the_environment_anywhere(listener, trial: Trial):
    url, heard = listener
    server = {"urls": [[url]], "responses_per_request": 1, "concurrency": 1, "timeout": 1.0, "patience": 0.0}
    trial.content["teacher"] |= {"engine": "server", "server": server | {"api_key_env": "OPD_TEST_SECRET"}}
    trial.content["support"] = {"_target_": "opd.objective.support.sampled"}
    trial.write()
    said = trial.refused(f"config={trial.file}", *trial.given)
    assert "teacher.server.api_key_env=OPD_TEST_SECRET" in said and url in said and not heard
    # Said again on the command line it is meant, and sent.
    said = trial.refused(f"config={trial.file}", *trial.given, "teacher.server.api_key_env=OPD_TEST_SECRET")
    assert "cannot be reached" in said and any(SECRET in headers for headers in heard)


# ---- files beside the config


@pytest.mark.parametrize(
    "flag", ["--config-dir={}", "--config-path={}", "--config-d={}", "-cd={}", "-cp={}", "hydra.searchpath=[file://{}]"]
)
def test_no_other_folder_of_configs_is_read(flag: str, trial: Trial):
    folder = trial.folder / "conf"
    (folder / "experiment").mkdir(parents=True)
    evil = {"hydra": {"callbacks": {"mine": {"_target_": "sweeps.slurm_commands.ask", "_args_": trial.touch()}}}}
    (folder / "experiment" / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(evil))
    (folder / "config.yaml").write_text(yaml.safe_dump({**trial.content, **evil}))
    said = trial.refused(flag.format(folder), "+experiment=mine", *trial.given)
    assert said.startswith((flag.partition("=")[0], "--config")) and "config=FILE" in said


@pytest.mark.parametrize(
    "group", ["+experiment", "divergence", "+hydra/callbacks", "+benchmark@evaluate.sources.a", "+sweep"]
)
def test_no_choice_leads_out_of_our_configs(group: str, trial: Trial):
    evil = {"hydra": {"callbacks": {"mine": {"_target_": "sweeps.slurm_commands.ask", "_args_": trial.touch()}}}}
    (trial.folder / "mine.yaml").write_text("# @package _global_\n" + yaml.safe_dump(evil))
    way = os.path.relpath(trial.folder / "mine", cli.CONF / group.lstrip("+").partition("@")[0])
    assert "is outside conf/" in trial.refused(f"{group}={way}", *trial.given)
    with pytest.raises(UserError, match="is outside conf/"), composer() as compose:
        compose.config([f"{group}={way}"])


def test_another_name_of_the_config_is_refused(trial: Trial):
    for flag in ("--config-name=scale/tiny", "-cn=scale/tiny"):
        assert "config=FILE" in trial.refused(flag, *trial.given)


@pytest.mark.parametrize("command", ["opd.train gamma=7", "sweeps.submit +sweep=epochs gamma=7 --dry-run"])
def test_no_plugin_is_imported_from_the_folder_one_stands_in(command: str, trial: Trial):
    trial.script("hydra_plugins/mine.py")
    trial.script("hydra_plugins/mine/__init__.py")
    done = subprocess.run(
        [sys.executable, "-m", *command.split()],
        cwd=trial.folder, env=os.environ | {"PYTHONPATH": str(cli.CONF.parent)}, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 2 and "gamma=7: should be" in done.stderr
    assert not trial.mark.exists(), "code ran"
