"""``vitrail gallery``: search the pictures that a server kept, check and repair them, write them out."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse, pick, whole
from vitrail.errors import InputError, MissingExtraError, VitrailError
from vitrail.files import shown

if TYPE_CHECKING:
    from vitrail.schema import ImageRecord
    from vitrail.store.gallery import Gallery, Page, Picture

__all__ = ["CheckOptions", "ExportOptions", "SearchOptions", "ShowOptions", "run"]

ABOUT = Text(
    "The pictures that vitrail serve, studio and worker keep.", "vitrail serve、studio 与 worker 保存的图片。"
)
COMMANDS = {
    "search": Text("list pictures by words, model, style or favourites", "按文字、模型、风格或收藏列出图片"),
    "show": Text("show what is known of a picture", "显示某张图片的信息"),
    "check": Text(
        "compare records and files; say what is missing or damaged", "核对记录与文件，报告缺失与损坏"
    ),
    "repair": Text("check, and bring records and files together again", "核对并修复记录与文件"),
    "export": Text("write pictures into a folder", "把图片写入文件夹"),
}

_FOLDER = Flag(
    Text(
        "Folder of the queue and the pictures. Default: ~/.local/share/vitrail.",
        "队列与图片所在的文件夹。默认 ~/.local/share/vitrail。",
    ),
    "FOLDER",
)
_DATABASE = Flag(
    Text(
        "postgresql://... where the records are. Default: a file in the folder.",
        "记录所在的 postgresql://... 数据库。默认为文件夹中的数据库文件。",
    ),
    "URL",
)
_PICTURES = Flag(
    Text("Folder of the pictures alone, or s3://bucket/name.", "单独存放图片的文件夹，或 s3://bucket/name。"),
    "PLACE",
)
_QUERY = Flag(
    Text(
        "Words that the prompt holds, in English or Chinese; a word may be cut short.",
        "提示词中包含的文字，中英文均可；英文单词可只写开头。",
    ),
    "WORDS",
    positional=True,
)
_MODEL = Flag(Text("Only pictures of this model.", "只列出该模型的图片。"), "NAME")
_KIND = Flag(
    Text("Only pictures of this kind, such as text_to_image.", "只列出该类任务的图片，例如 text_to_image。"),
    "NAME",
)
_STYLE = Flag(Text("Only pictures in this style.", "只列出该风格的图片。"), "NAME")
_FAVOURITES = Flag(Text("Only favourites.", "只列出收藏的图片。"))
_JSON = Flag(Text("Print JSON, one object a line.", "以 JSON 输出，每行一个对象。"))
_QUIET = Flag(Text("No progress.", "不显示进度。"), short="-q")


@dataclass(frozen=True)
class _Place:
    """Where the gallery is."""

    folder: Annotated[str | None, _FOLDER] = None
    database: Annotated[str | None, _DATABASE] = None
    pictures: Annotated[str | None, _PICTURES] = None


@dataclass(frozen=True)
class SearchOptions(_Place):
    """The flags of ``vitrail gallery search``."""

    query: Annotated[tuple[str, ...], _QUERY] = ()
    model: Annotated[str | None, _MODEL] = None
    kind: Annotated[str | None, _KIND] = None
    style: Annotated[str | None, _STYLE] = None
    favourites: Annotated[bool, _FAVOURITES] = False
    lost: Annotated[bool, Flag(Text("Those whose file is gone.", "列出文件已丢失的图片。"))] = False
    limit: Annotated[str, Flag(Text("Pictures at most.", "最多列出多少张。"), "INT")] = "50"
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class ShowOptions(_Place):
    """The flags of ``vitrail gallery show``."""

    id: Annotated[str | None, Flag(Text("The picture's id.", "图片的编号。"), "ID", positional=True)] = None
    json: Annotated[bool, _JSON] = False


@dataclass(frozen=True)
class CheckOptions(_Place):
    """The flags of ``vitrail gallery check`` and ``repair``."""

    repair: Annotated[bool, Flag(Text("Bring records and files together again.", "同时修复记录与文件。"))] = (
        False
    )
    json: Annotated[bool, _JSON] = False
    quiet: Annotated[bool, _QUIET] = False


@dataclass(frozen=True)
class ExportOptions(_Place):
    """The flags of ``vitrail gallery export``."""

    query: Annotated[tuple[str, ...], _QUERY] = ()
    output: Annotated[
        str | None, Flag(Text("Folder to write into.", "要写入的文件夹。"), "FOLDER", short="-o")
    ] = None
    model: Annotated[str | None, _MODEL] = None
    kind: Annotated[str | None, _KIND] = None
    style: Annotated[str | None, _STYLE] = None
    favourites: Annotated[bool, _FAVOURITES] = False
    quiet: Annotated[bool, _QUIET] = False


def run(arguments: Sequence[str], language: Language) -> int:
    """Run one of :data:`COMMANDS`; returns 0, or 1 for a check that found something wrong."""
    name, rest = pick(arguments, COMMANDS, command="gallery", about=ABOUT, language=language)
    command, about = f"gallery {name}", COMMANDS[name]
    match name:
        case "search":
            return _search(parse(SearchOptions, rest, command=command, about=about, language=language))
        case "show":
            return _show(parse(ShowOptions, rest, command=command, about=about, language=language), language)
        case "export":
            return _export(parse(ExportOptions, rest, command=command, about=about, language=language))
    checked = parse(CheckOptions, rest, command=command, about=about, language=language)
    return _check(checked, language, repair=checked.repair or name == "repair")


@contextmanager
def _opened(place: _Place) -> Iterator[Gallery]:
    """The gallery; :class:`InputError` where there is none, so that a slip of the pen makes no empty one."""
    from vitrail.commands.serve import data_folder

    try:
        from vitrail.store.gallery import Gallery
    except ImportError as error:
        raise MissingExtraError(str(error.name or "sqlalchemy").partition(".")[0], "server") from error
    folder = data_folder(place.folder)
    where = place.pictures or folder
    file = folder / "vitrail.sqlite"
    if place.database is None and not file.is_file():
        raise InputError(f"there is no gallery in {shown(folder)}; give another --folder, or --database")
    gallery = Gallery(where, place.database or f"sqlite:///{file.absolute()}")
    try:
        yield gallery
    finally:
        gallery.close()


def _search(options: SearchOptions) -> int:
    limit = whole("limit", options.limit, 1, 1_000_000)
    with _opened(options) as gallery:
        for count, picture in enumerate(_found(gallery, options, lost=options.lost), start=1):
            if options.json:
                print(json.dumps(_about(picture), ensure_ascii=False))
            else:
                mark = "*" if picture.favourite else " "
                made = picture.created.astimezone().strftime("%Y-%m-%d %H:%M")
                words = shown(" ".join(picture.prompt.split()) or picture.kind, 60)
                print(f"{picture.id}  {made} {mark} {shown(picture.model, 24):<24} {words}")
            if count == limit:
                break
    return 0


def _show(options: ShowOptions, language: Language) -> int:
    if not options.id:
        raise InputError("the picture's id is missing; see vitrail gallery search")
    with _opened(options) as gallery:
        picture = gallery.get(options.id)
    if options.json:
        print(
            json.dumps(_about(picture) | {"record": json.loads(picture.record.to_json())}, ensure_ascii=False)
        )
        return 0
    record = picture.record
    state = Text("file is gone", "文件已丢失") if picture.lost else Text("kept", "完好")
    lines = {
        Text("id", "编号"): picture.id,
        Text("prompt", "提示词"): shown(picture.prompt, 400),
        Text("understood", "理解为"): shown(record.understood_as or "", 400),
        Text("made", "时间"): picture.created.astimezone().isoformat(timespec="seconds"),
        Text("kind", "任务"): picture.kind,
        Text("model", "模型"): f"{shown(picture.model, 80)} ({record.model_sha256[:12]})",
        Text("style", "风格"): picture.style or "",
        Text("seed", "种子"): str(picture.seed),
        Text("size", "尺寸"): f"{picture.width}x{picture.height}, {picture.bytes} B",
        Text("favourite", "收藏"): Text("yes", "是")[language] if picture.favourite else "",
        Text("file", "文件"): state[language],
        Text("sha256", "SHA-256"): picture.sha256,
    }
    for label, value in lines.items():
        if value:
            print(f"{label[language]:<11}{value}")
    for hint in record.hints:
        print(f"{Text('hint', '提示')[language]:<11}{shown(hint, 400)}")
    return 0


def _check(options: CheckOptions, language: Language, *, repair: bool) -> int:
    with _opened(options) as gallery, _bar(options.quiet or options.json) as progress:
        report = gallery.check(repair, read_record=_read_record, progress=progress)
    found = {
        "missing": (Text("file is gone", "文件丢失"), report.missing),
        "damaged": (Text("file is damaged", "文件损坏"), report.damaged),
        "unknown": (Text("file without a record", "文件没有记录"), report.unknown),
        "restored": (Text("recorded again", "已重新登记"), report.restored),
        "marked": (Text("marked as lost", "已标为丢失"), report.marked),
    }
    if options.json:
        rows = {name: ids for name, (_, ids) in found.items()}
        print(
            json.dumps(
                {"pictures": report.pictures, "whole": report.whole, "database": report.database} | rows
            )
        )
        return 0 if report.whole else 1
    for label, ids in found.values():
        for id in ids:
            print(f"{label[language]}: {shown(id, 400)}")
    if report.database is not None:
        print(f"{Text('the database is damaged', '数据库损坏')[language]}: {shown(report.database, 400)}")
    whole_, broken = Text("nothing is wrong", "没有问题"), Text("see above", "见上")
    advice = Text(
        "; vitrail gallery repair puts right what it can", "；vitrail gallery repair 可修复部分问题"
    )
    end = (whole_ if report.whole else broken)[language] + (
        "" if report.whole or repair else advice[language]
    )
    print(
        Text(f"{report.pictures} pictures checked; {end}", f"已核对 {report.pictures} 张图片；{end}")[
            language
        ]
    )
    return 0 if report.whole else 1


def _export(options: ExportOptions) -> int:
    if options.output is None:
        raise InputError("the folder to write into is missing; add -o FOLDER")
    from vitrail.files import atomic_write, ensure_folder

    target = ensure_folder(Path(options.output).expanduser())
    left = 0
    with _opened(options) as gallery, _bar(options.quiet) as progress:
        total = gallery.count()
        for done, picture in enumerate(_found(gallery, options), start=1):
            progress(done, max(done, total))
            path = target / f"{picture.created:%Y%m%d-%H%M%S}-{picture.id}{picture.suffix}"
            if path.exists() and path.stat().st_size == picture.bytes:
                continue  # an export that was interrupted goes on
            try:
                atomic_write(path, gallery.open(picture.id))
            except VitrailError as error:
                left += 1
                print(f"left out: {picture.id}: {error}", file=sys.stderr)
                continue
            print(path)
    return 1 if left else 0


def _found(
    gallery: Gallery, options: SearchOptions | ExportOptions, *, lost: bool = False
) -> Iterator[Picture]:
    """All pictures that fit, the newest first."""
    before: str | None = None
    while True:
        page: Page = gallery.page(
            query=" ".join(options.query) or None,
            model=options.model,
            kind=options.kind,
            style=options.style,
            favourite=True if options.favourites else None,
            lost=lost,
            before=before,
            limit=200,
        )
        yield from page.pictures
        if page.next is None:
            return
        before = page.next


def _about(picture: Picture) -> dict[str, Any]:
    return {
        "id": picture.id,
        "prompt": picture.prompt,
        "kind": picture.kind,
        "model": picture.model,
        "style": picture.style,
        "seed": picture.seed,
        "width": picture.width,
        "height": picture.height,
        "favourite": picture.favourite,
        "lost": picture.lost,
        "created": picture.created.isoformat(),
        "job": picture.job,
        "bytes": picture.bytes,
        "sha256": picture.sha256,
    }


def _read_record(data: bytes) -> ImageRecord | None:
    from vitrail.provenance.metadata import read

    return read(data).record


@contextmanager
def _bar(quiet: bool) -> Iterator[Callable[[int, int], None]]:
    """Yield a function (done, total) that draws a bar on standard error if a person can see it."""
    if quiet or not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
