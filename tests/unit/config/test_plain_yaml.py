import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd.config.plain_yaml import MOST_VALUES, read_plain
from opd.records.run_dir import RecordError, RunDir

SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["1e-5", "no", "~"])
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(min_size=1), inner)), max_leaves=5
)


def careful(text: str):
    return OmegaConf.to_container(OmegaConf.create(OmegaConf.create(text)))


def test_a_config_is_read_as_omegaconf_reads_it():
    config = {
        "name": "default", "seed": 0, "lr": 1e-05, "clip": None, "grad": 1.0, "kept": True, "template": "raw",
        "teacher": {"models": ["sft:small", "sft:large"], "url": "http://host:8000/v1", "knobs": {}, "own": []},
        "mix": [[1, 2], {"a": "0.5", "b": [{"c": "no"}]}], "betas": [0.9, 0.95], "hash": "1e5", "text": "two words",
    }  # fmt: skip
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    assert read_plain(text.encode()) == config == careful(text)


@settings(deadline=None, max_examples=25)
@given(st.dictionaries(st.text(min_size=1), VALUE, min_size=1))
def test_what_is_read_is_what_omegaconf_reads(content):
    text = OmegaConf.to_yaml(OmegaConf.create(content)) if "${" not in str(content) else "a: 1\n"
    found = read_plain(text.encode())
    assert found is None or repr(found) == repr(careful(text))


@settings(deadline=None, max_examples=80)
@given(st.lists(st.text(alphabet="aby:- []{}'#0.1e_~+"), min_size=1).map("\n".join))
@example("a: 1e-5\nb: 1_0\nc: 0x1f\nd: 2020-01-01\ne: yes\nf: 1:30\n")
@example("a: 1_000.5\nb: 0o17\nc: 017\nd: 0b1\ne: +1\nf: .5\ng: -.inf\nh: .NaN\ni: ~\nj: 'it'\nk: NULL\nl: =\n")
@example("a:\n- - 1\n  - b: 2\n    c: []\n- {}\nd:\n  - e\n")
def test_text_that_means_something_else_to_another_parser_is_read_as_omegaconf_reads_it(text):
    found = read_plain(text.encode())
    if found is not None:
        try:
            expected = careful(text)
        except (yaml.YAMLError, OmegaConfBaseException) as error:
            pytest.fail(f"read as {found}, refused by OmegaConf: {error}")
        assert repr(found) == repr(expected)


@pytest.mark.parametrize(
    "text",
    ["a: ${b}", "a: ???", "1: 2", "a: !!binary aGk=", "- 1", "", "a: [", "a: 1\na: 2", "a: " + "[" * 100_000,
     "- " * 100_000, "a: !!python/object/apply:os.getcwd []"],
)  # fmt: skip
def test_what_is_omegaconf_s_own_or_broken_or_deep_is_left_to_it(text):
    assert read_plain(text.encode()) is None


def test_content_that_is_not_utf_8_is_left_alone():
    assert read_plain(b"a: \xff") is None


@pytest.mark.parametrize("depth", [12, 1])
def test_lines_that_unfold_without_end_are_refused(tmp_path, depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    run = RunDir(tmp_path)
    run.write_config("\n".join(lines) + "\n" + ("itself: &itself [*itself]\n" if depth == 1 else ""))
    with pytest.raises(RecordError, match=rf"config\.yaml: unfolds to more than {MOST_VALUES} values"):
        run.config()
    run.write_config("\n".join(lines[:3]))
    assert run.config()["a0"] == ["x"] * 10
