"""The fenced blocks of README.md and docs/*.md, and what is written before them."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
LANGUAGES = ("sh", "python", "yaml", "json", "text")  # the first two are run

_MARK = re.compile(r"<!-- (?P<kind>composed|not run): (?P<why>\S.*) -->")
_FILE = re.compile(r"<!-- file: (?P<name>[\w.-]+) -->")


@dataclass(frozen=True)
class Block:
    """A fence: where it opens, its language, its text, its mark (None, "composed" or "not run"), and the name of the
    file that it is, for the page's commands to read.
    """

    page: str
    line: int
    language: str
    text: str
    mark: str | None
    file: str | None = None

    @property
    def runs(self) -> bool:
        return self.language in ("sh", "python") and self.mark is None

    def commands(self) -> Iterator[list[str]]:
        """Of a shell block without here-documents: the words of each command, without variables set before it."""
        for line in self.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while words and re.fullmatch(r"\w+=.*", words[0]):
                words.pop(0)
            if words:
                yield words


def pages() -> list[Path]:
    """README.md, then the pages of docs/."""
    return [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(page: Path) -> list[Block]:
    """The fences of a page, in order."""
    found, mark, opened, file = [], None, None, None
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if opened is None and line.startswith("```"):
            opened, language, text = number, line[3:].strip(), []
        elif opened is not None and line.strip() == "```":
            found.append(Block(page.name, opened, language, "\n".join(text) + "\n", mark, file))
            opened = mark = file = None
        elif opened is not None:
            text.append(line)
        elif line.strip():
            marked = _MARK.fullmatch(line.strip())
            mark = marked["kind"] if marked else None
            named = _FILE.fullmatch(line.strip())
            file = named["name"] if named else None
    assert opened is None, f"{page.name}: the fence of line {opened} is not closed"
    return found
