"""``vitrail models``: which models are on this machine, and what one of them says of itself."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from vitrail.commands.language import Language, Text
from vitrail.commands.options import Flag, parse, pick
from vitrail.errors import InputError, VitrailError
from vitrail.files import shown

__all__ = ["ListOptions", "ShowOptions", "run"]

ABOUT = Text("Models on this machine.", "本机的模型。")
COMMANDS = {
    "list": Text("list the shipped model and those in the models folder", "列出自带模型与模型目录中的模型"),
    "show": Text("show what a model says of itself, and check its files", "显示某个模型的信息，并校验文件"),
}


@dataclass(frozen=True)
class ListOptions:
    """No flags but ``--help``."""


@dataclass(frozen=True)
class ShowOptions:
    """The flags of ``vitrail models show``."""

    model: Annotated[
        str,
        Flag(Text("Name or folder of the model.", "模型名称或文件夹。"), "NAME", positional=True),
    ] = "default"


def run(arguments: Sequence[str], language: Language) -> int:
    """Run ``list`` or ``show`` and return 0."""
    name, rest = pick(arguments, COMMANDS, command="models", about=ABOUT, language=language)
    if name == "list":
        parse(ListOptions, rest, command="models list", about=COMMANDS["list"], language=language)
        return _list()
    options = parse(ShowOptions, rest, command="models show", about=COMMANDS["show"], language=language)
    return _show(options.model)


def _list() -> int:
    from vitrail.store.artifacts import available, home, read_manifest

    models = available()
    for name, folder in models.items():
        try:
            manifest = read_manifest(folder, verify=False)
        except VitrailError as error:  # one damaged folder must not hide the others
            print(f"{name:<20} damaged: {error}")
            continue
        size = sum(entry.size for entry in manifest.files.values())
        print(f"{name:<20} {manifest.kind:<12} {size / 1e6:7.1f} MB  {folder}")
    if not models:
        print(f"no model yet; train one with vitrail train, models are kept in {home()}", file=sys.stderr)
    return 0


def _show(model: str) -> int:
    if not model:
        raise InputError("the model's name is empty; see vitrail models list")
    from vitrail.store.artifacts import find, read_manifest
    from vitrail.tasks.loading import style_names

    folder = find(model)
    manifest = read_manifest(folder, verify=True)
    print(f"name      {manifest.name}")
    print(f"kind      {manifest.kind}")
    print(f"folder    {shown(folder, 400)}")
    print(f"licence   {shown(manifest.licence, 400)}")
    print(f"created   {shown(manifest.created)}")
    print("config    " + ", ".join(f"{key} {shown(value, 60)}" for key, value in manifest.config.items()))
    if manifest.sampling is not None:
        settings = manifest.sampling.model_dump()
        print("defaults  " + ", ".join(f"{key} {value}" for key, value in settings.items()))
    if manifest.kind == "shell_dit" and (styles := style_names(folder, manifest)):
        print(f"styles    {', '.join(shown(style, 40) for style in styles)}")
    for name, metric in manifest.metrics.items():
        print(f"metric    {name} {metric.value:.4g} (n {metric.n})")
    for name, entry in manifest.files.items():
        print(f"file      {name} {entry.size} bytes, sha256 {entry.sha256}")
    print("checked   every file is as artifact.json says")
    return 0
