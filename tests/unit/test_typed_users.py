"""A person who writes typed code against vitrail: what mypy and an editor understand without any plugin."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import vitrail

SOURCES = Path(vitrail.__file__).parent


def positional_defaults(source: str) -> list[int]:
    """Lines of ``Field(VALUE, ...)``: type checkers know a default by its keyword only (PEP 681)."""
    calls = (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call))
    return [call.lineno for call in calls if getattr(call.func, "id", "") == "Field" and call.args]


def test_the_check_sees_one() -> None:
    assert positional_defaults("x: int = Field(1, ge=0)\ny: int = Field(default=1)\n") == [1]


@pytest.mark.parametrize(
    "path", sorted(SOURCES.rglob("*.py")), ids=lambda path: str(path.relative_to(SOURCES))
)
def test_no_optional_field_looks_required(path: Path) -> None:
    """``TextToImageRequest(prompt="x")`` must pass a type checker."""
    text = path.read_text(encoding="utf-8")
    assert "Field(" not in text or positional_defaults(text) == []
