"""The native API's pictures: list, search, look at, mark and delete. A picture is known by an opaque id."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query, Response
from pydantic import AwareDatetime, Field

from vitrail.errors import InputError
from vitrail.request_fields import Model
from vitrail.serving.http_errors import NotFoundError, documented
from vitrail.serving.http_models import ModelInfo, Shelf
from vitrail.store.gallery import Gallery, Picture, PictureFileError

__all__ = ["PictureAnswer", "PicturesAnswer", "model_router", "picture_router", "there"]

_FOREVER = "private, max-age=31536000, immutable"  # a picture never changes, nor is an id used again
Filter = Annotated[str | None, Query(max_length=400)]


class PictureAnswer(Model):
    """A picture of the gallery."""

    id: str = Field(description="Opaque; never a path.")
    job: str
    kind: str
    model: str
    style: str | None
    prompt: str
    seed: int
    width: int
    height: int
    favourite: bool
    created: AwareDatetime
    media_type: str
    bytes: int
    sha256: str
    lost: bool = Field(description="Its file is gone.")
    record: dict[str, Any] = Field(description="How it was made: the request with every setting filled in.")


class PicturesAnswer(Model):
    """Pictures, the newest first."""

    pictures: tuple[PictureAnswer, ...]
    next: str | None = Field(description="Give it as before for the ones behind these.")


class FavouriteBody(Model):
    """Whether a picture is a favourite."""

    favourite: bool


class Deleted(Model):
    """The picture that is gone."""

    deleted: str


def answer_of(picture: Picture) -> PictureAnswer:
    """``picture`` as it is answered."""
    own = {name: getattr(picture, name) for name in PictureAnswer.model_fields if name != "record"}
    return PictureAnswer.model_construct(**own, record=picture.record.model_dump(mode="json"))


def picture_router(gallery: Gallery) -> APIRouter:
    """The routes under ``/api/pictures``."""
    router = APIRouter(prefix="/api/pictures", tags=["pictures"])

    @router.get("", response_model=PicturesAnswer, responses=documented())
    def listed(
        query: Annotated[
            str | None, Query(max_length=400, description="Words of the prompt, English or Chinese.")
        ] = None,
        model: Filter = None,
        kind: Filter = None,
        style: Filter = None,
        favourite: bool | None = None,
        job: Annotated[str | None, Query(max_length=80)] = None,
        before: Annotated[str | None, Query(max_length=80, description="next of the page before.")] = None,
        limit: Annotated[int, Query(ge=1, le=500)] = 60,
    ) -> PicturesAnswer:
        """Pictures that fit all of what is given, the newest first."""
        page = gallery.page(
            query=query,
            model=model,
            kind=kind,
            style=style,
            favourite=favourite,
            job=job,
            before=before,
            limit=limit,
        )
        return PicturesAnswer.model_construct(
            pictures=tuple(answer_of(picture) for picture in page.pictures), next=page.next
        )

    @router.get("/{id}", response_model=PictureAnswer, responses=documented())
    def picture(id: str) -> PictureAnswer:
        """What is known of a picture."""
        with there():
            return answer_of(gallery.get(id))

    @router.get("/{id}/file", response_class=Response, responses=_pictures("The file, as it was saved."))
    def file(id: str, if_none_match: Annotated[str | None, Header(max_length=100)] = None) -> Response:
        """The picture itself, with its settings inside."""
        with there():
            found = gallery.file(id)
        tag = f'"{found.sha256[:32]}"'
        headers = {
            "ETag": tag,
            "Cache-Control": _FOREVER,
            "Content-Disposition": f'inline; filename="vitrail-{found.id[:8]}{found.suffix}"',
        }
        if if_none_match == tag:
            return Response(status_code=304, headers=headers)
        with there():
            data = gallery.open(found)
        return Response(data, media_type=found.media_type, headers=headers)

    @router.get(
        "/{id}/thumbnail", response_class=Response, responses=_pictures("A small WebP.", "image/webp")
    )
    def thumbnail(id: str, side: Annotated[int, Query(ge=16, le=1024)] = 256) -> Response:
        """The picture, at most ``side`` pixels a side."""
        with there():
            data = gallery.thumbnail(id, side)
        return Response(data, media_type="image/webp", headers={"Cache-Control": _FOREVER})

    @router.post("/{id}/favourite", response_model=PictureAnswer, responses=documented(415))
    def mark(id: str, body: FavouriteBody) -> PictureAnswer:
        """Mark a picture as a favourite, or take the mark away."""
        with there():
            return answer_of(gallery.set_favourite(id, body.favourite))

    @router.delete("/{id}", response_model=Deleted, responses=documented(415))
    def delete(id: str) -> Deleted:
        """Remove a picture and its record for good."""
        with there():
            gallery.delete(id)
        return Deleted(deleted=id)

    return router


@contextlib.contextmanager
def there() -> Iterator[None]:
    """A picture that nobody knows is not there, nor is a file that is gone; the disk is well."""
    try:
        yield
    except (InputError, PictureFileError) as error:
        raise NotFoundError(str(error)) from error


def _pictures(what: str, *kinds: str) -> dict[int | str, dict[str, Any]]:
    any_of = kinds or ("image/png", "image/jpeg", "image/webp")
    content = {kind: {"schema": {"type": "string", "format": "binary"}} for kind in any_of}
    return {**documented(), 200: {"content": content, "description": what}}


def model_router(shelf: Shelf) -> APIRouter:
    """The route ``/api/models``."""
    router = APIRouter(prefix="/api/models", tags=["models"])

    @router.get("", response_model=list[ModelInfo], responses=documented())
    def models() -> list[ModelInfo]:
        """Models on this machine that can be named in a request."""
        return shelf.models()

    return router
