"""mkdocs hook: the TeX of a page becomes MathML when the site is built, so that a reader's browser needs no script."""

import re
from html import unescape
from typing import Any

from latex2mathml.converter import convert

TEX = re.compile(
    r'<(span|div) class="arithmatex">\s*(?:\\\((?P<inline>.+?)\\\)|\\\[(?P<block>.+?)\\\])\s*</\1>', re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """The page's HTML with MathML in the place of TeX."""
    return TEX.sub(_made, html)


def _made(found: re.Match[str]) -> str:
    if found["inline"]:
        return mathml(found["inline"], inline=True)
    return f'<div class="formula">{mathml(found["block"], inline=False)}</div>'


def mathml(tex: str, *, inline: bool) -> str:
    """TeX, as it stands in HTML → MathML.

    Raises:
        latex2mathml.exceptions.Error: for TeX that cannot be read, which ends the build.
    """
    spaced = unescape(tex).strip().replace(r"\log ", r"\log \, ")  # MathML's log r is one word
    return convert(spaced, display="inline" if inline else "block")
