"""What the rows of files and of the hub's datasets are as problems, and which are refused."""

import json
import os
import subprocess
import sys
import textwrap
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from opd.config.schema import Dataset
from opd.data.dataset import load_problems
from opd.data.problem import Problem
from opd.errors import UserError
from tests.shared_data import shared

SIZES = {"aime24": 30, "aime25": 30, "hmmt_feb25": 30, "brumo25": 30, "beyondaime": 100, "deepmath_sample": 2000}
SIZES |= {"gsm8k_train": 7473, "gsm8k_test": 1319}

SOURCE = Dataset(
    kind="dataset",
    hub=None,
    config=None,
    split="train",
    revision=None,
    streaming=False,
    file=None,
    problem=None,
    problem_field="problem",
    answer_field="answer",
    id_field="id",
    where={},
    domain="mathematics",
    limit=None,
    grader="mathematics",
)


def written(folder: Path, *lines: object) -> Dataset:
    """A source whose file holds these lines: text as it is, anything else as JSON."""
    file = folder / "set.jsonl"
    texts = [item if isinstance(item, str | bytes) else json.dumps(item, ensure_ascii=False) for item in lines]
    file.write_bytes(b"\n".join(text if isinstance(text, bytes) else text.encode() for text in texts))
    return replace(SOURCE, file=str(file))


def line(number: int, **fields: object) -> dict[str, object]:
    return {"id": f"p{number}", "problem": f"{number}+1=", "answer": str(number + 1)} | fields


# ---- files


@pytest.mark.parametrize("name", SIZES)
def test_real_set(name):
    problems = load_problems(replace(SOURCE, file=f"{name}.jsonl"), data_dir=shared(f"{name}.jsonl").parent)
    assert len(problems) == SIZES[name] == len({problem.id for problem in problems})
    assert all(problem.problem.strip() and problem.answer.strip() for problem in problems)
    first = json.loads(shared(f"{name}.jsonl").read_bytes().split(b"\n")[0])
    assert problems[0] == Problem(first["id"], first["problem"], first["answer"], "mathematics")


def test_file_is_looked_for_as_given_then_under_data_dir(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    written(tmp_path / "data", line(1))
    source = replace(SOURCE, file="set.jsonl", hub="nobody/is-asked")
    assert load_problems(source, data_dir=tmp_path / "data")[0].id == "p1"
    written(tmp_path, line(2))
    assert load_problems(source, data_dir=tmp_path / "data")[0].id == "p2"


def test_lines_end_at_line_feeds_alone(tmp_path):
    strange = "a\u2028b\x85c"
    source = written(
        tmp_path, b"\xef\xbb\xbf" + json.dumps(line(1)).encode() + b"\r", "", line(2, problem=strange), "  "
    )
    assert [problem.problem for problem in load_problems(source, data_dir=None)] == ["1+1=", strange]


def test_file_may_use_the_hubs_field_names_or_the_projects(tmp_path):
    source = written(
        tmp_path, {"question": "1+1=", "solution": 2, "idx": 7}, {"id": "own", "problem": "2+1=", "answer": "3"}
    )
    source = replace(source, problem_field="question", answer_field="solution", id_field="idx")
    problems = load_problems(source, data_dir=None)
    assert problems == [Problem("7", "1+1=", "2", "mathematics"), Problem("own", "2+1=", "3", "mathematics")]


def test_problem_without_an_id_gets_one_from_its_place(tmp_path):
    source = replace(written(tmp_path, {"problem": "a", "answer": "1"}, "", line(3)), id_field=None)
    assert [problem.id for problem in load_problems(source, data_dir=None)] == ["set-00001", "p3"]


@pytest.mark.parametrize(
    ("answer", "gold"),
    [
        ("6*2=<<6*2=12>>12\n#### 12", "12"),
        ("#### 1,234", "1234"),
        ("not #### 7 but\n#### 8", "8"),
        (" 7 ", "7"),
        (7, "7"),
        (2.5, "2.5"),
        (r"\pi", r"\pi"),
    ],
)
def test_gold(tmp_path, answer, gold):
    assert load_problems(written(tmp_path, line(1, answer=answer)), data_dir=None)[0].answer == gold


def test_limit_takes_the_first(tmp_path):
    source = written(tmp_path, line(1), line(2), line(3))
    assert [problem.id for problem in load_problems(replace(source, limit=2), data_dir=None)] == ["p1", "p2"]
    assert len(load_problems(replace(source, limit=9), data_dir=None)) == 3


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ([], r"set\.jsonl: has no problems"),
        ([line(1), '{"id": '], r"set\.jsonl, line 2: is not JSON \(Expecting value"),
        (["[" * 100_000], r"line 1: is not JSON"),
        ([b'{"id": "\xff"}'], r"line 1: is not JSON \('utf-8' codec"),
        (["[1]"], r"line 1: is not a JSON object"),
        (
            [line(1), {"id": "2", "problem": "a"}],
            r"line 2: has no field 'answer' \(answer_field\); its fields are 'id', 'problem'; signal.reward needs",
        ),
        ([line(1), line(1)], r"line 2: the id 'p1' was already given at .*set\.jsonl, line 1"),
        ([line(1, problem=" \n")], r"line 1: the field 'problem' is empty"),
        ([line(1, answer="")], r"line 1: the field 'answer' is empty"),
        ([line(1, answer="so #### ")], r"line 1: nothing follows '####'"),
        ([line(1, answer=None)], r"line 1: the field 'answer' contains NoneType, not text"),
        ([line(1, answer=["1"])], r"line 1: the field 'answer' contains list, not text"),
        ([line(1, problem=True)], r"line 1: the field 'problem' contains bool, not text"),
    ],
)
def test_damaged_file_is_refused(tmp_path, lines, sentence):
    with pytest.raises(UserError, match=sentence) as refusal:
        load_problems(written(tmp_path, *lines), data_dir=None, graded="signal.reward")
    assert "\n" not in str(refusal.value)


def test_no_file_and_no_hub(tmp_path):
    with pytest.raises(
        UserError, match=r"^file=none\.jsonl: there is no such file, nor .*/none\.jsonl, and there is no hub="
    ):
        load_problems(replace(SOURCE, file="none.jsonl"), data_dir=tmp_path)
    with pytest.raises(UserError, match=r"needs a file= \(JSONL, CSV or Parquet\) or a hub="):
        load_problems(SOURCE, data_dir=None)
    (tmp_path / "set.jsonl").mkdir()
    with pytest.raises(UserError, match=r"file=set\.jsonl: .*/set\.jsonl is a directory; name a file in it"):
        load_problems(replace(SOURCE, file="set.jsonl"), data_dir=tmp_path)


# ---- fields


def test_only_grading_needs_answers(tmp_path):
    lines = {"problem": "a"}, {"problem": "b", "answer": ""}, {"problem": "c", "answer": ["x"]}, line(4)
    source = written(tmp_path, *lines)
    assert [problem.answer for problem in load_problems(source, data_dir=None)] == ["", "", "", "5"]
    with pytest.raises(UserError, match=r"line 1: .*'problem'; evaluate.benchmarks needs an answer to each problem$"):
        load_problems(source, data_dir=None, graded="evaluate.benchmarks")
    with pytest.raises(UserError, match=r"line 1: has no answer, because answer_field is null; evaluate"):
        load_problems(replace(source, answer_field=None), data_dir=None, graded="evaluate.benchmarks")


def test_an_id_that_was_named_must_be_there_and_ours_need_not(tmp_path):
    source = written(tmp_path, {"problem": "a", "answer": "1"}, line(2), {"problem": "c", "answer": "1"})
    assert [problem.id for problem in load_problems(source, data_dir=None)] == ["set-00001", "p2", "set-00003"]
    with pytest.raises(UserError, match=r"line 1: has no field 'uid' \(id_field\); its fields are"):
        load_problems(replace(source, id_field="uid"), data_dir=None)


ROWS = [
    {"q": "Capital of France?", "text": 'A, "B"\nC', "level": 3, "options": ["Rome", "Paris"], "gold": "B"},
    {"q": "2 {x}?", "text": "none", "level": 4, "options": ["1", "2"], "gold": "A"},
]
WRITTEN = {
    "jsonl": lambda file: file.write_text("\n".join(map(json.dumps, ROWS))),
    "json": lambda file: file.write_text(json.dumps(ROWS)),
    "JSON": lambda file: file.write_text("\n".join(map(json.dumps, ROWS))),
    "csv": lambda file: pd.DataFrame(ROWS).to_csv(file, index=False, encoding="utf-8-sig"),
    "tsv": lambda file: pd.DataFrame(ROWS).to_csv(file, index=False, sep="\t"),
    "parquet": lambda file: pd.DataFrame(ROWS).to_parquet(file),
}


@pytest.mark.parametrize("kind", WRITTEN)
def test_files_of_every_kind_and_problems_of_several_fields(kind: str, tmp_path: Path):
    WRITTEN[kind](tmp_path / f"own.{kind}")
    source = replace(
        SOURCE,
        file=str(tmp_path / f"own.{kind}"),
        problem="{text} {{}}{}\n{q}",
        answer_field="gold",
        where={"level": ["3", "4"]},
    )
    first, second = load_problems(source, data_dir=None, graded="x")
    assert first.problem == 'A, "B"\nC {}{}\nCapital of France?' and (first.answer, second.answer) == ("B", "A")
    assert second.problem == "none {}{}\n2 {x}?"
    (kept,) = load_problems(replace(source, where={"level": ["4"]}, limit=1), data_dir=None)
    assert kept.problem == second.problem and kept.id.startswith("own-0000")


def test_a_list_is_shown_as_choices_and_a_path_leads_into_objects(tmp_path):
    source = written(tmp_path, {"q": "Which?", "choices": {"text": ["Rome", 7], "label": "x"}, "a.b": "dotted"})
    shown = load_problems(replace(source, problem="{q}\n{choices.text}\n{a.b}"), data_dir=None)[0].problem
    assert shown == "Which?\nA. Rome\nB. 7\ndotted"


def test_a_conversation_ends_with_the_users_last_turn(tmp_path):
    turns = [("system", "Be brief."), ("user", "Hi"), ("assistant", "Hello"), ("user", "1+1?"), ("assistant", "2")]
    chat = [{"role": role, "content": content} for role, content in turns]
    (problem,) = load_problems(written(tmp_path, {"problem": chat}), data_dir=None)
    assert problem.problem == "1+1?" and problem.earlier == tuple(turns[:3])


@pytest.mark.parametrize(
    ("row", "given", "sentence"),
    [
        (
            {"q": "a"},
            {"problem": "{qq}"},
            r"line 1: has no field 'qq', which problem= names; its fields are 'q', and braces",
        ),
        ({"q": "a"}, {"problem": r"\frac{1}{q}"}, r"has no field '1', .* are written \{\{ and \}\}$"),
        ({"q": None}, {"problem": "{q}"}, r"the field 'q' contains NoneType, not text or a list of texts"),
        ({"q": [["a"]]}, {"problem": "{q}"}, r"the field 'q' contains list, not text or a list of texts"),
        ({"q": " "}, {"problem": "{q}"}, r"line 1: the fields of problem= are empty"),
        (line(1), {"where": {"level": ["4"]}}, r"line 1: has no field 'level' \(where\); its fields are"),
        (
            line(1, level=3, easy=True),
            {"where": {"level": ["3"], "easy": ["false"]}},
            r"no problems with level, easy as w",
        ),
        ({"problem": []}, {}, r"the field 'problem': has no turn of the user's"),
        ({"problem": [{"role": "system", "content": "x"}]}, {}, r"the field 'problem': has no turn of the user's"),
        (
            {"problem": [{"role": "human", "content": "x"}]},
            {},
            r"'problem', turn 1: should be an object with a role \(",
        ),
        ({"problem": [{"role": "user", "content": [1]}]}, {}, r"'problem', turn 1: should be an object with a role \("),
    ],
)
def test_fields_that_make_no_problem_are_refused(row: dict, given: dict, sentence: str, tmp_path: Path):
    with pytest.raises(UserError, match=sentence) as refusal:
        load_problems(replace(written(tmp_path, row), **given), data_dir=None)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["own.csv", "own.parquet", "own.json"])
def test_a_file_that_is_not_what_its_name_says_is_refused(name: str, tmp_path: Path):
    (tmp_path / name).write_bytes(b'["a"\n"b",1,2\n3' if name != "own.csv" else b'a\n"b\n1,2')
    with pytest.raises(UserError, match=rf"{name}: (cannot be read as (CSV|Parquet): |is not JSON)") as refusal:
        load_problems(replace(SOURCE, file=str(tmp_path / name)), data_dir=None)
    assert "\n" not in str(refusal.value)


# ---- hub: `datasets` itself, on a dataset folder in place of a repository, and against servers that refuse


def test_dataset_with_other_fields(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    (tmp_path / "set").mkdir()
    rows = [{"question": f"{n}+1=", "answer": f"it is\n#### {n + 1},000", "other": [n]} for n in range(3)]
    (tmp_path / "set" / "test.jsonl").write_text("\n".join(map(json.dumps, rows)))
    monkeypatch.chdir(tmp_path)
    source = replace(SOURCE, hub="set", split="test", problem_field="question", id_field=None, limit=2)
    assert load_problems(source, data_dir=None) == [
        Problem("set-test-00001", "0+1=", "1000", "mathematics"),
        Problem("set-test-00002", "1+1=", "2000", "mathematics"),
    ]
    assert (
        load_problems(replace(source, id_field="id", problem="{question}?", limit=1), data_dir=None)[0].problem
        == "0+1=?"
    )
    with pytest.raises(UserError, match=r"\(split test\): has no field 'level'"):
        load_problems(replace(source, where={"level": ["1"]}), data_dir=None)
    with pytest.raises(UserError, match=r"\(split test\): has no field 'problem'; its fields are question, answer"):
        load_problems(replace(source, problem_field="problem"), data_dir=None)
    with pytest.raises(UserError, match=r"\(split train\) cannot be loaded: Unknown split"):
        load_problems(replace(source, split="train"), data_dir=None)


@pytest.mark.parametrize(
    "hub", ["text", "csv", "{}", "./set", "../set", "~/set", "a/b/c", "https://host/set", "set/.."]
)
def test_a_hub_is_no_way_to_files_here(hub: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "set").mkdir()
    (tmp_path / "set" / "notes.txt").write_text("a secret\n")
    monkeypatch.chdir(tmp_path / "set")
    source = replace(SOURCE, hub=hub.format(tmp_path), problem_field="text", answer_field="text", id_field=None)
    with pytest.raises(UserError, match=r"is not the name of a Hugging Face Hub dataset \(OWNER/NAME\)"):
        load_problems(source, data_dir=None)


def hub_refusal(tmp_path: Path, **environment: str) -> str:
    script = """
        from dataclasses import replace
        from opd.config.schema import Dataset
        from opd.data.dataset import load_problems
        from opd.errors import UserError
        source = Dataset(kind="dataset", hub="somebody/some-set", config="main", split="test", revision=None,
                         streaming=False, file="some.jsonl", problem=None, problem_field="question",
                         answer_field="answer", id_field=None, where={}, domain="mathematics", limit=None,
                         grader="mathematics")
        try:
            load_problems(source, data_dir=None)
        except UserError as error:
            print(error)
    """
    finished = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        env=os.environ | {"HF_HOME": str(tmp_path)} | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert "Traceback" not in finished.stderr
    return finished.stdout.strip()


def test_hub_without_network(tmp_path):
    assert hub_refusal(tmp_path, HF_HUB_OFFLINE="1") == (
        "hub=somebody/some-set (config main, split test) cannot be reached on the Hugging Face Hub, "
        "and there is no file some.jsonl; a JSONL file given as file= needs no network"
    )


def test_hub_without_the_set(tmp_path):
    server = """
        import http.server
        class Refuse(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(404)
                self.send_header("X-Error-Code", "RepoNotFound")
                self.send_header("Content-Length", "0")
                self.end_headers()
            do_HEAD = do_GET
            def log_message(self, *_): pass
        server = http.server.HTTPServer(("127.0.0.1", 0), Refuse)
        print(server.server_port, flush=True)
        server.serve_forever()
    """
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(server)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        try:
            said = hub_refusal(tmp_path, HF_ENDPOINT=f"http://127.0.0.1:{process.stdout.readline().strip()}")
        finally:
            process.kill()
    assert said.startswith("hub=somebody/some-set (config main, split test) does not exist or is private on the")


def test_problems_load_without_torch():
    script = "import sys, opd.data.prompts; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    imported = set(done.stdout.split())
    assert "opd.data.prompts" in imported and not {"torch", "transformers", "datasets"} & imported
