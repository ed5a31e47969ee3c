"""From clone to picture: a grid of pictures for a few prompts, in two languages, into ``out/``.

It uses the library as a program of yours would: requests go to an engine, events come back.
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from vitrail import Destination, Engine, PictureDone, TextToImageRequest
from vitrail.images import grid

PROMPTS = (
    "a grinning face",
    "a strawberry",
    "熊猫",
    "一辆红色的汽车",
    "a penguin",
    "a carrot",
    "a guitar",
    "a tree",
)


def main() -> None:
    folder = Path("out")
    pictures: list[Image.Image] = []
    labels: list[str] = []
    with Engine() as engine:
        jobs = [
            engine.submit(TextToImageRequest(prompt=prompt, seed=2), Destination.of(str(folder)))
            for prompt in PROMPTS
        ]
        for prompt, job in zip(PROMPTS, jobs, strict=True):
            for event in engine.events(job):
                if isinstance(event, PictureDone):
                    pictures.append(event.picture)
                    # Few machines without a desktop have a Chinese font; what was understood can be printed.
                    labels.append(event.record.understood_as or prompt)
                    print(f"{prompt}: {event.path}")
    sheet = folder / "demo.png"
    grid(pictures, columns=4, labels=labels).save(sheet)
    print(f"the grid: {sheet.resolve()}")


if __name__ == "__main__":
    main()
