"""What holds of every room: its first lines say what belongs there."""

from __future__ import annotations

import ast

from tests.documents import ROOT

FILES = [path.relative_to(ROOT) for room in ("common", "bench") for path in sorted(ROOT.glob(f"{room}/**/*.py"))]


def test_the_first_lines_of_every_room_say_what_belongs_there():
    rooms = [path for path in FILES if path.name == "__init__.py"]
    said = {path: (ast.get_docstring(ast.parse((ROOT / path).read_text())) or "").split("\n\n") for path in rooms}
    assert [str(path) for path, parts in said.items() if len(parts) < 2] == []
