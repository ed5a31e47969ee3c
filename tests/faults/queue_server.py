"""A server to be killed: accepts jobs from standard input, a JSON line each, and says which it has accepted.

``python queue_server.py FOLDER [DEFENCE]``; that defence is taken out, for the negative controls.
"""

from __future__ import annotations

import json
import os
import secrets
import sys

import light_hands

from vitrail.schema import TextToImageRequest
from vitrail.serving import durable, queue_worker


def take_out(defence: str) -> None:
    """Take a defence out of this process (one of the server's, or of its worker's)."""
    if defence == "ids":  # a picture that is made again gets another id
        queue_worker.picture_id = lambda job, index: secrets.token_hex(16)
    elif defence == "commit":  # accepted before it is on disk
        real = durable.QueueStore.submit
        later: list[tuple[object, str]] = []

        def submit(self, request, key):  # type: ignore[no-untyped-def]
            later.append((request, key))
            if len(later) > 5:
                real(self, *later.pop(0))
            return type("Job", (), {"id": "soon", "kind": "text_to_image"})

        durable.QueueStore.submit = submit  # type: ignore[method-assign]


def main(folder: str, defence: str) -> None:
    take_out(defence)
    durable._WORKER = (sys.executable, __file__, "--worker", defence)
    with durable.DurableEngine(folder, hands=light_hands.COMMAND, batch=2) as engine:
        print(json.dumps({"ready": os.getpid()}), flush=True)
        for line in sys.stdin:
            asked = json.loads(line)
            job = engine.submit(TextToImageRequest(**asked["request"]), key=asked["key"])
            print(json.dumps({"key": asked["key"], "id": job.id}), flush=True)


if __name__ == "__main__":
    if sys.argv[1] == "--worker":
        take_out(sys.argv[2])
        queue_worker.main()
    else:
        main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "")
