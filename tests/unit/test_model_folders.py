"""Model files in the folders of other programs: found in place, by name, and nothing else."""

from __future__ import annotations

import hashlib
import os
import struct
import time
from pathlib import Path

import pytest

from vitrail.errors import ArtifactError, InputError
from vitrail.store.model_folders import Kind, find, kind_folders, knows, listing, resolve, roots
from vitrail.store.model_hashes import file_sha256, lora_hash, model_hash
from vitrail.tasks.loading import checkpoint_place


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """vitrail's home, empty, and no other folder."""
    monkeypatch.setenv("VITRAIL_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("VITRAIL_DATA", str(tmp_path / "cache"))
    monkeypatch.delenv("VITRAIL_MODEL_FOLDERS", raising=False)
    (tmp_path / "home").mkdir()
    return tmp_path / "home"


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


@pytest.fixture
def web_ui(tmp_path: Path) -> Path:
    """A1111's folder."""
    root = tmp_path / "webui"
    put(root / "models/Stable-diffusion/photo.safetensors")
    put(root / "models/Stable-diffusion/anime/drawn.ckpt")
    put(root / "models/Stable-diffusion/photo.vae.pt")
    put(root / "models/Stable-diffusion/notes.txt")
    put(root / "models/Lora/ink.safetensors")
    put(root / "models/LyCORIS/loha.safetensors")
    put(root / "models/VAE/mse.safetensors")
    put(root / "models/ESRGAN/x4.pth")
    put(root / "models/ControlNet/canny.pth")
    put(root / "extensions/sd-webui-controlnet/models/depth.safetensors")
    put(root / "embeddings/bad.pt")
    return root


@pytest.fixture
def comfy(tmp_path: Path) -> Path:
    """ComfyUI's folder."""
    root = tmp_path / "comfy"
    put(root / "models/checkpoints/xl/base.safetensors")
    put(root / "models/loras/ink.safetensors")
    put(root / "models/embeddings/good.safetensors")
    put(root / "models/upscale_models/x2.pth")
    put(root / "models/controlnet/pose/config.json")
    put(root / "models/controlnet/pose/diffusion_pytorch_model.safetensors")
    put(root / "models/diffusers/folder/model_index.json")
    put(root / "models/diffusers/folder/unet/diffusion_pytorch_model.safetensors")
    return root


def names(kind: Kind) -> list[str]:
    return [item.name for item in listing(kind)]


def test_folders_of_both_programs(
    home: Path, web_ui: Path, comfy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", f"{web_ui}{os.pathsep}{comfy / 'models'}")
    assert names("checkpoint") == ["anime/drawn", "folder", "photo", "xl/base"]
    assert names("lora") == ["ink", "ink", "loha"]
    assert names("vae") == ["mse", "photo.vae"]
    assert names("embedding") == ["bad", "good"]
    assert names("upscaler") == ["x2", "x4"]
    assert names("controlnet") == ["canny", "depth", "pose"]
    assert len(listing()) == 16
    assert find("checkpoint", "folder") == comfy / "models/diffusers/folder"
    assert find("controlnet", "pose") == comfy / "models/controlnet/pose"


def test_names(home: Path, web_ui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(web_ui))
    drawn = web_ui / "models/Stable-diffusion/anime/drawn.ckpt"
    for name in ("anime/drawn", "drawn", "drawn.ckpt", "Anime\\DRAWN", "drawn.ckpt [6ce0161689]", " drawn "):
        assert find("checkpoint", name) == drawn
        assert knows("checkpoint", name)
        assert checkpoint_place(name) == drawn  # and it is so that --model takes it
    assert not knows("checkpoint", "drawing")
    assert checkpoint_place("drawing.ckpt") is None
    put(web_ui / "models/Stable-diffusion/other/drawn.safetensors")
    with pytest.raises(InputError, match="several files are called") as caught:
        find("checkpoint", "drawn")
    assert "anime/drawn.ckpt, other/drawn.safetensors" in str(caught.value)
    assert find("checkpoint", "anime/drawn") == drawn
    assert find("checkpoint", "drawn.ckpt") == drawn
    assert knows("checkpoint", "drawn")
    with pytest.raises(InputError, match="there is photo"):
        find("checkpoint", "foto")
    monkeypatch.delenv("VITRAIL_MODEL_FOLDERS")
    with pytest.raises(InputError, match="VITRAIL_MODEL_FOLDERS"):
        find("checkpoint", "photo")


def test_own_folder_and_the_file(home: Path, web_ui: Path, comfy: Path, tmp_path: Path) -> None:
    put(home / "models/loras/own.safetensors")
    put(tmp_path / "single/lone.safetensors")
    (home / "model_folders.toml").write_text(
        f'folders = ["{web_ui}", "{comfy}", "/nowhere"]\n[kinds]\nlora = ["{tmp_path / "single"}"]\n'
    )
    assert roots() == [home / "models", web_ui, comfy, Path("/nowhere")]
    assert names("lora") == ["ink", "ink", "loha", "lone", "own"]
    assert [folder.name for folder in kind_folders("lora")] == ["loras", "Lora", "LyCORIS", "loras", "single"]


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("folders = 3", "list of paths"),
        ("folders = [3]", "list of paths"),
        ("folders = ['']", "list of paths"),
        ("kinds = 3", r"\[kinds\]"),
        ("[kinds]\nLora = ['x']", "Lora"),
        ("[kinds]\nlora = 'x'", "list of paths"),
        ("folder = []", "folder"),
        ("folders = [", "not TOML"),
        ("\udcff", "not TOML"),
    ],
)
def test_damaged_file(home: Path, text: str, word: str) -> None:
    (home / "model_folders.toml").write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(InputError, match=word) as caught:
        roots()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "name",
    [
        "../secret",
        "../../secret.safetensors",
        "/etc/passwd",
        "..\\secret",
        "anime/../../Lora/ink",
        "./photo",
        "C:\\secret.safetensors",
        "photo\0",
        "",
        ".",
        "..",
        "*",
        "[a-z]*",
        "~",
        "a" * 5000,
        "%2e%2e/secret",
    ],
)
def test_names_never_leave_the_folders(
    home: Path, web_ui: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(web_ui))
    put(web_ui / "models/secret.safetensors")
    put(web_ui / "secret.safetensors")
    for kind in ("checkpoint", "lora"):
        with pytest.raises(InputError) as caught:
            find(kind, name)  # type: ignore[arg-type]
        assert "\n" not in str(caught.value)
        assert len(str(caught.value)) < 500


def test_links(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Links to files and folders on other disks are followed, circles end, what is no file is left out."""
    outside = put(tmp_path / "disk/loras/far.safetensors").parent
    folder = home / "models/loras"
    folder.mkdir(parents=True)
    (folder / "there").symlink_to(outside)
    (folder / "circle").symlink_to(folder)
    (outside / "back").symlink_to(folder)
    (folder / "again.safetensors").symlink_to(outside / "far.safetensors")
    (folder / "broken.safetensors").symlink_to(tmp_path / "gone")
    (folder / "device.safetensors").symlink_to("/dev/zero")
    os.mkfifo(folder / "pipe.safetensors")
    put(folder / ".hidden.safetensors")
    start = time.process_time()
    assert names("lora") == ["again", "there/far"]
    assert time.process_time() - start < 2
    assert find("lora", "far") == folder / "there/far.safetensors"
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(tmp_path / "disk"))
    assert names("lora") == ["again", "back/again", "far", "there/far"]  # each folder of programs on its own
    assert find("lora", "far").samefile(outside / "far.safetensors")


def test_unreadable_folders_hide_nothing(home: Path) -> None:
    put(home / "models/loras/a/one.safetensors")
    put(home / "models/loras/b/two.safetensors")
    (home / "models/loras/a").chmod(0)
    try:
        assert "b/two" in names("lora")
    finally:
        (home / "models/loras/a").chmod(0o755)


def test_resolve_takes_paths(home: Path, web_ui: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITRAIL_MODEL_FOLDERS", str(web_ui))
    ink = web_ui / "models/Lora/ink.safetensors"
    assert resolve("lora", str(ink)) == ink
    assert resolve("lora", ink) == ink
    assert resolve("lora", "ink") == ink
    for wrong in (web_ui / "models/Lora/none.safetensors", "none.safetensors", "a\0b", "x/" * 3000):
        with pytest.raises(InputError):
            resolve("lora", wrong)


def safetensors(header: bytes, body: bytes) -> bytes:
    return struct.pack("<Q", len(header)) + header + body


def test_hashes(home: Path, tmp_path: Path) -> None:
    body = os.urandom(1000)
    one = put(tmp_path / "one.safetensors", safetensors(b'{"a":1}', body))
    two = put(tmp_path / "two.safetensors", safetensors(b'{"other":"header"}', body))
    assert model_hash(one) == hashlib.sha256(one.read_bytes()).hexdigest()[:10]
    assert model_hash(one) != model_hash(two)
    assert lora_hash(one) == lora_hash(two) == hashlib.sha256(body).hexdigest()[:12]
    torch_file = put(tmp_path / "three.pt", body)
    assert lora_hash(torch_file) == hashlib.sha256(body).hexdigest()[:12]
    with pytest.raises(ArtifactError, match="damaged"):
        lora_hash(put(tmp_path / "cut.safetensors", struct.pack("<Q", 1 << 62) + b"{}"))
    with pytest.raises(ArtifactError, match="cannot read"):
        model_hash(tmp_path / "none")


def test_hashes_are_remembered_until_the_file_changes(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = put(tmp_path / "m.ckpt", b"first")
    first = file_sha256(file)
    memory = tmp_path / "cache/hashes.json"
    with monkeypatch.context() as patch:
        patch.setattr("vitrail.store.model_hashes.sha256_of", lambda path: pytest.fail("read again"))
        assert file_sha256(file) == first
    os.utime(put(file, b"other"), ns=(1, 1))
    assert file_sha256(file) == hashlib.sha256(b"other").hexdigest()
    for damage in (b"", b"[]", b'{"file:x": 3}', b"[" * 100_000, b"\xff"):
        memory.write_bytes(damage)
        assert file_sha256(file) == hashlib.sha256(b"other").hexdigest()
