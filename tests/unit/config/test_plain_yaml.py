import pytest
import yaml
from hypothesis import example, given, settings, strategies as st
from omegaconf import OmegaConf

from opd.config.plain_yaml import MOST_VALUES, load_yaml
from opd.records.files import RecordError
from opd.records.run_dir import RunDir

SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["1e-5", "no", "~"])
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(min_size=1), inner)), max_leaves=5
)


def by_omegaconf(text: str):
    return OmegaConf.to_container(OmegaConf.create(OmegaConf.create(text)))


def test_a_config_is_read_as_omegaconf_reads_it():
    config = {
        "name": "default", "seed": 0, "lr": 1e-05, "clip": None, "grad": 1.0, "kept": True, "template": "raw",
        "teacher": {"models": ["sft:small", "sft:large"], "url": "http://host:8000/v1", "knobs": {}, "own": []},
        "mix": [[1, 2], {"a": "0.5", "b": [{"c": "no"}]}], "betas": [0.9, 0.95], "hash": "1e5", "text": "two words",
    }  # fmt: skip
    text = OmegaConf.to_yaml(OmegaConf.create(config))
    assert load_yaml(text) == config == by_omegaconf(text)


@settings(deadline=None, max_examples=50)
@given(st.dictionaries(st.text(min_size=1), VALUE, min_size=1))
@example({"a": "\x85\u2028\ufeff\t\x00", "b": "🙂", "c": "- x: [", "d": "1_0", "e": "0o17"})
def test_what_omegaconf_writes_is_read_as_it_reads_it(content):
    text = OmegaConf.to_yaml(OmegaConf.create(content)) if "${" not in str(content) else "a: 1\n"
    assert repr(load_yaml(text)) == repr(by_omegaconf(text))


@pytest.mark.parametrize(
    "text",
    ["a: 1e-5\nb: 1_0\nc: 0x1f\nd: 2020-01-01\ne: yes\nf: 1:30\n",
     "a: 1_000.5\nb: 0o17\nc: 017\nd: 0b1\ne: +1\nf: .5\ng: -.inf\nh: .NaN\ni: ~\nj: 'it'\nk: NULL\n",
     "a:\n- - 1\n  - b: 2\n    c: []\n- {}\nd:\n  - e\n"],
)  # fmt: skip
def test_an_edited_config_is_read_as_omegaconf_reads_it(text: str):
    assert repr(load_yaml(text)) == repr(by_omegaconf(text))


@pytest.mark.parametrize("text", ["a: ${b}", "a: ???", "a: ${oc.env:HOME}"])
def test_nothing_is_resolved(text: str):
    assert load_yaml(text) == {"a": text[3:]}


@pytest.mark.parametrize(
    "text",
    ["a: !!binary aGk=", "a: [", "a: 1\na: 2", "a: " + "[" * 100_000, "- " * 100_000, "a: !!set {b}",
     "a: !!timestamp 2020-01-01", "a: !!python/object/apply:os.getcwd []", "? " * 100_000,
     "".join(" " * depth + "a:\n" for depth in range(1_400))],
)  # fmt: skip
def test_what_is_broken_or_deep_or_no_plain_data_is_refused(text: str):
    with pytest.raises((ValueError, yaml.YAMLError, RecursionError)):
        load_yaml(text)


@pytest.mark.parametrize("content", [b"", b"- 1", b"text", b"a: \xff"])
def test_a_config_that_is_no_mapping_is_refused(content: bytes, tmp_path):
    (tmp_path / "config.yaml").write_bytes(content)
    with pytest.raises(RecordError, match=r"config\.yaml: "):
        RunDir(tmp_path).config()


@pytest.mark.parametrize("depth", [12, 1])
def test_lines_that_unfold_without_end_are_refused(tmp_path, depth):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, depth)]
    run = RunDir(tmp_path)
    run.write_config("\n".join(lines) + "\n" + ("itself: &itself [*itself]\n" if depth == 1 else ""))
    with pytest.raises(RecordError, match=rf"config\.yaml: expands to more than {MOST_VALUES} values"):
        run.config()
    run.write_config("\n".join(lines[:3]))
    assert run.config()["a0"] == ["x"] * 10
