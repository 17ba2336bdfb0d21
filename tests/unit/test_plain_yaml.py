from pathlib import Path

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opd.plain_yaml import MOST_VALUES, read_plain
from opd.records import RecordError, RunDir

GOLDEN = sorted((Path(__file__).parents[1] / "golden/configs").rglob("*.yaml"))
SCALAR = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["1e-5", "no", "~"])
)
VALUE = st.recursive(
    SCALAR, lambda inner: st.one_of(st.lists(inner), st.dictionaries(st.text(min_size=1), inner)), max_leaves=12
)


def careful(text: str):
    return OmegaConf.to_container(OmegaConf.create(OmegaConf.create(text)))


@pytest.mark.parametrize("file", GOLDEN[::25], ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_a_config_is_read_as_omegaconf_reads_it(file):
    found = read_plain(file.read_bytes())
    assert found and found == careful(file.read_text())


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(min_size=1), VALUE, min_size=1), st.booleans())
def test_what_is_read_is_what_omegaconf_reads(content, flow):
    text = yaml.safe_dump(content, default_flow_style=flow)
    found = read_plain(text.encode())
    if found is not None:
        assert repr(found) == repr(careful(text))
    else:
        assert "${" in text or "???" in text or any(not character.isprintable() for character in text)


@settings(deadline=None, max_examples=300)
@given(st.text(alphabet="ab:- \n\t[]{},'\"#&*!|>?0.1e_~"))
@example("a: 1e-5\nb: 1_0\nc: 0x1f\nd: 2020-01-01\ne: yes\nf: 1:30\n")
@example("a: &x [1]\nb: *x\n")
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


def test_lines_that_unfold_without_end_are_refused(tmp_path):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    run = RunDir(tmp_path)
    run.write_config("\n".join(lines))
    with pytest.raises(RecordError, match=rf"config\.yaml: holds more than {MOST_VALUES} values"):
        run.config()
