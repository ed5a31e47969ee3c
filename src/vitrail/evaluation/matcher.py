"""The judge: a small network that tells which caption a picture belongs to.

It is used only for measuring. It shares nothing with the generator: its own picture tower, its own text tower
over its own table of words, its own training (:mod:`vitrail.evaluation.matcher_training`), and no gradient or
choice of the generator ever comes from it ("never judge with the network that trained the model").

Two towers meet in one space, as in CLIP (Radford et al., arXiv:2103.00020, section 2.3)::

    picture (B,3,64,64) -> unshuffle 4 -> residual convolutions at 16, 8, 4 -> mean and layout -> (B, E),
    length 1 caption -> words -> two transformer layers over (word + place) -> mean over words         -> (B,
    E), length 1

The order of words is seen, because "a cat left of a dog" and "a dog left of a cat" are different pictures.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional

from vitrail.errors import ArtifactError, InputError

__all__ = ["Matcher", "MatcherNetwork", "MatcherSettings", "Vocabulary", "words_of"]

FORMAT = "vitrail-matcher-2"
PADDING, UNKNOWN = 0, 1
_WORD = re.compile(r"[a-z0-9]+")


def words_of(caption: str) -> list[str]:
    """Split a caption into lower-case words; punctuation parts words and is dropped."""
    return _WORD.findall(caption.lower().replace("’", "").replace("'", ""))


class Vocabulary:
    """The words a matcher knows; every other word is read as one unknown word.

    ``words`` are the known words in order; indices 0 and 1 are padding and the unknown word.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = list(words)
        self._index = {word: number for number, word in enumerate(self.words, start=2)}

    @classmethod
    def of(cls, captions: Iterable[str]) -> Vocabulary:
        """Collect the words of ``captions``, alphabetically, so that the order of captions is no matter."""
        return cls(sorted({word for caption in captions for word in words_of(caption)}))

    def __len__(self) -> int:
        return len(self.words) + 2

    def encode(self, captions: Sequence[str], length: int) -> Tensor:
        """Return word numbers (B, T) int64, T <= ``length`` and no longer than needed; 0 is padding.

        A caption without a single word becomes one unknown word, so that every row has something to average.
        """
        rows = [[self._index.get(w, UNKNOWN) for w in words_of(c)[:length]] or [UNKNOWN] for c in captions]
        width = max((len(row) for row in rows), default=1)
        return torch.tensor([row + [PADDING] * (width - len(row)) for row in rows], dtype=torch.long)


@dataclass(frozen=True)
class MatcherSettings:
    """Sizes of the two towers and length of the training; the judge's identity together with its data.

    image_size: side of the square pictures in pixels. widths, blocks: channels and residual blocks at S/4,
    S/8, S/16. layout: channels kept with their place when the last grid is flattened. word_width, word_depth,
    word_heads, max_words: the text tower. embedding: length of the common vector. pictures: how many pictures
    the training sees. batch, peak_rate, weight_decay, seed: its schedule.
    """

    image_size: int = 64
    widths: tuple[int, int, int] = (64, 128, 256)
    blocks: tuple[int, int, int] = (2, 2, 2)
    layout: int = 32
    word_width: int = 160
    word_depth: int = 2
    word_heads: int = 4
    max_words: int = 20
    embedding: int = 192
    pictures: int = 200_000
    batch: int = 256
    peak_rate: float = 2e-3
    weight_decay: float = 0.05
    seed: int = 20_251

    def digest(self, data_hash: str) -> str:
        """Return 16 hexadecimal digits that name the matcher of these settings and this data."""
        body = json.dumps([FORMAT, dataclasses.asdict(self), data_hash], sort_keys=True)
        return hashlib.sha256(body.encode()).hexdigest()[:16]


class _Residual(nn.Module):
    """Two 3x3 convolutions, batch normalisation and a shortcut (He et al., arXiv:1512.03385, figure 5)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        nn.init.zeros_(self.norm2.weight)
        self.shortcut = (
            nn.Identity()
            if inputs == outputs and stride == 1
            else nn.Conv2d(inputs, outputs, 1, stride, bias=False)
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = functional.relu(self.norm1(self.conv1(x)))
        return functional.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


class _PictureTower(nn.Module):
    def __init__(self, settings: MatcherSettings) -> None:
        super().__init__()
        first, _, last = settings.widths
        self.enter = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, first, 3, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
        )
        stages: list[nn.Module] = []
        inputs = first
        for number, (width, count) in enumerate(zip(settings.widths, settings.blocks, strict=True)):
            blocks: list[nn.Module] = []
            for block in range(count):
                blocks.append(_Residual(inputs, width, 2 if number > 0 and block == 0 else 1))
                inputs = width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.layout = nn.Conv2d(last, settings.layout, 1)
        grid = settings.image_size // 16
        self.dropout = nn.Dropout(0.1)
        self.out = nn.Linear(last + settings.layout * grid * grid, settings.embedding)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        hidden = self.enter(x)
        maps: list[Tensor] = []
        for stage in self.stages:
            hidden = stage(hidden)
            maps.append(hidden)
        pooled = torch.cat([hidden.mean((2, 3)), self.layout(hidden).flatten(1)], dim=1)
        # Features for comparing pictures, not for naming them: two depths, in a 2 x 2 layout, each of length
        # 1.
        features = [
            functional.normalize(functional.adaptive_avg_pool2d(m.float(), 2).flatten(1)) for m in maps[1:]
        ]
        return self.out(self.dropout(pooled)), torch.cat(features, dim=1)


class _TextTower(nn.Module):
    def __init__(self, settings: MatcherSettings, words: int) -> None:
        super().__init__()
        width = settings.word_width
        self.words = nn.Embedding(words, width, padding_idx=PADDING)
        self.places = nn.Parameter(torch.randn(settings.max_words, width) * 0.25)
        nn.init.normal_(self.words.weight, std=0.5)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width,
                settings.word_heads,
                2 * width,
                dropout=0.1,
                activation="gelu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(settings.word_depth)
        )
        self.norm = nn.LayerNorm(width)
        self.out = nn.Linear(width, settings.embedding)

    def forward(self, numbers: Tensor) -> Tensor:
        padding = numbers == PADDING
        x = self.words(numbers) + self.places[: numbers.shape[1]]
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        weights = (~padding)[:, :, None].to(x.dtype)
        pooled = (self.norm(x) * weights).sum(1) / weights.sum(1)
        result: Tensor = self.out(pooled)
        return result


class MatcherNetwork(nn.Module):
    """Picture tower, text tower and the learned temperature of :class:`Matcher`.

    ``pictures`` (B, 3, S, S) in [-1, 1] -> (embedding (B, E) of length 1, features (B, F) for distances);
    ``captions`` word numbers (B, T) -> embedding (B, E) of length 1; ``scale``: factor on cosines before a
    softmax.
    """

    def __init__(self, settings: MatcherSettings, words: int) -> None:
        super().__init__()
        if settings.image_size % 16:
            raise InputError(
                f"image_size {settings.image_size} must be a multiple of 16; choose 32, 48, 64 or 96"
            )
        self.picture_tower = _PictureTower(settings)
        self.text_tower = _TextTower(settings, words)
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def pictures(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding, features = self.picture_tower(pixels.to(memory_format=torch.channels_last))
        return functional.normalize(embedding.float()), features

    def captions(self, numbers: Tensor) -> Tensor:
        return functional.normalize(self.text_tower(numbers).float())

    @property
    def scale(self) -> Tensor:
        return self.log_scale.clamp(max=4.0).exp()


def _placements(pixels: Tensor) -> list[Tensor]:
    """Return (N, 3, H, W) pictures as they are, and moved by 4 % to the four corners; edges are repeated."""
    if pixels.ndim != 4:
        return [pixels]  # refused by the caller, with the shape that was given
    height, width = pixels.shape[-2:]
    dy, dx = max(1, round(0.04 * height)), max(1, round(0.04 * width))
    padded = functional.pad(pixels.float(), (dx, dx, dy, dy), mode="replicate")
    corners = [(top, left) for top in (0, 2 * dy) for left in (0, 2 * dx)]
    return [pixels, *(padded[:, :, top : top + height, left : left + width] for top, left in corners)]


class Matcher:
    """A trained judge. Build one with ``train_matcher`` or read one with :meth:`load`.

    ``data_hash`` names the data it was trained on and ``settings`` how; ``name`` is the digest of both.
    """

    def __init__(
        self, settings: MatcherSettings, vocabulary: Vocabulary, network: MatcherNetwork, data_hash: str
    ) -> None:
        self.settings = settings
        self.vocabulary = vocabulary
        self.network = network.eval()
        self.data_hash = data_hash

    @property
    def name(self) -> str:
        return self.settings.digest(self.data_hash)

    @torch.inference_mode()
    def _pictures(self, pixels: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        size = self.settings.image_size
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise InputError(f"pictures must be (N, 3, H, W) in [-1, 1]; got shape {tuple(pixels.shape)}")
        if not torch.isfinite(pixels).all():
            raise InputError("a picture to be judged holds NaN or infinity; check the generator's output")
        embeddings, features = [], []
        for part in torch.split(pixels.float(), batch):
            if part.shape[-2:] != (size, size):
                part = functional.interpolate(
                    part, (size, size), mode="bilinear", antialias=True, align_corners=False
                )
            embedding, feature = self.network.pictures(part.clamp(-1, 1))
            embeddings.append(embedding)
            features.append(feature)
        return torch.cat(embeddings), torch.cat(features)

    def embed_pictures(self, pixels: Tensor, batch: int = 256) -> Tensor:
        """Return the pictures' vectors (N, E) of length 1; pictures (N, 3, H, W) in [-1, 1] of any size.

        A vector is the mean over five placements of the picture, so that where exactly it stands matters
        less.

        Other sizes are resampled with antialiasing. Raises :class:`InputError` for another shape or a value
        that is not finite.
        """
        views = [self._pictures(view, batch)[0] for view in _placements(pixels)]
        return functional.normalize(torch.stack(views).mean(0))

    def features(self, pixels: Tensor, batch: int = 256) -> Tensor:
        """Return features (N, F) for distances between pictures: inner maps, which see drawing and layout."""
        return self._pictures(pixels, batch)[1]

    @torch.inference_mode()
    def embed_captions(self, captions: Sequence[str], batch: int = 1024) -> Tensor:
        """Return the captions' vectors (N, E) of length 1."""
        parts = [
            self.network.captions(
                self.vocabulary.encode(captions[start : start + batch], self.settings.max_words)
            )
            for start in range(0, len(captions), batch)
        ]
        return torch.cat(parts) if parts else torch.empty(0, self.settings.embedding)

    def unknown_words(self, caption: str) -> list[str]:
        """Return the words of ``caption`` that the judge has never read."""
        return [word for word in words_of(caption) if word not in self.vocabulary._index]

    def save(self, path: Path) -> None:
        """Write the matcher to one safetensors file, complete or not at all."""
        meta = {
            "format": FORMAT,
            "settings": json.dumps(dataclasses.asdict(self.settings)),
            "words": json.dumps(self.vocabulary.words),
            "data_hash": self.data_hash,
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        staged = path.with_name(f".{path.name}.{os.getpid()}")
        try:
            state = {name: value.contiguous() for name, value in self.network.state_dict().items()}
            save_file(state, staged, metadata=meta)
            os.replace(staged, path)
        finally:
            staged.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path) -> Matcher:
        """Read a matcher; raises :class:`ArtifactError` for a file that is missing, damaged or foreign."""
        try:
            with safe_open(path, framework="pt") as file:
                meta = file.metadata() or {}
                if meta.get("format") != FORMAT:
                    raise ArtifactError(f"{path} is not a {FORMAT} file; delete it and train the judge again")
                raw = json.loads(meta["settings"])
                raw["widths"], raw["blocks"] = tuple(raw["widths"]), tuple(raw["blocks"])
                settings = MatcherSettings(**raw)
                vocabulary = Vocabulary(json.loads(meta["words"]))
                network = MatcherNetwork(settings, len(vocabulary))
                network.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
        except (OSError, SafetensorError, KeyError, TypeError, ValueError, RuntimeError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ArtifactError(
                f"cannot read the judge {path}: {reason}; delete it and train it again"
            ) from error
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        return cls(settings, vocabulary, network, meta["data_hash"])
