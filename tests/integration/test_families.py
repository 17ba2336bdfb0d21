"""Trials of whole runs, as `python -m docs.families` makes them of every family."""

import pytest

from docs.families.__main__ import outcomes

HOW = {"qwen3": "ours", "gemma2": "ours", "gemma3": "ours", "qwen3_next": "transformers", "mamba2": "transformers"}


@pytest.mark.apart
def test_families_learn_teach_resume_and_are_saved():
    found = dict(outcomes([*HOW, "prophetnet"], workers=1))
    assert {family: (found[family].state, found[family].sampler) for family in HOW} == {
        family: ("works", sampler) for family, sampler in HOW.items()
    }, found
    assert (
        found["prophetnet"].state == "refused" and "does not read its output head once" in found["prophetnet"].sentence
    )


def test_a_trial_that_does_not_end_is_ended():
    ((family, outcome),) = outcomes(["qwen3"], workers=1, limit=0.0)
    assert (family, outcome.state, outcome.sentence) == ("qwen3", "fails", "no end in 0 s")
