"""The command ``vitrail``: picks the sub-command, and turns every error into one line and an exit code.

Nothing heavy is imported here, so that ``vitrail --help`` answers at once; each sub-command imports what it
needs after its flags have been read.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Sequence

from vitrail.commands.language import Language, Text, from_environment, take_language
from vitrail.errors import InputError, StorageError, VitrailError

__all__ = ["COMMANDS", "main"]

# Name -> what it does. The module vitrail.commands.NAME has `run(arguments, language) -> int`.
COMMANDS: dict[str, Text] = {
    "generate": Text("make pictures from words", "用文字生成图片"),
    "grid": Text("one picture at several values of its settings", "同一画面在不同设置下的对照表"),
    "edit": Text("draw over a picture with other words", "用新的文字重画图片"),
    "train": Text("train a model by a recipe, or on your own pictures", "按配方训练模型，或用自己的图片训练"),
    "data": Text("build a training set, look at a folder of pictures", "构建训练集，检查图片文件夹"),
    "evaluate": Text("measure pictures or a model, write a report", "评测图片或模型，生成报告"),
    "models": Text("list, fetch, convert and remove models", "列出、获取、转换与删除模型"),
    "reconstruct": Text("pictures through a tokenizer and back", "把图片编码再解码，查看保真度"),
    "vary": Text("other versions of a picture", "生成图片的其他版本"),
    "inpaint": Text("paint a part of a picture anew, or beyond its edges", "重画图片局部，或向外扩画"),
    "repair": Text("draw anew what a mask covers in a photograph", "重画照片中蒙版遮住的部分"),
    "upscale": Text("make photographs two or four times larger", "把照片放大两倍或四倍"),
    "walk": Text("walk between pictures or words, add pictures up", "在图片或文字之间渐变，或把图片相加"),
    "compress": Text("a picture as a few hundred bytes", "把图片压缩到几百字节"),
    "decompress": Text("a compressed picture back to pixels", "还原压缩的图片"),
    "encode": Text("the codes of a picture in a file", "把图片的编码写入文件"),
    "decode": Text("a file of codes back to a picture", "把编码文件还原成图片"),
    "codebook": Text("what each code of a tokenizer draws", "展示每个编码画出什么"),
    "studio": Text("open the studio in a browser", "在浏览器中打开工作室"),
    "serve": Text("answer requests over HTTP", "通过 HTTP 提供服务"),
    "worker": Text("take jobs from a queue that several machines share", "从多机共享的队列中领取任务"),
    "gallery": Text("search, check and repair the pictures kept", "检索、检查与修复图库"),
    "doctor": Text("show versions, devices and folders", "显示版本、设备与目录"),
}

PAGE = Text(
    """usage: vitrail COMMAND [OPTIONS]

Generative art on your own machine.

commands:
{commands}

options:
  -h, --help     show this help and exit (vitrail COMMAND --help explains one command)
  --version      show the version and exit
  --lang en|zh   language of help and messages (default: from LC_ALL, LC_MESSAGES or LANG)

examples:
  vitrail generate "a cat sitting in a garden"
  vitrail generate "一只猫坐在花园里" --n 4 --style noto --seed 7
  vitrail train --data my_pictures/ --dry-run""",
    """用法：vitrail 命令 [选项]

在自己的机器上做生成艺术。

命令：
{commands}

选项：
  -h, --help     显示本帮助并退出（vitrail 命令 --help 说明单个命令）
  --version      显示版本并退出
  --lang en|zh   帮助与提示信息的语言（默认取自 LC_ALL、LC_MESSAGES 或 LANG）

例子：
  vitrail generate "a cat sitting in a garden"
  vitrail generate "一只猫坐在花园里" --n 4 --style noto --seed 7
  vitrail train --data my_pictures/ --dry-run""",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line ``arguments`` (default: the process's own) and return the exit code.

    0 for success; an error is one line on standard error and the error's ``exit_code`` (2 for bad input); 130
    after Ctrl-C.
    """
    if arguments is None and not sys.warnoptions:
        # Warnings of libraries are for those who write code; python -W shows them.
        warnings.simplefilter("ignore")
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _dispatch(words)
    except KeyboardInterrupt:
        _complain("stopped", words)
        return 130
    except BrokenPipeError:
        # The reader of our output (head, less) went away. Python would complain again while it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except VitrailError as error:
        _complain(str(error), words)
        return error.exit_code
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        _complain(f"{error.strerror or error}{place}", words)
        return StorageError.exit_code
    except MemoryError:
        _complain("out of memory; use fewer pictures at once (--n) or a smaller size", words)
        return 1


def _dispatch(arguments: list[str]) -> int:
    language, arguments = take_language(arguments)
    if not arguments or arguments[0] in ("-h", "--help", "help"):
        print(_page(language))
        return 0
    name = arguments[0]
    if name in ("-V", "--version"):
        import vitrail

        print(f"vitrail {vitrail.__version__}")
        return 0
    if name not in COMMANDS:
        import difflib

        kind = "option" if name.startswith("-") else "command"
        near = difflib.get_close_matches(name, COMMANDS, 1)
        ask = f"did you mean {near[0]}?" if near else f"use one of {', '.join(COMMANDS)}"
        raise InputError(f"{kind} {name!r} is unknown; {ask}")
    try:
        return int(importlib.import_module(f"vitrail.commands.{name}").run(arguments[1:], language))
    except SystemExit as stop:  # --help of a sub-command
        return int(stop.code or 0)


def _page(language: Language | None = None) -> str:
    """Return the help page in ``language`` (default: the environment's)."""
    language = language or from_environment()
    return PAGE[language].format(
        commands="\n".join(f"  {name:<13}{about[language]}" for name, about in COMMANDS.items())
    )


def _complain(message: str, arguments: Sequence[str]) -> None:
    """Print one line on standard error, whatever control characters or lone surrogates the input brought.

    In Chinese where ``arguments`` or the environment say so and there is a translation.
    """
    try:
        language = take_language(list(arguments))[0]
    except InputError:  # --lang itself is what is wrong
        language = from_environment()
    line = " ".join(message.split())
    if language == "zh":
        from vitrail.chinese import in_chinese

        line = f"错误：{in_chinese(line) or line}"
    line = "".join(char if char.isprintable() else "?" for char in line)
    print(f"vitrail: {line}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
