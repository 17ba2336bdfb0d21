"""What a user types, and what Hydra reads."""

from pathlib import Path

import pytest
from hypothesis import example, given, strategies as st

from opd.config import words
from opd.config.words import as_read, is_text, typed
from opd.errors import UserError

SIGNS = st.text(st.sampled_from("\\'\"ab {}[],:=()$#\n\t~@%!|;&*?"), min_size=1, max_size=12)


def value_of(word: str, *, multirun: bool = False) -> object:
    """What a config gets of one override."""
    (read,) = as_read([word], multirun=multirun)
    return words._parsed(read).value()


@given(SIGNS.filter(lambda text: not text.startswith("${")))
@example("\\\n")
@example(r"\boxed{\'}\\")
def test_a_text_comes_back_as_it_was(text: str):
    assert words._parsed(f"prompts.suffix={typed(text)}").value() == text


@pytest.mark.parametrize(
    ("typed_word", "value"),
    [
        (r"prompts.suffix=\boxed{}", r"\boxed{}"),
        (r"prompts.suffix=Put it in \boxed{}, please.", r"Put it in \boxed{}, please."),
        ("prompts.prefix=Don't", "Don't"),
        ("prompts.prefix=x=1", "x=1"),
        ("prompts.system=(be brief)", "(be brief)"),
        ("prompts.system=yes, please", "yes, please"),
        ("prompts.system='as, given'", "as, given"),
        ("prompts.system=null", None),
        ("prompts.suffix=[a", "[a"),
        ("name=7", "7"),
        ("name=true", "true"),
        ("student.revision=1e5", "1e5"),
        ("evaluate.sources.mine.file=my file (1).jsonl", "my file (1).jsonl"),
        ("paths.outputs=~/runs", f"{Path.home()}/runs"),
        ("student.model=~/models/x", f"{Path.home()}/models/x"),
        ("teacher.models=[~/a,b]", [f"{Path.home()}/a", "b"]),
        ("prompts.suffix=a~/b", "a~/b"),
        ('prompts.suffix="\\nAnswer:"', "\nAnswer:"),
        ("prompts.suffix=\\nAnswer: {}", "\nAnswer: {}"),
        ('prompts.suffix="\\n\\nnow"', "\n\nnow"),
        ('prompts.suffix="is x \\neq 1 or \\nabla?"', r"is x \neq 1 or \nabla?"),
        (r'prompts.suffix="a \\n b"', r"a \\n b"),
        ('name="\\nx"', r"\nx"),
        ("optim.lr=1e-4", 1e-4),
        ("signal.entropy=[0.1,0]", [0.1, 0]),
    ],
)
def test_a_value_is_what_it_looks_like(typed_word: str, value: object):
    assert value_of(typed_word) == value


@pytest.mark.parametrize("word", ["--cfg", "-m", "~signal", "+experiment=mis", "divergence=hellinger", "gamma=0.5"])
def test_other_words_stay(word: str):
    assert as_read([word], multirun=False) == [word]


def test_commas_separate_texts_where_several_runs_are_made():
    assert as_read(["prompts.suffix=a,b"], multirun=True) == ["prompts.suffix=a,b"]
    assert value_of("prompts.suffix=a,b") == "a,b"


def test_a_long_text_stands_in_a_file(tmp_path: Path):
    text = "First think.\nThen answer in \\boxed{}, \"quoted\" and 'so'.\n"
    (tmp_path / "suffix.txt").write_text(text)
    assert value_of(f"prompts.suffix=@{tmp_path / 'suffix.txt'}") == text.removesuffix("\n")
    for file, said in {"none.txt": "there is no such file", ".": "there is no such file"}.items():
        with pytest.raises(UserError, match=rf"^prompts.suffix=@{tmp_path}.*: {said}"):
            as_read([f"prompts.suffix=@{tmp_path / file}"], multirun=False)
    (tmp_path / "bytes").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match="cannot be read as text"):
        as_read([f"prompts.suffix=@{tmp_path / 'bytes'}"], multirun=False)


@pytest.mark.parametrize(
    ("given_words", "said"),
    [
        (["divergence", "hellinger"], "divergence: has no value; type divergence=hellinger"),
        (["gamma"], "gamma: has no value; type gamma=VALUE"),
        (["signal={a:"], "signal: '{a:' cannot be read; if it is a text, type 'signal=\"{a:\"', quotes and all"),
        (["optim.lr=a'b"], 'optim.lr: "a\'b" cannot be read; if it is a text, type'),
    ],
)
def test_what_cannot_be_read_is_refused_by_its_key_with_what_to_type(given_words: list[str], said: str):
    with pytest.raises(UserError) as refused:
        as_read(given_words, multirun=False)
    assert str(refused.value).startswith(said) and "\n" not in str(refused.value)


def test_texts_are_those_of_the_schema():
    texts = ["prompts.suffix", "student.model", "paths.data", "name", "prompts.source.file", "recipes.mine.start"]
    others = ["optim.lr", "divergence", "teacher.models", "prompts.template", "signal", "teacher.dtype", "nonsense"]
    assert [key for key in [*texts, *others] if is_text(key)] == texts
