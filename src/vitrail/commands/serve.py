"""``vitrail serve``: the engine behind HTTP, for programs and other machines."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Device, Flag, parse, whole
from vitrail.errors import InputError, MissingExtraError
from vitrail.files import shown
from vitrail.serving.http_hosts import check_bind, is_loopback

if TYPE_CHECKING:
    from fastapi import FastAPI

    from vitrail.serving.durable import DurableEngine

__all__ = ["Options", "data_folder", "roots_of", "run", "serve", "token_of"]

ABOUT = Text(
    "Answer requests over HTTP: the native API, AUTOMATIC1111's and OpenAI's; see docs/server.md. For "
    "instance: vitrail serve --port 7860",
    "通过 HTTP 提供服务：原生接口、AUTOMATIC1111 接口与 OpenAI 接口，见 docs/server.zh.md。"
    "例如：vitrail serve --port 7860",
)
PORT = "7860"
TOKEN_VARIABLE = "VITRAIL_TOKEN"


@dataclass(frozen=True)
class Options:
    """The flags of ``vitrail serve`` and ``vitrail studio``."""

    host: Annotated[
        str,
        Flag(
            Text(
                "Address to listen at. Any but this machine's own needs a token.",
                "监听地址。本机以外的地址需要令牌。",
            ),
            "ADDRESS",
        ),
    ] = "127.0.0.1"
    port: Annotated[
        str, Flag(Text("Port to listen at; 0 for any free one.", "监听端口；0 为任意空闲端口。"), "INT")
    ] = PORT
    token: Annotated[
        str | None,
        Flag(
            Text(
                f"Secret that every request must bring, 16 characters or more. Default: ${TOKEN_VARIABLE}.",
                f"每个请求都要携带的密钥，至少 16 个字符。默认取自 ${TOKEN_VARIABLE}。",
            ),
            "TEXT",
        ),
    ] = None
    allow_host: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Name under which the server is reached, such as art.example; may be given several times.",
                "访问服务器时使用的名称，例如 art.example；可给出多个。",
            ),
            "NAME",
        ),
    ] = ()
    allow_origin: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Another web page that may use the server, such as https://page.example; may be given "
                "several times.",
                "允许使用本服务器的其他网页，例如 https://page.example；可给出多个。",
            ),
            "URL",
        ),
    ] = ()
    allow_folder: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Folder whose pictures a training or an evaluation may read when it is asked for from "
                "another machine; may be given several times.",
                "其他机器提交训练或评测时可以读取的图片文件夹；可给出多个。",
            ),
            "FOLDER",
        ),
    ] = ()
    folder: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of the queue and the pictures. Default: ~/.local/share/vitrail.",
                "队列与图片所在的文件夹。默认 ~/.local/share/vitrail。",
            ),
            "FOLDER",
        ),
    ] = None
    database: Annotated[
        str | None,
        Flag(
            Text(
                "postgresql://... for a queue that several machines share. Default: a file in the folder.",
                "多机共享队列时用 postgresql://...。默认为文件夹中的数据库文件。",
            ),
            "URL",
        ),
    ] = None
    pictures: Annotated[
        str | None,
        Flag(
            Text(
                "Folder of the pictures alone, or s3://bucket/name.",
                "单独存放图片的文件夹，或 s3://bucket/name。",
            ),
            "PLACE",
        ),
    ] = None
    workers: Annotated[
        str,
        Flag(
            Text(
                "Processes that make pictures; 0 leaves the work to vitrail worker.",
                "生成图片的进程数；0 表示全部交给 vitrail worker。",
            ),
            "INT",
        ),
    ] = "1"
    device: Device = "auto"
    memory: Annotated[
        str | None,
        Flag(
            Text(
                "MiB of models that each process keeps loaded. Default: a quarter of the memory.",
                "每个进程常驻模型的内存上限（MiB）。默认为内存的四分之一。",
            ),
            "INT",
        ),
    ] = None
    queue_limit: Annotated[
        str, Flag(Text("Jobs that may wait; one more is refused.", "最多可排队的任务数。"), "INT")
    ] = "1000"
    warm: Annotated[
        tuple[str, ...],
        Flag(
            Text(
                "Model to load before the first request; may be given several times. Default: default.",
                "在首个请求之前载入的模型；可给出多个。默认 default。",
            ),
            "NAME",
        ),
    ] = ("default",)


def run(arguments: Sequence[str], language: Language) -> int:
    """Serve until it is stopped, and return 0."""
    return serve(parse(Options, arguments, command="serve", about=ABOUT, language=language), language)


def serve(
    options: Options,
    language: Language,
    *,
    add: Callable[[FastAPI, DurableEngine], None] | None = None,
    page_policy: str | None = None,
    ready: Callable[[str], None] | None = None,
) -> int:
    """Serve with ``options`` until it is stopped.

    add: puts further routes into the application; page_policy: of their page. ready: called with the address
    once the server can be reached.
    """
    token = token_of(options)
    host = options.host.strip("[]")
    numbers = {
        "port": whole("port", options.port, 0, 65535),
        "workers": whole("workers", options.workers, 0, 64),
        "queue_limit": whole("queue-limit", options.queue_limit, 1, 1_000_000),
    }
    memory = None if options.memory is None else whole("memory", options.memory, 64, 1 << 24)
    try:
        import uvicorn

        from vitrail.serving.durable import DurableEngine
        from vitrail.serving.http import make_app
        from vitrail.serving.http_lines import Lines, room_for_lines
        from vitrail.serving.processes import collect_seldom
    except ImportError as error:
        raise MissingExtraError(str(error.name or "fastapi").partition(".")[0], "server") from error
    listening = _bound(host, numbers["port"], retry=options.port == PORT and ready is not None)
    with (
        listening,
        DurableEngine(
            str(data_folder(options.folder)),
            database=options.database,
            pictures=options.pictures,
            device=options.device,
            memory_budget=memory,
            queue_limit=numbers["queue_limit"],
            workers=numbers["workers"],
            warm=options.warm,
            started=False,
        ) as engine,
    ):
        app = make_app(
            engine,
            engine.gallery,
            token=token,
            hosts=options.allow_host,
            addresses=not is_loopback(host),
            origins=options.allow_origin,
            roots=roots_of(options),
            page_policy=page_policy,
            add=None if add is None else lambda inner: add(inner, engine),
        )
        address = _address(host, listening.getsockname()[1])

        class Served(uvicorn.Server):
            """Starts the workers once it can answer: they load for seconds, and nobody waits for them yet."""

            async def startup(self, sockets: list[socket.socket] | None = None) -> None:
                await super().startup(sockets)
                engine.start()
                collect_seldom()

            async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
                await super().shutdown(sockets)
                if self.force_exit:  # a second Ctrl-C; cut off, the application would complain at length
                    await self.lifespan.shutdown()

        Lines.most = room_for_lines()
        server = Served(
            uvicorn.Config(
                app,
                http=Lines,
                log_level="warning",
                access_log=False,
                server_header=False,
                proxy_headers=False,
                ws="none",
                timeout_graceful_shutdown=3,
                timeout_keep_alive=30,
                h11_max_incomplete_event_size=64 << 10,
            )
        )
        said = {"en": "serves at", "zh": "服务地址："}[language]
        # The socket listens already: whoever asks now waits a moment and is answered.
        print(f"vitrail {said} {address}", file=sys.stderr, flush=True)
        if ready is not None:
            ready(address)
        # uvicorn ends in peace and then raises the signal anew; the engine is to be closed first.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        with contextlib.suppress(KeyboardInterrupt):
            server.run(sockets=[listening])
    return 0


def token_of(options: Options) -> str | None:
    """The token that requests must bring; :class:`InputError` where one is needed and none is given."""
    token = options.token or os.environ.get(TOKEN_VARIABLE) or None
    check_bind(options.host, token)
    return token


def roots_of(options: Options) -> tuple[Path, ...] | None:
    """Folders that long works may name; None, for all, where nobody but this machine can ask."""
    if is_loopback(options.host):
        return None
    uploads = data_folder(options.folder) / "studio" / "uploads"
    return (uploads, *(Path(folder).expanduser() for folder in options.allow_folder))


def data_folder(given: str | None) -> Path:
    """The folder of the queue and the gallery: the one that is given, else vitrail's own."""
    from vitrail.store import artifacts

    return Path(given).expanduser() if given is not None else artifacts.home().parent


def _address(host: str, port: int) -> str:
    shown_host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{shown_host}:{port}"


def _bound(host: str, port: int, *, retry: bool) -> socket.socket:
    """A socket that listens at ``host`` and ``port``, or with ``retry`` at one of the next twenty."""
    last: OSError | None = None
    for number in range(port, port + 20 if retry else port + 1):
        try:
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            # Said to be TCP, for asyncio sends at once on no other: an answer in two parts would wait 40 ms.
            listening = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
            try:
                if os.name != "nt":
                    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                listening.bind((host, number))
                listening.listen(2048)
            except OSError:
                listening.close()
                raise
            return listening
        except (OSError, OverflowError, UnicodeError) as error:
            last = error if isinstance(error, OSError) else OSError(str(error))
    reason = last.strerror if last is not None and last.strerror else "it is no address"
    raise InputError(f"cannot listen at {shown(host, 60)} port {port}: {reason}; choose another --port")
