"""Which packages a command line names, what they hold and by which hash, and that nothing else loads one."""

import sys
from pathlib import Path

import pytest

from opd.check import config as check, signal
from opd.config import plugins
from opd.config.places import CONF
from opd.errors import UserError
from opd.records.config_argument import confirmations, store

METHOD = """
import torch

from opd.objective.divergence import Divergence
from opd.step.terms import Advantage, term


def mine(*, power: float) -> Divergence:
    return Divergence(generator=lambda u: u, slope=lambda u: power * u)


@term()
def calm(batch) -> Advantage:
    return Advantage(torch.zeros(2))
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package that can be found."""
    folder = tmp_path / "someones_methods"
    (folder / "conf" / "divergence").mkdir(parents=True)
    (folder / "__init__.py").write_text(METHOD)
    (folder / "conf" / "divergence" / "theirs.yaml").write_text("_target_: someones_methods.mine\npower: 2.0\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(plugins, "_used", {})
    yield folder
    sys.modules.pop("someones_methods", None)


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ([], []),
        (["gamma=0.5", "plugins=[a]"], ["a"]),
        (["plugins=[a, b.c]"], ["a", "b.c"]),
        (["+plugins=a"], ["a"]),
        (["plugins=[a]", "plugins=[]"], []),
        (["--plugins=[a]", "name=plugins=[a]"], []),
    ],
)
def test_a_command_line_names_packages(words: list[str], names: list[str]):
    assert plugins.named(words) == names


@pytest.mark.parametrize("given", ["plugins=[a-b]", "plugins=[../a]", "plugins=[{a:1}]", "plugins=[os;x]"])
def test_what_is_no_name_is_refused(given: str):
    with pytest.raises(UserError, match=r"give names of packages, as plugins=\[my_package\]"):
        plugins.named([given])


def test_only_a_package_that_is_named_may_be_named_by_a_config(package: Path):
    node = {"_target_": "someones_methods.mine", "power": 2.0}
    with pytest.raises(UserError, match=r"only functions of opd\.objective\.divergence may"):
        check.check_node("divergence", node)
    assert "someones_methods" not in sys.modules, "nothing of it has run"
    plugins.use(["someones_methods"])
    check.check_node("divergence", node)
    with pytest.raises(UserError, match=r"divergence.power='2': should be a valid number for divergence=mine"):
        check.check_node("divergence", {**node, "power": "2"})
    with pytest.raises(UserError, match="the plug-in has no such function"):
        check.check_node("divergence", {"_target_": "someones_methods.absent"})
    for elsewhere in ("someones_methods_too.mine", "os.system", "someones_methods"):
        with pytest.raises(UserError, match="may stand here"):
            check.check_node("divergence", {"_target_": elsewhere})


def test_its_files_are_choices_and_its_terms_are_terms(package: Path):
    assert (
        plugins.conf_folders() == [CONF] and plugins.overrides() == [] and "theirs" not in plugins.files("divergence")
    )
    with pytest.raises(UserError, match="no such term"):
        signal.term_spec("calm")
    plugins.use(["someones_methods"])
    assert plugins.files("divergence")["theirs"] == package / "conf/divergence/theirs.yaml"
    assert "reverse_kl" in plugins.files("divergence")
    assert plugins.overrides() == [f"hydra.searchpath=['file://{package / 'conf'}']"]
    assert signal.term_spec("calm").kind == "Advantage" and signal.terms()["calm"] == "someones_methods.calm"


def test_its_hash_is_of_what_stands_in_it(package: Path):
    def hashed() -> str:
        plugins._used.clear()
        plugins.use(["someones_methods"])
        return plugins.used()["someones_methods"].hash

    first = hashed()
    (package / "notes.txt").write_text("nothing that runs")
    (package / "__pycache__").mkdir(exist_ok=True)
    assert hashed() == first
    (package / "more.py").write_text("")
    second = hashed()
    (package / "more.py").rename(package / "other.py")
    third = hashed()
    (package / "conf/divergence/theirs.yaml").write_text("_target_: someones_methods.mine\npower: 3.0\n")
    assert len({first, second, third, hashed()}) == 4


def test_a_package_that_is_not_there_is_refused(package: Path):
    for name in ("not_there_at_all", "someones_methods.not_there"):
        with pytest.raises(UserError, match=rf"plugins=\[{name}\]: there is no such package"):
            plugins.use([name])


def test_a_recorded_config_says_which_to_name_and_loads_none(package: Path):
    recorded = {"name": "a", "plugins": ["someones_methods"]}
    assert confirmations(recorded) == ["plugins=[someones_methods]"]
    with pytest.raises(UserError, match=r"plug-in someones_methods.*give plugins=\[someones_methods\]"):
        store(recorded)
    assert "someones_methods" not in sys.modules and not plugins.used()
    plugins.use(["someones_methods"])
    assert store(recorded)
