"""The page of rollouts: what it colours, strikes out and escapes, and when it is written."""

import re
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from opd.batch import Prompt, Rollout
from opd.config import Rollouts
from opd.pages import Pages
from opd.records import RunDir

HOSTILE = "<script>alert('1')</script>&"


def hostile() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens would be HTML."""
    words = ["pad", HOSTILE, "line\nbreak", '" onmouseover="x', "plain"]
    table = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(table, "pad")))


@pytest.fixture
def batch() -> tuple[list[Prompt], Rollout, torch.Tensor, torch.Tensor]:
    """Two responses, of the second and the first prompt; the middle token of the first is not learned."""
    prompts = [Prompt(str(n), f"problem {n} {HOSTILE}", "1", "d", (1,)) for n in range(2)]
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rollout = Rollout(
        prompt=torch.zeros(2, 0, dtype=torch.long),
        prompt_mask=torch.zeros(2, 0, dtype=torch.bool),
        tokens=torch.tensor([[1, 2, 3], [4, 0, 0]]),
        mask=mask,
        rollout_logp=torch.zeros(2, 3),
        group=torch.tensor([1, 0]),
        truncated=torch.tensor([True, False]),
    )
    advantage = torch.tensor([[2.0, 9.0, -1.0], [0.5, 7.0, 7.0]])
    return prompts, rollout, advantage, torch.tensor([[True, False, True], [True, True, True]])


def pages(folder: Path, every: int = 2, num: int = 8, main: bool = True) -> Pages:
    return Pages(RunDir(folder), hostile(), Rollouts(every=every, num=num), main)


@pytest.fixture
def page(batch, tmp_path: Path) -> str:
    return pages(tmp_path).page(100, *batch)


def test_nothing_that_a_model_or_prompt_says_becomes_html(page: str):
    tags = set(re.findall(r"<(/?[a-z0-9!]+)", page))
    assert tags <= {
        *("!doctype", "html", "meta", "title", "style", "table", "tr", "th", "td", "h1", "p", "span", "s"),
        *("/html", "/title", "/style", "/table", "/tr", "/th", "/td", "/h1", "/p", "/span", "/s"),
    }
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;") == 3  # two problems, one token
    assert "&quot; onmouseover=&quot;x" in page


def test_a_token_is_coloured_by_its_advantage_and_struck_out_where_it_is_not_learned(page: str):
    assert '<span style="background:rgba(0,140,60,0.75)" title="2.0000">&lt;script' in page  # the largest learned
    assert '<span style="background:rgba(210,30,30,0.38)" title="-1.0000">' in page
    assert '<span style="background:rgba(0,140,60,0.19)" title="0.5000">plain</span>' in page
    assert "<s>line↵\nbreak</s>" in page and page.count("<s>") == 1
    assert "pad" not in re.sub(r"padding", "", page)  # what no response holds is not shown


def test_a_row_has_its_own_prompt_and_the_mean_of_what_it_learns(page: str):
    first, second = re.findall(r"<tr><td>(.*?)</tr>", page, re.S)
    assert first.startswith("1\nproblem 1") and "<td>0.500</td>" in first
    assert second.startswith("0\nproblem 0") and "<td>0.500</td>" in second


def test_pages_are_written_at_their_steps_by_the_main_rank_and_handed_on(batch, tmp_path: Path):
    heard: list[tuple[int, str]] = []
    writer = pages(tmp_path, every=2, num=1)
    writer.listeners.append(lambda step, html: heard.append((step, html)))
    for step in range(1, 5):
        writer.write(step, *batch)
    folder = RunDir(tmp_path)
    assert list(folder.pages()) == [2, 4] == [step for step, _ in heard]
    assert heard[1][1] == folder.rollouts_file(4).read_text()
    assert "problem 1" in heard[0][1] and "problem 0" not in heard[0][1]  # one response alone
    pages(tmp_path, every=0).write(6, *batch)
    pages(tmp_path, main=False).write(6, *batch)
    assert 6 not in folder.pages()
    folder.rewind(2)
    assert list(folder.pages()) == [2]
