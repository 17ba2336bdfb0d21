import json
import os
import re
import subprocess
import sys
import textwrap
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from opd.config.schema import Dataset
from opd.data.environment import single_turn
from opd.data.problem import Problem
from opd.data.prompts import batch_indices, encode, epoch_order, load_problems, unreadable
from opd.errors import UserError
from opd.recipes.tokenizer import build_tokenizer
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
    problem_field="problem",
    answer_field="answer",
    id_field="id",
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
            r"line 2: has no field 'answer' \(answer_field\); its fields are 'id', 'problem'",
        ),
        ([{"problem": "a", "answer": "1"}], r"line 1: has no field 'id' \(id_field\)"),
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
        load_problems(written(tmp_path, *lines), data_dir=None)
    assert "\n" not in str(refusal.value)


def test_no_file_and_no_hub(tmp_path):
    with pytest.raises(UserError, match=r"neither none\.jsonl nor .*/none\.jsonl exists, and there is no hub="):
        load_problems(replace(SOURCE, file="none.jsonl"), data_dir=tmp_path)
    with pytest.raises(UserError, match=r"needs a file= \(JSONL\) or a hub="):
        load_problems(SOURCE, data_dir=None)


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
        from opd.data.prompts import load_problems
        from opd.errors import UserError
        source = Dataset(kind="dataset", hub="somebody/some-set", config="main", split="test", revision=None,
                         streaming=False, file="some.jsonl", problem_field="question", answer_field="answer",
                         id_field=None, domain="mathematics", limit=None, grader="mathematics")
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


# ---- what a model is shown


PROBLEMS = [Problem(f"p{number}", f"{number}+1=", str(number + 1), "addition") for number in (1, 22, 333)]
PLAIN = {"template": "raw", "system": None, "prefix": "", "suffix": "", "max_prompt_length": 100}
PLAIN |= {"environment": single_turn()}


@pytest.fixture(scope="module")
def chat_tokenizer():
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(shared("tokenizers/torchtitan-test"))
    tokenizer.chat_template = shared("tokenizers/trl-chat-templates/qwen3.jinja").read_text()
    return tokenizer


def test_raw_prompt_is_the_text_alone():
    tokenizer = build_tokenizer()
    prompts, dropped = encode(PROBLEMS, tokenizer, **PLAIN | {"prefix": "(", "suffix": ")"})
    assert dropped == []
    assert [tokenizer.decode(prompt.token_ids) for prompt in prompts] == ["(1+1=)", "(22+1=)", "(333+1=)"]
    assert [(prompt.id, prompt.problem, prompt.answer, prompt.domain) for prompt in prompts] == [
        (problem.id, problem.problem, problem.answer, problem.domain) for problem in PROBLEMS
    ]


@pytest.mark.parametrize("system", [None, "Be brief."])
def test_chat_prompt_is_the_template_with_an_open_assistants_turn(chat_tokenizer, system):
    options = PLAIN | {"template": "chat", "system": system, "prefix": "Q: ", "suffix": " Box it."}
    prompts, _ = encode(PROBLEMS, chat_tokenizer, **options)
    turn = "" if system is None else "<|im_start|>system\nBe brief.<|im_end|>\n"
    text = f"{turn}<|im_start|>user\nQ: 22+1= Box it.<|im_end|>\n<|im_start|>assistant\n"
    assert list(prompts[1].token_ids) == chat_tokenizer.encode(text, add_special_tokens=False)
    assert prompts[1].problem == "22+1="


def test_real_set_in_the_chat_template(chat_tokenizer):
    problems = load_problems(replace(SOURCE, file=str(shared("gsm8k_test.jsonl")), limit=200), data_dir=None)
    prompts, dropped = encode(problems, chat_tokenizer, **PLAIN | {"template": "chat", "max_prompt_length": 250})
    assert len(prompts) + len(dropped) == 200 and 0 < len(dropped) < 200
    assert max(len(prompt.token_ids) for prompt in prompts) <= 250
    assert {prompt.id for prompt in prompts}.isdisjoint(dropped)


def test_long_prompts_are_left_out_and_named():
    prompts, dropped = encode(PROBLEMS, build_tokenizer(), **PLAIN | {"max_prompt_length": 5})
    assert [prompt.id for prompt in prompts] == ["p1", "p22"] and dropped == ["p333"]


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"max_prompt_length": 3}, "prompts.max_prompt_length=3: all 3 prompts are longer, the shortest has 4 tokens"),
        ({"template": "chat"}, "prompts.template=chat: the student's tokenizer has no chat template"),
        ({"system": "Be brief."}, "prompts.system: a raw prompt has no system turn"),
    ],
)
def test_prompts_that_cannot_be_shown_are_refused(options, sentence):
    with pytest.raises(UserError, match=sentence):
        encode(PROBLEMS, build_tokenizer(), **PLAIN | options)


def test_template_that_refuses_a_system_turn():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% if messages[0].role == 'system' %}{{ raise_exception('no system here') }}{% endif %}1"
    with pytest.raises(UserError, match="chat template refuses the turns: no system here"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"template": "chat", "system": "Be brief."})


def test_problem_without_a_token_is_refused(chat_tokenizer):
    with pytest.raises(UserError, match="problem 'odd': the tokenizer produces no tokens for it"):
        encode([Problem("odd", "∫", "1", "x")], chat_tokenizer, **PLAIN)


def closing(tokenizer, *, twice: bool = False):
    """A tokenizer that adds the end, or the beginning, to each text, as some families' do."""
    from tokenizers.processors import TemplateProcessing

    name, token = ("<|teacher-0|>", "<|teacher-0|>") if twice else ("<|end|>", "<|end|>")
    tokens = [(name, tokenizer.convert_tokens_to_ids(name))]
    single = f"{token} $A" if twice else f"$A {token}"
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, special_tokens=tokens)
    if twice:
        tokenizer.bos_token = token
    return tokenizer


def test_a_prompt_that_its_tokenizer_closes_is_refused():
    with pytest.raises(UserError, match=r"problem 'p1': its prompt ends with '<\|end\|>', .* \(add_eos_token\)"):
        encode(PROBLEMS, closing(build_tokenizer()), **PLAIN)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = "{% for turn in messages %}{{ turn.content }}<|end|>{% endfor %}"
    with pytest.raises(UserError, match="its chat template closes the turn that the model should answer in"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"template": "chat"})


def test_two_beginnings_are_refused_and_one_is_not():
    tokenizer = closing(build_tokenizer(), twice=True)
    assert encode(PROBLEMS, tokenizer, **PLAIN)[0][0].token_ids[0] == tokenizer.bos_token_id
    with pytest.raises(UserError, match=r"begins with '<\|teacher-0\|>' twice; leave it out of prompts.prefix"):
        encode(PROBLEMS, tokenizer, **PLAIN | {"prefix": "<|teacher-0|>"})


def test_characters_that_the_tokenizer_does_not_know_are_named():
    odd = [*PROBLEMS, Problem("odd", "∫1+1=", "2", "x")]
    prompts, _ = encode(odd, tokenizer := build_tokenizer(), **PLAIN)
    assert unreadable(prompts, tokenizer) == ["odd"]


@pytest.mark.parametrize(
    ("change", "seen"),
    [("Lowercase", "'x' stands for 'X'"), ("Strip", None), ("NFD", None), ("Replace", "'1+' stands for ' 1+'")],
)
def test_a_tokenizer_that_changes_texts_is_said(change, seen):
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    vocabulary = {token: index for index, token in enumerate(["<s>", *"+=1 xXe\u0301é"])}
    backend = Tokenizer(models.BPE(vocabulary, []))
    backend.decoder = decoders.Fuse()
    given = (" ", "") if change == "Replace" else ()
    backend.normalizer = getattr(normalizers, change)(*given)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<s>")
    text = {"Lowercase": "X", "Strip": " 1+1 ", "NFD": "é=1", "Replace": "1 1+"}[change]
    said: list[str] = []
    encode([Problem("plain", "1", "1", "x"), Problem("p", text, "1", "x")], tokenizer, **PLAIN, notice=said.append)
    where = "the tokenizer changes the text of 1 of 2 prompts, .*: in the first of them, p, "
    assert [bool(re.match(f"{where}{re.escape(seen or '')}$", sentence)) for sentence in said] == [True] * bool(seen)


def test_nothing_to_show():
    assert encode([], build_tokenizer(), **PLAIN) == ([], [])


# ---- order


def test_epoch_order_is_a_fixed_permutation():
    assert epoch_order(10, seed=0, epoch=0).tolist() == epoch_order(10, seed=0, epoch=0).tolist()
    orders = {tuple(epoch_order(10, seed=seed, epoch=epoch)) for seed in range(5) for epoch in range(5)}
    assert len(orders) == 25 and all(sorted(order) == list(range(10)) for order in orders)


def test_epoch_order_does_not_change_between_versions():
    """A resumed run must meet the prompts that it has not met."""
    assert epoch_order(8, seed=3, epoch=2).tolist() == [2, 3, 6, 4, 1, 7, 5, 0]


def test_epoch_order_is_uniform():
    """Each prompt is first equally often: chi-square over 20 cells, 4000 draws, well under its 1e-6 quantile of 65."""
    first = Counter(int(epoch_order(20, seed=seed, epoch=epoch)[0]) for seed in range(40) for epoch in range(100))
    assert sum((count - 200) ** 2 / 200 for count in first.values()) < 65


@given(st.integers(1, 30), st.integers(1, 30), st.integers(0, 3), st.integers(1, 40))
def test_batches_pass_through_epochs_without_repeats(num_prompts, batch_size, seed, steps):
    batch_size = min(batch_size, num_prompts)
    batches = [batch_indices(num_prompts, batch_size=batch_size, step=step, seed=seed) for step in range(steps)]
    assert all(len(set(batch)) == batch_size for batch in batches)
    stream = np.concatenate(batches)
    for start in range(0, len(stream), num_prompts):
        epoch = stream[start : start + num_prompts].tolist()
        assert len(set(epoch)) == len(epoch) and set(epoch) <= set(range(num_prompts))


def test_a_batch_does_not_depend_on_those_before():
    later = batch_indices(13, batch_size=5, step=101, seed=1)
    for step in range(101):
        batch_indices(13, batch_size=5, step=step, seed=1)
    assert batch_indices(13, batch_size=5, step=101, seed=1) == later


def test_whole_epochs_follow_their_order():
    stream = [index for step in range(6) for index in batch_indices(12, batch_size=4, step=step, seed=7)]
    assert stream == [*epoch_order(12, seed=7, epoch=0), *epoch_order(12, seed=7, epoch=1)]


@pytest.mark.parametrize(("batch_size", "step"), [(5, 0), (0, 0), (2, -1)])
def test_impossible_batch(batch_size, step):
    with pytest.raises(ValueError):
        batch_indices(4, batch_size=batch_size, step=step, seed=0)
