"""The record and page of rollouts: what they hold, colour, strike out and escape, and when they are written."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from opd.config.schema import Rollouts
from opd.data.batch import Prompt, Rollout
from opd.records.run_dir import RunDir
from opd.watch.pages import BINS, REACH, Pages, histogram, page as html

HOSTILE = "<script>alert('1')</script>&"


def hostile() -> PreTrainedTokenizerFast:
    """A tokenizer whose tokens would be HTML."""
    words = ["pad", HOSTILE, "line\nbreak", '" onmouseover="x', "plain"]
    table = {word: index for index, word in enumerate(words)}
    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(table, "pad")))


@pytest.fixture
def batch() -> tuple[list[Prompt], Rollout, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two responses, of the second and the first prompt; the middle token of the first is not learned."""
    prompts = [Prompt(str(n), f"problem {n} {HOSTILE}", "1", "d", (1,)) for n in range(2)]
    mask = torch.tensor([[True, True, True], [True, False, False]])
    rollout = Rollout(
        prompt=torch.zeros(2, 0, dtype=torch.long),
        prompt_mask=torch.zeros(2, 0, dtype=torch.bool),
        tokens=torch.tensor([[1, 2, 3], [4, 0, 0]]),
        mask=mask,
        learned=mask,
        rollout_logp=torch.zeros(2, 3),
        group=torch.tensor([1, 0]),
        truncated=torch.tensor([True, False]),
    )
    advantage = torch.tensor([[2.0, 9.0, -1.0], [0.5, 7.0, 7.0]])
    learned, log_ratio = torch.tensor([[True, False, True], [True, True, True]]), torch.zeros(2, 3)
    log_ratio[0] = torch.tensor([-2.0, math.inf, 0.123456789])
    return prompts, rollout, advantage, learned, log_ratio


def pages(folder: Path, every: int = 2, num: int = 8, main: bool = True) -> Pages:
    return Pages(RunDir(folder), hostile(), Rollouts(every=every, num=num), main)


@pytest.fixture
def page(batch, tmp_path: Path) -> str:
    pages(tmp_path).write(100, *batch)
    return RunDir(tmp_path).page_file(100).read_text()


def test_text_is_escaped(page: str):
    tags = set(re.findall(r"<(/?[a-z0-9!]+)", page))
    assert tags <= {
        *("!doctype", "html", "head", "meta", "title", "style", "body", "article", "h1", "h2", "p", "div", "span", "s"),
        *("/html", "/head", "/title", "/style", "/body", "/article", "/h1", "/h2", "/p", "/div", "/span", "/s"),
    }
    assert page.count("&lt;script&gt;alert(&#x27;1&#x27;)&lt;/script&gt;&amp;") == 3  # two problems, one token
    assert "&quot; onmouseover=&quot;x" in page


def test_token_colour_and_strike_through(page: str):
    assert '<span class="up" style="--strength:80%" title="2.0000">&lt;script' in page  # the largest learned
    assert '<span class="down" style="--strength:40%" title="-1.0000">' in page
    assert '<span class="up" style="--strength:20%" title="0.5000">plain</span>' in page
    assert "<s>line↵\nbreak</s>" in page and page.count("<s>") == 2  # the other in the page's explanation
    assert "pad" not in re.sub(r"padding", "", page)  # what no response holds is not shown


def test_article_shows_prompt_and_mean_advantage(page: str):
    first, second = re.findall(r"<article>(.*?)</article>", page, re.S)
    assert first.startswith("<h2>1</h2>") and '<p class="problem">problem 1' in first
    assert "mean advantage 0.500, 2 of 3 tokens learned" in first
    assert second.startswith("<h2>0</h2>") and "mean advantage 0.500, 1 of 1 tokens learned" in second


def test_pages_are_written_by_main_rank(batch, tmp_path: Path):
    heard: list[tuple[int, str]] = []
    writer = pages(tmp_path, every=2, num=1)
    writer.listeners.append(lambda step, html: heard.append((step, html)))
    for step in range(1, 5):
        writer.write(step, *batch)
    folder = RunDir(tmp_path)
    assert list(folder.pages()) == list(folder.rollouts()) == [2, 4] == [step for step, _ in heard]
    assert heard[1][1] == folder.page_file(4).read_text()
    assert "problem 1" in heard[0][1] and "problem 0" not in heard[0][1]  # one response alone
    pages(tmp_path, every=0).write(6, *batch)
    pages(tmp_path, main=False).write(6, *batch)
    assert 6 not in folder.pages()
    folder.rewind(2)
    assert list(folder.pages()) == list(folder.rollouts()) == [2]


def test_record_has_no_padding(batch, tmp_path: Path):
    pages(tmp_path).write(2, *batch)
    data = json.loads(RunDir(tmp_path).rollouts_file(2).read_text())
    first, second = data["responses"]
    assert first == {
        "prompt_id": "1",
        "problem": f"problem 1 {HOSTILE}",
        "tokens": [HOSTILE, "line\nbreak", '" onmouseover="x'],
        "advantage": [2.0, 9.0, -1.0],
        "log_ratio": [-2.0, None, 0.12346],
        "learned": [True, False, True],
    }
    assert second["tokens"] == ["plain"] and second["advantage"] == [0.5]
    assert (sum(data["log_ratio"]["counts"]), data["log_ratio"]["above"]) == (3, 1)  # four tokens, one beyond
    assert html(data) == RunDir(tmp_path).page_file(2).read_text()


def test_histogram_matches_numpy():
    values = torch.randn(5000, generator=torch.Generator().manual_seed(0)) * 4
    found, edges = histogram(values), np.linspace(-REACH, REACH, BINS + 1)
    assert found["counts"] == np.histogram(values.double().numpy(), edges)[0].tolist()
    assert (found["below"], found["above"]) == (int((values < -8).sum()), int((values > 8).sum()))
    assert found["below"] and found["above"]
    ends = histogram(torch.tensor([math.nan, 8.0, -8.0]))
    assert (sum(ends["counts"]), ends["below"], ends["above"]) == (2, 0, 0)
