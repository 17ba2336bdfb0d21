"""What is read from the source of the methods is what Python makes of it."""

import importlib
import inspect
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from opd.check import config as check, signal, signatures
from opd.step import terms
from opd.step.terms import Term

TARGETS = [(group, target) for group in check.MODULES for target in sorted(check.targets(group))]


@pytest.mark.parametrize(("group", "target"), TARGETS)
def test_knobs_match_signature(group: str, target: str):
    parameters = inspect.signature(signatures.imported(target)).parameters.values()
    expected = {each.name: each.annotation for each in parameters if each.kind is each.KEYWORD_ONLY}
    assert signatures.knobs(target) == list(expected)
    # By their texts: pydantic's Field(ge=1) is not equal to another.
    assert {knob: repr(signatures.kind(target, knob)) for knob in expected} == {k: repr(v) for k, v in expected.items()}


@pytest.mark.parametrize("target", sorted(check.targets("ensemble")))
def test_ensemble_traits(target: str):
    made = signatures.imported(target)
    assert (signatures.trait(target, "at_least"), signatures.trait(target, "at_most")) == (made.at_least, made.at_most)


def test_reading_imports_no_torch():
    script = """
        import sys
        from opd.check import config as check
        from opd.check import signatures
        for group in check.MODULES:
            for target in check.targets(group):
                local = {"split": ["inside", "outside"], "value_weighted": ["of"]}.get(target.rpartition(".")[2], [])
                for knob in signatures.knobs(target):
                    if knob not in local and knob not in check.BUILT_BY_THE_RUN.get(group, ()):
                        signatures.kind(target, knob)
                if group == "ensemble":
                    assert signatures.trait(target, "at_least")
        assert not {"torch", "transformers", "numpy"} & set(sys.modules)
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True)


# A way to declare that is not read → (knobs, type of the first, what a decorator was given).
UNUSUAL = """
    import functools
    from typing import Annotated
    from annotated_types import Ge

    class Weight(float):
        pass

    def making(**traits):
        def make(function):
            function.__dict__.update(traits)
            return function
        return make

    @making(at_least=2)
    def own(*, weight: Weight): ...

    @making(**{"at_least": 3})
    def spread(*, size: Annotated[int, Ge(10 - 9)]): ...

    assigned = making(at_least=4)(lambda *, size=1: None)
    parted = functools.partial(spread, size=2)
    parted.at_least = 5

    class Made:
        at_least = 6

        def __init__(self, root, *, size: "list[int]"): ...
"""
DECLARED = {"own": ["weight"], "spread": ["size"], "assigned": ["size"], "parted": ["size"], "Made": ["size"]}


@pytest.mark.parametrize("name", DECLARED)
def test_imports_what_source_does_not_declare(name: str, tmp_path: Path, monkeypatch):
    (tmp_path / "unusual.py").write_text(textwrap.dedent(UNUSUAL))
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("unusual")
    target, (knob,) = f"unusual.{name}", DECLARED[name]
    assert signatures.knobs(target) == [knob]
    assert signatures.kind(target, knob) == inspect.signature(getattr(module, name)).parameters[knob].annotation
    if name != "Made":
        assert signatures.trait(target, "at_least") == getattr(module, name).at_least
    monkeypatch.delitem(sys.modules, "unusual")
    signatures._declared.cache_clear()


def test_term_traits():
    found = {name: each for name, each in vars(terms).items() if isinstance(each, Term)}
    assert signatures.decorated(signal.MODULE, "term") == list(found)
    for name, term in found.items():
        read = signal.term_spec(name)
        assert (read.kind, read.needs, read.constant) == (term.kind.__name__, term.needs, term.constant)
