"""mkdocs hook: a file that `make docs` makes, named on a page of the repository, is a link to it in the site."""

import re
from html import escape
from typing import Any

MADE = re.compile(r"<code>(results/[\w./-]+)</code>")


def on_page_content(html: str, *, page: Any, files: Any, **_: Any) -> str:
    """The page's HTML with a link around each such file that is there."""

    def link(found: re.Match[str]) -> str:
        file = files.get_file_from_path(found[1])
        return f'<a href="{escape(file.url_relative_to(page.file))}">{found[0]}</a>' if file else found[0]

    return MADE.sub(link, html)
