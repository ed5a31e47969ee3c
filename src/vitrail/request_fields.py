"""The pieces that requests are made of: bounded texts and numbers, and files by their content.

:mod:`vitrail.schema` and :mod:`vitrail.codes_schema` build on them. Nothing here imports torch.
"""

from __future__ import annotations

import hashlib
import secrets
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, Strict, StringConstraints

__all__ = [
    "MAX_PROMPT",
    "MAX_SEED",
    "FileRef",
    "Model",
    "Name",
    "Scale",
    "Seed",
    "Sha256",
    "Side",
    "Steps",
    "Text",
    "Unit",
    "Word",
    "new_seed",
    "zh",
]

MAX_SEED = 2**53 - 1
"""Largest seed: the largest integer that JSON keeps exact in every reader, a browser included."""

MAX_PROMPT = 2000
"""Longest prompt, in characters."""


def _plain_text(text: str) -> str:
    """Strip; refuse control characters (but newline and tab) and lone surrogates, which no file can hold."""
    text = text.replace("\r\n", "\n").strip()
    for character in text:
        category = unicodedata.category(character)
        if (category == "Cc" and character not in "\n\t") or category == "Cs":
            raise ValueError(
                f"holds the character U+{ord(character):04X}; control characters are not allowed"
            )
    return text


def zh(text: str) -> Any:
    """A field's Chinese description, where :func:`vitrail.validation.describe` looks for it."""
    return {"zh": text}


Text = Annotated[str, AfterValidator(_plain_text)]
Name = Annotated[Text, StringConstraints(min_length=1, max_length=400)]
Word = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._ -]{0,63}$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Steps = Annotated[int, Strict(), Field(ge=1, le=200)]
Scale = Annotated[float, Strict(), Field(ge=0.0, le=30.0, allow_inf_nan=False)]
Unit = Annotated[float, Strict(), Field(ge=0.0, le=1.0, allow_inf_nan=False)]
Side = Annotated[int, Strict(), Field(ge=16, le=4096)]
Seed = Annotated[int, Strict(), Field(ge=0, le=MAX_SEED)]


class Model(BaseModel):
    """Frozen, no unknown fields, no NaN or infinity; what is refused is never echoed at length."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, hide_input_in_errors=True)


class FileRef(Model):
    """A file that a request works on: what it is called, what it holds, never where it lies.

    The content travels beside the request in the process (``data``) and stays out of every record, which
    knows the file by its SHA-256.
    """

    name: Annotated[Text, StringConstraints(min_length=1, max_length=255, pattern=r"^[^/\\]+$")]
    sha256: Sha256
    data: bytes = Field(default=b"", exclude=True, repr=False)

    @classmethod
    def of(cls, name: str, data: bytes) -> FileRef:
        """Refer to the file called ``name`` (the last part of a path is taken) with content ``data``."""
        last = name.replace("\\", "/").rstrip("/").rpartition("/")[2]
        plain = "".join(character if character.isprintable() else "_" for character in last)
        return cls(name=plain.strip()[:255] or "file", sha256=hashlib.sha256(data).hexdigest(), data=data)


def new_seed() -> int:
    """A fresh random seed, short enough to be typed (below 2**32)."""
    return secrets.randbelow(2**32)
