"""Chat templates run within limits, and see the date that they are given."""

import signal
import threading
import time
from datetime import datetime

import pytest

from opd.data import template
from opd.data.environment import Message
from opd.data.template import missing_opening, render, writes_date
from opd.errors import UserError
from opd.recipes.tokenizer import build_tokenizer

TURNS: list[Message] = [{"role": "user", "content": "1+1="}]
PLAIN = "{% for turn in messages %}{{ turn.content }}{% endfor %}{% if add_generation_prompt %}>{% endif %}"
LOOPS = 3 * "{% for a in range(99999) %}" + 3 * "{% endfor %}"


def texts(source: str, date: datetime | None = None, **given: bool) -> list[str]:
    tokenizer = build_tokenizer()
    tokenizer.chat_template = source
    return render(tokenizer, [TURNS], key="prompts.template", date=date, **given)


def test_the_models_turn_is_opened_where_it_is_asked_for():
    assert texts(PLAIN) == ["1+1=>"] and texts(PLAIN, opened=False) == ["1+1="]


TURN = "<|{{ turn.role }}|>{{ turn.content }}\n"
CLOSED = "{% for turn in messages %}" + TURN + "{% endfor %}"
BRACKETS = (
    "{% for turn in messages %}{% if turn.role == 'user' %}[INST] {{ turn.content }} [/INST]"
    "{% else %} {{ turn.content }}</s>{% endif %}{% endfor %}"
)
ALWAYS = CLOSED + "{% if messages[-1].role == 'user' %}<|assistant|>{% endif %}"


@pytest.mark.parametrize(
    ("source", "missing"),
    [
        (CLOSED, "<|assistant|>"),
        (CLOSED + "{% if add_generation_prompt %}<|assistant|>{% endif %}", None),
        (CLOSED + "{% if add_generation_prompt %}<|assistant|><think>{% endif %}", None),
        (ALWAYS, None),
        (BRACKETS, None),
        ("{% for turn in messages %}{{ turn.content }}\n{% endfor %}", None),
        ("{% if messages | length > 1 %}{{ raise_exception('no') }}{% endif %}{{ messages[0].content }}", None),
        ("{{ messages[-1].content }}", None),
        ("{% for turn in messages %}{{ '!' if loop.last else '??' }}{{ turn.content }}|{% endfor %}", None),
        (None, None),
    ],
)
def test_only_a_template_that_leaves_out_what_it_writes_before_answers_is_said(source: str | None, missing: str | None):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = source
    assert missing_opening(tokenizer) == missing


def test_the_date_is_the_given_one_and_else_todays():
    source = "{{ strftime_now('%d %b %Y %H:%M') }}"
    assert texts(source, datetime(2025, 3, 9, 17, 5)) == ["09 Mar 2025 17:05"]
    assert texts("{{ strftime_now('%Y') }}")[0] in {str(datetime.now().year), str(datetime.now().year - 1)}
    tokenizer = build_tokenizer()
    for source, writes in (("{{ strftime_now('%d') }}", True), (PLAIN, False), (None, False)):
        tokenizer.chat_template = source
        assert writes_date(tokenizer) is writes


def test_a_template_that_does_not_end_is_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(template, "SECONDS", 0.3)
    before = signal.getsignal(signal.SIGVTALRM)
    started = time.process_time()
    with pytest.raises(UserError, match=r"refuses the turns: it takes longer than 0.3 seconds for a single convers"):
        texts(LOOPS)
    assert 0.2 < time.process_time() - started < 30
    assert signal.getsignal(signal.SIGVTALRM) is before and signal.getitimer(signal.ITIMER_VIRTUAL) == (0, 0)
    assert texts(PLAIN) == ["1+1=>"]


@pytest.mark.parametrize("source", ["{% for a in range(99999) %}too long{% endfor %}", "{{ '%300000s' % 'a' }}"])
def test_a_template_that_writes_too_much_is_refused(source: str):
    with pytest.raises(
        UserError, match=r"refuses the turns: it writes \d\d\d,\d\d\d characters for a single conversation"
    ):
        texts(source)


@pytest.mark.parametrize(
    "source", ["{{ a.b.c }}", "{% if %}", "{{ strftime_now(1) }}", "{{ raise_exception('no') }}", "{{ 1/0 }}"]
)
def test_a_template_that_fails_is_refused(source: str):
    with pytest.raises(UserError, match=r"^prompts\.template=chat: the tokenizer's chat template refuses the turns: "):
        texts(source)


def test_it_renders_in_any_thread():
    found: list[list[str]] = []
    thread = threading.Thread(target=lambda: found.append(texts(PLAIN)))
    thread.start()
    thread.join()
    assert found == [["1+1=>"]]
