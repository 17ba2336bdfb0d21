"""What an unknown key is taken for."""

import pytest

from opd.config.hints import ALIASES, known_keys, no_such_key
from opd.config.schema import CONF


@pytest.mark.parametrize(
    ("key", "said"),
    [
        ("student.lora.rank", "with this choice; lora=all_linear has it"),
        ("tracker.mode", "with this choice; tracker=wandb has it"),
        ("ensemble.boundaries", "with this choice; ensemble=hard_switch has it"),
        ("lr", "; did you mean optim.lr?"),
        ("learning_rate", "; did you mean optim.lr?"),
        ("optim.learning_rate", "; did you mean optim.lr?"),
        ("temperature", "; did you mean rollout.temperature?"),
        ("actor.grad_clip", "; did you mean optim.grad_clip?"),
        ("use_lora", "; did you mean lora=all_linear?"),
        ("betas", "; did you mean optim.betas?"),
        ("optim.lrr", "; did you mean optim.lr?"),
        ("student.modl", "; did you mean student.model?"),
        ("entropy_coef", "; it is now signal.entropy"),
        ("zzzzzz", ""),
    ],
)
def test_a_key_that_is_not_there(key: str, said: str):
    sentence = no_such_key(key)
    assert sentence == f"{key}: there is no such key{' ' if said.startswith('with') else ''}{said}"


def test_choices_that_have_the_key_are_named():
    assert "divergence=alpha_divergence" in no_such_key("divergence.alpha")
    assert no_such_key("divergence.alpha").endswith(" have it")


def test_no_key_is_taken_for_itself():
    assert [key for key in known_keys() if f"did you mean {key}?" in no_such_key(key)] == []


def test_aliases_lead_to_keys_and_choices_that_there_are():
    keys = {*known_keys(), "rollout.temperature", "prompts.source.file", "signal.near_start", "signal.entropy"}
    for meant in ALIASES.values():
        group, equals, name = meant.partition("=")
        assert (CONF / group / f"{name}.yaml").is_file() if equals else meant in keys, meant
