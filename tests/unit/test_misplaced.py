"""What is said of a path that is no model of vitrail's: what it is, or what was probably meant."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from vitrail.errors import ArtifactError
from vitrail.store import artifacts
from vitrail.tasks.loading import Loader
from vitrail.tasks.tokenizers import load_tokenizer


@pytest.fixture
def zoo(tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Folders and files that are mistaken for models, at a short path: a long one is told in short."""
    with tempfile.TemporaryDirectory(prefix="zoo") as name:
        monkeypatch.setenv("VITRAIL_HOME", f"{name}/home")  # no models but those that come with vitrail
        yield _filled(Path(name), tiny_model)


def _filled(tmp_path: Path, tiny_model: Path) -> Path:
    shutil.copytree(tiny_model, tmp_path / "run" / "model")
    (tmp_path / "run" / "train.py").write_text("print()")
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "a.ckpt").write_bytes(b"x")
    (tmp_path / "sd" / "unet").mkdir(parents=True)
    (tmp_path / "sd" / "model_index.json").write_text("{}")
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("x")
    return tmp_path


OPENERS: dict[str, Callable[[str], object]] = {
    "manifest": lambda name: artifacts.read_manifest(artifacts.find(name)),
    "stamp": lambda name: artifacts.stamp(artifacts.find(name)),
    "tokenizer": lambda name: load_tokenizer(Loader(), name),
    "text": lambda name: Loader().text_to_image(name),
}


@pytest.mark.parametrize("opener", list(OPENERS))
@pytest.mark.parametrize(
    ("place", "words"),
    [
        ("run", "{} is not a model folder: it has no artifact.json; did you mean {}/model?"),
        ("files", "{} is not a model folder: it has no artifact.json; did you mean {}/a.ckpt?"),
        ("sd", "{} is a pipeline of diffusers, which cannot be used for this; give a model of vitrail's"),
        ("sd/unet", "{} is not a model folder: it has no artifact.json; it is a part of {}: give the whole"),
        ("empty", "{} is not a model folder: it has no artifact.json"),
        ("notes.txt", "{} is not a model; there are: default, vqgan (or give a model's folder, or a"),
        (
            "files/a.ckpt",
            "{} is a checkpoint, which cannot be used for this as it is; vitrail models",
        ),
    ],
)
def test_what_is_no_model_says_what_it_is(zoo: Path, opener: str, place: str, words: str) -> None:
    other = zoo / "sd" if place == "sd/unet" else zoo / place
    with pytest.raises(ArtifactError) as caught:
        OPENERS[opener](str(zoo / place))
    assert str(caught.value).startswith(words.format(zoo / place, other))
    assert len(str(caught.value)) < len(words) + 2 * len(str(zoo / place)) + 80


def test_code_in_a_real_model_folder_is_still_refused(zoo: Path) -> None:
    (zoo / "run" / "model" / "train.py").write_text("print()")
    with pytest.raises(ArtifactError, match="could carry code"):
        artifacts.read_manifest(zoo / "run" / "model")


def test_a_stamp_changes_with_the_model(zoo: Path, make_model: Callable[..., Path]) -> None:
    folder = zoo / "run" / "model"
    before = artifacts.stamp(folder)
    assert artifacts.stamp(folder) == before
    shutil.rmtree(folder)
    make_model(folder, seed=1)
    assert artifacts.stamp(folder) != before
