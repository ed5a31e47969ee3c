"""A working process for the page's tests: everything of the real one but the network, so it starts at once.

Any prompt gives small pictures in the seed's colour. One that begins with ``slow`` takes a third of a second
for each step; one that begins with ``fail`` fails, and its words stand in the error.
"""

from __future__ import annotations

import colorsys
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from PIL import Image

from vitrail.codes_schema import InpaintRequest, TokenDefaults, VaryRequest, WalkRequest
from vitrail.errors import CancelledError, InputError
from vitrail.schema import ImageRecord, SamplingDefaults
from vitrail.serving.queue_hands import Assignment, Tell, serve
from vitrail.serving.save import animation_bytes, picture_bytes

SIDE, SIDES = 64, (32, 64, 128)
COMMAND = (sys.executable, str(Path(__file__).resolve()))


def work(assignments: Sequence[Assignment], tell: Tell, folder: Path) -> None:
    """Do what is assigned, one after the other."""
    for assignment in assignments:
        try:
            draw(assignment, tell)
        except EOFError:
            raise
        except BaseException as error:
            tell.failed(assignment.id, error)


def draw(assignment: Assignment, tell: Tell) -> None:
    """Make the pictures of one request, telling of every step."""
    request: Any = assignment.request
    if request.prompt.startswith("fail"):
        raise InputError(f"this cannot be drawn: {request.prompt}")
    resolved = settled(request)
    steps = getattr(resolved, "steps", 1)
    total, pause = steps * resolved.n, 0.33 if request.prompt.startswith("slow") else 0.0
    frames = []
    for index in range(resolved.n):
        made = picture(resolved.seed + index, size(resolved))
        for step in range(steps):
            if assignment.cancelled.is_set():
                raise CancelledError("stopped")
            time.sleep(pause)
            done = index * steps + step + 1
            tell.progress(assignment.id, done, total, (total - done) * pause)
            if pause:
                tell.preview(assignment.id, made)
        record = ImageRecord(
            request=resolved,
            index=index,
            seed=resolved.seed + index,
            model_name=request.model,
            model_sha256="0" * 64,
            created=datetime.now(UTC),
        )
        tell.picture(assignment.id, index, record, ".png", picture_bytes(made, "png", record))
        frames.append((made, record))
    if isinstance(request, WalkRequest) and len(frames) > 1:
        film = animation_bytes([made for made, _ in frames], request.fps, frames[0][1])
        tell.picture(assignment.id, len(frames), frames[0][1], ".webp", film, kind="animation")
    tell.done(assignment.id)


def settled(request: Any) -> Any:
    """The request with nothing left open, as the shipped models would settle it."""
    match request:
        case WalkRequest():
            return request.resolve()
        case VaryRequest() | InpaintRequest():
            return request.resolve(TokenDefaults())
    return request.resolve(SamplingDefaults(steps=4, cfg_scale=1.0, width=SIDE, height=SIDE))


def size(resolved: Any) -> tuple[int, int]:
    """The picture's sides. As the shipped model, it refuses any size but its own."""
    more = getattr(resolved, "expand", None)
    if more:
        return SIDE + more.left + more.right, SIDE + more.top + more.bottom
    width, height = (getattr(resolved, side, None) or SIDE for side in ("width", "height"))
    if width != height or width not in SIDES:
        raise InputError(f"size {width}x{height} is not possible")
    return width, height


def picture(seed: int, size: tuple[int, int] = (SIDE, SIDE)) -> Image.Image:
    """A pane whose colour is the seed's."""
    red, green, blue = colorsys.hls_to_rgb(seed % 97 / 97, 0.5, 0.8)
    return Image.new("RGB", size, (int(255 * red), int(255 * green), int(255 * blue)))


if __name__ == "__main__":
    serve(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), work)
