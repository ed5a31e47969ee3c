"""Answers of the rating page, one line of JSON each, in a file that only grows."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from vitrail.errors import StorageError
from vitrail.files import ensure_folder

__all__ = ["VoteBook"]


class VoteBook:
    """Votes in the file ``path``. A line that a crash cut short is skipped, and the next one stands alone."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()

    def add(self, vote: Mapping[str, Any]) -> int:
        """Keep ``vote`` on the disk and return how many there are; :class:`StorageError` if it cannot be."""
        line = json.dumps({**vote, "time": datetime.now(UTC).isoformat()}, ensure_ascii=False)
        ensure_folder(self._path.parent)
        try:
            with self._lock, open(self._path, "ab+") as file:
                torn = file.tell() > 0 and (file.seek(-1, os.SEEK_END), file.read(1))[1] != b"\n"
                file.write(b"\n" * torn + line.encode() + b"\n")
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"the vote cannot be kept: {error.strerror}") from error
        return len(self.all())

    def all(self) -> list[dict[str, Any]]:
        """Every vote, the oldest first."""
        try:
            lines = self._path.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return []
        votes = []
        for line in lines:
            try:
                vote = json.loads(line)
            except ValueError:
                continue
            if isinstance(vote, dict) and {"left_name", "right_name", "winner"} <= vote.keys():
                votes.append(vote)
        return votes
