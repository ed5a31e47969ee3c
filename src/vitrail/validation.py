"""What a pydantic model allows, said in one line: refusals for people, and help for flags and forms.

pydantic reports errors as a multi-line dump that echoes its input; a command line and a server want one
short line that names the setting, what was given and what is allowed.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from types import NoneType
from typing import Annotated, Any, Literal, NamedTuple, TypeVar, get_args, get_origin

import annotated_types
from pydantic import BaseModel, ValidationError

from vitrail.errors import InputError

__all__ = ["FieldHelp", "describe", "input_error", "parse"]

M = TypeVar("M", bound=BaseModel)


def parse(
    model: type[M], data: Mapping[str, Any] | str | bytes, max_bytes: int = 1 << 18, *, echo: bool = True
) -> M:
    """Check ``data`` (a mapping, or JSON text of at most ``max_bytes``) against ``model``.

    Raises :class:`InputError` with one line such as ``steps 0 is out of range; allowed 1 to 200``; without
    ``echo`` it holds nothing of ``data``.
    """
    try:
        if not isinstance(data, str | bytes):
            return model.model_validate(data)
        if len(data) > max_bytes:
            raise InputError(f"the request has {len(data)} characters; allowed are {max_bytes}")
        return model.model_validate_json(data)
    except ValidationError as error:
        raise input_error(error, model, echo=echo) from error
    except UnicodeEncodeError as error:  # a lone surrogate in the JSON text
        raise InputError("the text is not valid Unicode; remove the broken character") from error


def input_error(error: ValidationError, model: type[BaseModel], *, echo: bool = True) -> InputError:
    """Turn pydantic's report about ``model`` into one line, at most three complaints.

    Without ``echo`` nothing that was given is repeated, as in an answer to strangers.
    """
    found = error.errors(include_url=False, include_context=True, include_input=True)
    lines = list(dict.fromkeys(_one_line(item, model, echo) for item in found))
    more = f" (and {len(lines) - 3} more)" if len(lines) > 3 else ""
    return InputError("; ".join(lines[:3]) + more)


def _one_line(item: Any, model: type[BaseModel], echo: bool) -> str:
    location = [
        part for part in item["loc"] if not str(part).startswith(("function-", "tuple[", "constrained-"))
    ]
    # What a stranger sent must not fill the screen or break the line.
    label = _short(".".join(str(part) for part in location), quote=False) or "the request"
    kind, context = item["type"], item.get("ctx", {})
    low, high, choices = _limits(model, location)
    allowed = f"; allowed {low:.16g} to {high:.16g}" if low is not None and high is not None else ""
    what = f"{label} {_short(item['input'])}" if echo else label
    match kind:
        case "greater_than_equal" | "less_than_equal" | "greater_than" | "less_than":
            return f"{what} is out of range{allowed}"
        case "int_type" | "int_from_float" | "int_parsing" | "int_parsing_size":
            return f"{what} is not a whole number{allowed}"
        case "float_type" | "float_parsing" | "finite_number":
            return f"{what} is not a finite number{allowed}"
        case "literal_error":
            close = difflib.get_close_matches(str(item["input"])[:64], choices, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            return f"{what} is unknown{hint}; allowed are {', '.join(choices)}"
        case "extra_forbidden":
            close = difflib.get_close_matches(
                str(location[-1])[:64] if location else "", model.model_fields, n=1
            )
            if not echo:  # its name was given
                label = ".".join([*map(str, location[:-1]), "one of the names"])
            return f"{label} is not a setting" + (f"; did you mean {close[0]}?" if close else "; remove it")
        case "missing":
            return f"{label} is missing; give a value for it"
        case "string_too_short" | "too_short":
            return f"{label} is empty; give at least one character"
        case "string_too_long" | "too_long":
            return f"{label} is too long; allowed are {context['max_length']} characters"
        case "string_pattern_mismatch":
            return f"{what} is not a name; allowed are letters, digits, '.', '_', '-' and space"
        case "string_type":
            return f"{what} is not text"
        case "string_unicode" | "string_sub_type":
            return f"{label} is not valid Unicode; remove the broken character"
        case "json_invalid":
            return f"this is not valid JSON: {_short(context.get('error', ''), quote=False)}"
        case "value_error":
            return f"{label} {_short(str(context.get('error', '')), quote=False, limit=120)}"
        case _:
            return f"{label} cannot be used: {_short(item['msg'], quote=False, limit=120)}"


def _short(value: Any, *, quote: bool = True, limit: int = 40) -> str:
    if isinstance(value, int) and not isinstance(value, bool) and value.bit_length() > 128:
        return "(a huge number)"
    if isinstance(value, Mapping | list | tuple | set):
        return f"(a {type(value).__name__} of {len(value)})"
    text = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in str(value)[: 2 * limit])
    text = text if len(text) <= limit else text[: limit - 3] + "..."
    return f"'{text}'" if quote and isinstance(value, str) else text


class FieldHelp(NamedTuple):
    """One field as a flag or a form control needs it; ``low``, ``high`` and ``choices`` may be empty."""

    name: str
    default: Any
    required: bool
    low: float | None
    high: float | None
    choices: tuple[str, ...]
    en: str
    zh: str


def describe(model: type[BaseModel]) -> list[FieldHelp]:
    """Every field of ``model`` that a person fills in, in order, with its limits and both descriptions."""
    rows = []
    for name, field in model.model_fields.items():
        if name == "kind":
            continue
        extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
        default = None if field.is_required() else field.get_default(call_default_factory=True)
        rows.append(
            FieldHelp(
                name,
                default,
                field.is_required(),
                *_limits(model, [name]),
                field.description or "",
                str(extra.get("zh", "")),
            )
        )
    return rows


def _limits(
    model: type[BaseModel], location: list[Any]
) -> tuple[float | None, float | None, tuple[str, ...]]:
    """The lowest and highest value and the choices of the field at ``location``, read off its annotation."""
    here: type[BaseModel] = model
    for depth, part in enumerate(location):
        field = here.model_fields.get(str(part))
        if field is None:
            break
        marks, inner, choices = _unwrap(field.annotation, list(field.metadata))
        if isinstance(inner, type) and issubclass(inner, BaseModel) and depth < len(location) - 1:
            here = inner
            continue
        low = next((mark.ge for mark in marks if isinstance(mark, annotated_types.Ge)), None)
        high = next((mark.le for mark in marks if isinstance(mark, annotated_types.Le)), None)
        return _number(low), _number(high), choices
    return None, None, ()


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and math.isfinite(value) else None


def _unwrap(annotation: Any, marks: list[Any]) -> tuple[list[Any], Any, tuple[str, ...]]:
    """Flatten ``Annotated`` and ``X | None``: the constraints on the way down, the type, literal choices."""
    origin = get_origin(annotation)
    if origin is Annotated:
        inner, *more = get_args(annotation)
        for mark in more:
            marks += list(getattr(mark, "metadata", [])) or [mark]
        return _unwrap(inner, marks)
    if origin is Literal:
        return marks, annotation, tuple(str(choice) for choice in get_args(annotation))
    if origin is tuple:
        return _unwrap(get_args(annotation)[0], marks)
    parts = [part for part in get_args(annotation) if part is not NoneType]
    if len(parts) == 1 and NoneType in get_args(annotation):
        return _unwrap(parts[0], marks)
    return marks, annotation, ()
