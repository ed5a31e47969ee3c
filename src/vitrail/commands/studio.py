"""``vitrail studio``: the server with the studio's page, opened in a browser."""

from __future__ import annotations

import threading
import webbrowser
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated
from urllib.parse import quote

from vitrail.commands import serve
from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vitrail.serving.durable import DurableEngine

__all__ = ["Options", "run"]

ABOUT = Text(
    "Open the studio in a browser: pictures from words, editing, gallery, training, evaluation. For "
    "instance: vitrail studio",
    "在浏览器中打开工作室：文生图、编辑、图库、训练与评测。例如：vitrail studio",
)


@dataclass(frozen=True)
class Options(serve.Options):
    """The flags of ``vitrail studio``."""

    no_browser: Annotated[bool, Flag(Text("Open no browser.", "不打开浏览器。"))] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Serve the studio until it is stopped, and return 0."""
    options = parse(Options, arguments, command="studio", about=ABOUT, language=language)
    token = serve.token_of(options)

    def open_page(address: str) -> None:
        if not options.no_browser:
            # The page's own address takes the token once and keeps it as a cookie.
            place = f"{address}/?token={quote(token)}" if token else address
            threading.Thread(target=webbrowser.open, args=(place,), daemon=True).start()

    def add(app: FastAPI, engine: DurableEngine) -> None:
        from vitrail.studio.page import add_studio
        from vitrail.studio.places import Places

        home = serve.data_folder(options.folder) / "studio"
        # Who can reach the server from elsewhere names no folder of this machine.
        add_studio(app, Places(home, roots=serve.roots_of(options)), engine)

    from vitrail.studio.page import CSP

    return serve.serve(options, language, add=add, page_policy=CSP, ready=open_page)
