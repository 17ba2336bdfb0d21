"""Benchmarks are completed from a name, a file, or what is given of their sources."""

from pathlib import Path

import pytest
import yaml

from opd import cli
from opd.config import plugins, words
from opd.config.plugins import Plugin
from opd.config.schema import Dataset
from opd.errors import UserError
from sweeps.compose import composer
from tests.integration.conftest import composed

OWN = ["scale=own", "student.model=m", "prompts.source.file=p.jsonl"]


def read(*typed: str) -> dict[str, Dataset]:
    """The sources of `python -m opd.train` with these words."""
    return composed(words.as_read(typed, multirun=False)).evaluate.sources  # pyright: ignore[reportReturnType]


def test_a_file_is_a_benchmark():
    found = read(*OWN, "evaluate.benchmarks=[data/my test.csv,gsm8k]", "evaluate.sources.my-test.problem_field=q")
    assert list(found) == ["my-test", "gsm8k"]
    own, hub = found.values()
    assert (own.file, own.problem_field, own.hub, own.grader) == ("data/my test.csv", "q", None, "mathematics")
    assert (hub.hub, hub.problem_field, hub.split) == ("openai/gsm8k", "question", "test")


def test_a_name_has_the_source_that_is_given_and_the_rest_is_kept_here():
    found = read(
        "evaluate.benchmarks=[mine,gsm8k,arithmetic]",
        "evaluate.sources.mine={hub: me/data, answer_field: gold, grader: exact, where: {level: [3, hard, true]}}",
        "evaluate.sources.gsm8k.limit=5",
        "evaluate.sources.arithmetic.num=7",
    )
    mine, gsm8k, arithmetic = found.values()
    assert (mine.hub, mine.answer_field, mine.grader, mine.id_field) == ("me/data", "gold", "exact", "id")
    assert mine.where == {"level": ["3", "hard", "true"]}
    assert (gsm8k.hub, gsm8k.limit) == ("openai/gsm8k", 5) and arithmetic.num == 7  # pyright: ignore


@pytest.mark.parametrize(
    ("typed", "sentence"),
    [
        (
            ["evaluate.sources.mine.file=x"],
            "evaluate.sources.mine: is not in evaluate.benchmarks; add it, as evaluate.b",
        ),
        (["evaluate.sources.arithmetc.num=2"], "evaluate.sources.arithmetc: is not in evaluate.benchmarks; add it"),
        (
            ["evaluate.benchmarks=[mine]"],
            "evaluate.benchmarks: 'mine' has no entry in evaluate.sources; known here: arith",
        ),
        (
            ["evaluate.benchmarks=[a/t.csv,b/t.csv]"],
            "evaluate.benchmarks: a/t.csv is not the only benchmark with the n",
        ),
        (
            [*OWN, "evaluate.benchmarks=[gsm8k.csv]"],
            "evaluate.benchmarks: gsm8k.csv is not the only benchmark with the",
        ),
        (
            ["evaluate.benchmarks=[t.csv]", "evaluate.sources.t.colour=red"],
            "evaluate.sources.t.colour: there is no such key",
        ),
        (
            ["evaluate.benchmarks=[t]", "evaluate.sources.t.grader=exact"],
            "evaluate.sources.t.file: has no value; give it a file of problems (JSONL, CSV or Parquet), or name a",
        ),
        (
            [*OWN[:2]],
            "prompts.source.file: has no value; give it a file of problems (JSONL, CSV or Parquet), or name a",
        ),
        (["evaluate.sources.arithmetic.nmu=2"], "evaluate.sources.arithmetic.nmu: there is no such key"),
        (["evaluate.benchmarks=[sort]"], "follows recipes.novice.mix"),
        (["scale=small", "prompts=arithmetic"], "prompts.source.mix: follows recipes.student.mix, which scale=small d"),
        (["prompts=own", "prompts.source.where={a: {b: 1}}", "prompts.source.file=x"], "prompts.source.where.a"),
    ],
)
def test_what_is_no_benchmark_is_refused_in_one_sentence(typed: list[str], sentence: str):
    with pytest.raises(UserError) as refusal:
        read(*typed)
    assert sentence in str(refusal.value) and "\n" not in str(refusal.value)


def test_what_a_refusal_says_to_add_is_right():
    with pytest.raises(UserError) as refusal:
        read("scale=small", "prompts=arithmetic")
    assert read("scale=small", "prompts=arithmetic", str(refusal.value).rpartition("add ")[2])
    with pytest.raises(UserError) as refusal:
        read("evaluate.benchmarks=[sort]")
    assert list(read("evaluate.benchmarks=[sort]", str(refusal.value).rpartition("add ")[2])) == ["sort"]


def test_an_evaluation_needs_no_prompts():
    with composer() as composing:
        config = composing.composed([*OWN[:2], "evaluate.benchmarks=[gsm8k]"])
        assert cli.prepared(config, trains=False).prompts.source.kind == "dataset"


def test_a_plug_ins_files_need_no_keys_that_came_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    source = yaml.safe_load((cli.CONF / "benchmark" / "base.yaml").read_text()) | {"file": "theirs.jsonl"}
    later = ("problem", "where", "grader")
    folder = tmp_path / "theirs"
    earlier = {key: value for key, value in source.items() if key not in later}
    shown = {"template": "raw", "system": None, "prefix": "", "suffix": "", "max_prompt_length": 9}
    for group, content in {"benchmark": earlier, "prompts": {"source": earlier, **shown}}.items():
        (folder / "conf" / group).mkdir(parents=True)
        (folder / "conf" / group / "theirs.yaml").write_text(yaml.safe_dump(content))
    (folder / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(plugins._used, "theirs", Plugin("theirs", folder, True, ""))
    with composer() as composing:
        config = composing.config(["prompts=theirs", "evaluate.benchmarks=[theirs]", "batch_size=1"])
    for found in (config.evaluate.sources["theirs"], config.prompts.source):
        assert isinstance(found, Dataset) and (found.file, found.problem, found.where) == ("theirs.jsonl", None, {})
