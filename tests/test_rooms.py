"""What holds of every room: its first lines say what belongs there, and each of its files has tests of its own name."""

from __future__ import annotations

import ast

from tests.documents import ROOT

FILES = [path.relative_to(ROOT) for room in ("common", "bench") for path in sorted(ROOT.glob(f"{room}/**/*.py"))]


def test_the_first_lines_of_every_room_say_what_belongs_there():
    rooms = [path for path in FILES if path.name == "__init__.py"]
    said = {path: (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split("\n\n") for path in rooms}
    assert [str(path) for path, parts in said.items() if len(parts) < 2] == []


def test_every_file_is_tested_under_its_own_name():
    files = [path for path in FILES if path.name != "__init__.py"]
    rooms = {path: path.parent.relative_to("common") if path.parts[0] == "common" else path.parent for path in files}
    tests = {path: ROOT / "tests" / rooms[path] / f"test_{path.name}" for path in files}
    assert [str(path) for path, test in tests.items() if not test.is_file()] == []
