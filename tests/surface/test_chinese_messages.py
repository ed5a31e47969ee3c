"""Errors and reasons in Chinese: provoked, not listed, so that a message reworded without its row is seen."""

from __future__ import annotations

import io
import os
import re
import tarfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from test_cli_errors import GENERATE

from vitrail.chinese import _table, in_chinese
from vitrail.cli import main
from vitrail.data.inspect import inspect
from vitrail.data.inspect_report import write_report

CHINESE = re.compile(r"[\u4e00-\u9fff]")


def complaint(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(arguments) != 0
    err = capsys.readouterr().err
    assert err.startswith("vitrail: 错误：")
    assert err.count("\n") == 1
    return err.removeprefix("vitrail: 错误：").strip()


@pytest.mark.parametrize("arguments", [row[0] for row in GENERATE], ids=lambda value: str(value)[:40])
def test_every_common_error_of_generate_is_chinese(
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    if "--lang" in arguments:
        monkeypatch.setenv("LC_ALL", "zh_CN.UTF-8")
        line = complaint(capsys, "generate", *arguments)
    else:
        line = complaint(capsys, "generate", *arguments, "--lang", "zh")
    assert CHINESE.search(line), line
    assert not re.search(r"\b(is|are|the|not|allowed)\b", line), line


@pytest.mark.parametrize(
    "arguments",
    [
        ["generat"],
        ["xyz"],
        ["--verson"],
        ["train"],
        ["train", "missing.toml"],
        ["train", "--data", "missing"],
        ["data", "bild"],
        ["data", "build", "emoji", "--size", "100"],
        ["data", "build", "emoji", "-o", "full"],
        ["data", "inspect"],
        ["data", "inspect", "missing"],
        ["data", "inspect", ".", "--size", "9"],
        ["models", "shw"],
        ["models", "show", "nowhere"],
        ["doctor", "--now"],
        ["generate", "x", "-o", "full/letter.txt/out"],
        ["generate", "--from-record", "full/letter.txt"],
    ],
    ids=" ".join,
)
def test_the_other_commands_too(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LANG", "zh_CN.UTF-8")
    monkeypatch.delenv("LC_ALL", raising=False)
    monkeypatch.delenv("LC_MESSAGES", raising=False)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "letter.txt").write_text("not ours")
    line = complaint(capsys, *arguments)
    assert CHINESE.search(line), line


def test_english_stays_english_and_what_is_not_in_the_table_too(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_ALL", "C.UTF-8")
    assert main(["generate", "x", "--steps", "0"]) == 2
    assert capsys.readouterr().err == "vitrail: steps 0 is out of range; allowed 1 to 200\n"
    assert in_chinese("something that nobody has ever said") is None


def test_several_complaints_are_translated_together_or_not_at_all() -> None:
    assert in_chinese(
        "steps 0 is out of range; allowed 1 to 200; prompt is empty; give at least one character"
    ) == ("steps 为 0，超出范围；允许 1 到 200；prompt 为空；请至少输入一个字符")
    assert in_chinese("steps 0 is out of range; allowed 1 to 200; and something else") is None


def test_a_reason_within_a_message_is_translated_too() -> None:
    line = "recipe 'a.toml' cannot be read: No such file or directory"
    assert in_chinese(line) == "无法读取配方 'a.toml'：没有这个文件或目录"


def test_the_table_keeps_every_value() -> None:
    """A translation that forgot a value would hide what was typed or what is allowed."""
    rows = _table()
    assert len(rows) > 100
    for pattern, chinese in rows:
        places = set(pattern.groupindex) - {"and_then"}
        assert places == set(re.findall(r"\{(\w+)\}", chinese)), chinese
        assert CHINESE.search(chinese)


@given(
    st.text(max_size=300)
    | st.lists(st.sampled_from(["steps ", "; ", " is out of range", "a", "0"])).map("".join)
)
def test_any_text_is_answered(text: str) -> None:
    answer = in_chinese(text)
    assert answer is None or CHINESE.search(answer)


@pytest.fixture
def troubled(tmp_path: Path) -> Path:
    """A folder with one file of nearly every kind that cannot be used."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    noise = Image.effect_noise((64, 64), 90)
    noise.save(folder / "good.png")
    for kind in ("PNG", "JPEG", "WEBP", "GIF"):
        whole = io.BytesIO()
        noise.save(whole, kind)
        data = whole.getvalue()
        for cut in (0, 3, 14, 20, 25, len(data) // 2):
            (folder / f"{kind}-{cut}.{kind.lower()}").write_bytes(data[:cut])
    (folder / "letter.png").write_text("not a picture")
    (folder / "film.tif").write_bytes(b"II*\0")
    (folder / "packed.zip").write_bytes(b"PK")
    (folder / "link.png").symlink_to(folder / "good.png")
    os.mkfifo(folder / "pipe.png")
    (folder / "good.txt").write_bytes(b"\xff\xfe\x00")
    lines = [
        "oops",
        "[]",
        "{}",
        '{"file_name": "../up.png"}',
        '{"file_name": "absent.png"}',
        '{"file_name": "good.png", "text": 3}',
        '{"file_name": "good.png", "text": "a", "style": 3}',
        '{"file_name": "good.png", "text": "a"}',
        '{"file_name": "good.png", "text": "b"}',
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    with tarfile.open(folder / "cut.tar", "w") as tar:
        tar.add(folder / "good.png", "a.png")
    data = (folder / "cut.tar").read_bytes()
    (folder / "cut.tar").write_bytes(data[:900])
    return folder


def test_every_reason_of_the_report_is_chinese(
    troubled: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    report = inspect(troubled)
    assert len(report.problems) > 30
    unknown = [problem.reason for problem in report.problems if in_chinese(problem.reason) is None]
    assert unknown == []
    told = report.summary("zh")
    assert sum("：" in line or "不" in line for line in told[-20:]) > 15
    for problem in report.problems[:20]:
        assert f"  {problem.path}: {problem.reason}" in report.summary("en")
        assert f"  {problem.path}: {in_chinese(problem.reason)}" in told
    write_report(report, tmp_path / "out", language="zh")
    page = (tmp_path / "out" / "report.html").read_text("utf-8")
    assert "不会跟随符号链接" in page
    assert "a symbolic link is not followed" in page
    assert main(["data", "inspect", str(troubled), "--lang", "zh", "--report", str(tmp_path / "r")]) == 0
    assert "文件过早结束" in capsys.readouterr().out
