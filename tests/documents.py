"""What the pages of documentation hold: links, headings, commands, code spans, tables."""

from __future__ import annotations

import io
import re
import shlex
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[1]
PAGES = {str(path.relative_to(ROOT)): path for path in [*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/*.md"))]}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^()\s]+)\)")
HEADING = re.compile(r"^#+ (.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Table:
    """A table of a page."""

    header: list[str]
    """Cells of the first line."""
    rows: list[list[str]]
    """Cells of the lines below the rule."""

    def dicts(self) -> list[dict[str, str]]:
        return [dict(zip(self.header, row, strict=True)) for row in self.rows]


def read(page: str) -> str:
    return PAGES[page].read_text(encoding="utf-8")


@cache
def committed_text(path: Path) -> str:
    """Return a file of results/ as git would commit it, whatever runs of the reader's own wrote there since."""
    name = path.relative_to(ROOT).as_posix()
    shown = subprocess.run(["git", "show", f":{name}"], cwd=ROOT, capture_output=True, text=True, check=False)
    return path.read_text(encoding="utf-8") if shown.returncode else shown.stdout


def committed_table(path: Path) -> pd.DataFrame:
    return pd.read_csv(io.StringIO(committed_text(path)))


def prose(text: str) -> str:
    """Return a text without its fenced blocks."""
    return FENCE.sub("", text)


def code_spans(text: str) -> list[str]:
    """Return what stands in single backticks, on one line."""
    return [" ".join(span.split()) for span in CODE.findall(prose(text))]


def links(text: str) -> list[str]:
    """Return the targets of links and pictures."""
    return LINK.findall(CODE.sub("", prose(text)))


def anchors(text: str) -> set[str]:
    """Return the names by which GitHub lets links point to the headings."""
    return {slug(heading) for heading in HEADING.findall(prose(text))}


def slug(heading: str) -> str:
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def sections(text: str) -> dict[str, str]:
    """Return the text below each heading of the second level."""
    parts = re.split(r"^## (.*)$", prose(text), flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def tables(text: str) -> list[Table]:
    """Return the tables: runs of lines that begin with a bar."""
    found = []
    for block in re.findall(r"(?:^\|.*\n?)+", prose(text), flags=re.MULTILINE):
        header, _, *rows = [_cells(line) for line in block.splitlines()]
        found.append(Table(header, rows))
    return found


def commands(text: str) -> list[list[str]]:
    """Return the words of every command that a reader may type: lines of plain fenced blocks, code in the prose."""
    lines = [line for language, block in FENCE.findall(text) if not language for line in block.splitlines()]
    lines += [span for span in code_spans(text) if span.split()[0] in ("python", "make")]
    words = [shlex.split(line, comments=True) for line in lines]
    return [command for i, command in enumerate(words) if len(command) > 1 and command not in words[:i]]


def _cells(line: str) -> list[str]:
    return [cell.replace(r"\|", "|").strip() for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
