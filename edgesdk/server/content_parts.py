"""The parts of a message's content, as OpenAI's API has them."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

STRICT = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class TextPart(BaseModel):
    """Words."""

    model_config = STRICT

    type: Literal["text"]
    text: str


class ImageUrl(BaseModel):
    """Where a picture is: an address, or its bytes as a data URL."""

    model_config = STRICT

    url: Annotated[str, Field(min_length=1)]
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(BaseModel):
    """A picture."""

    model_config = STRICT

    type: Literal["image_url"]
    image_url: ImageUrl


class InputAudio(BaseModel):
    """A sound, in base64."""

    model_config = STRICT

    data: Annotated[str, Field(min_length=1)]
    format: str


class AudioPart(BaseModel):
    """A sound."""

    model_config = STRICT

    type: Literal["input_audio"]
    input_audio: InputAudio


class InputFile(BaseModel):
    """A file: its bytes as a data URL, or what the cloud calls it."""

    model_config = STRICT

    file_data: str | None = None
    file_id: str | None = None
    filename: str | None = None


class FilePart(BaseModel):
    """A file."""

    model_config = STRICT

    type: Literal["file"]
    file: InputFile


ContentPart = Annotated[TextPart | ImagePart | AudioPart | FilePart, Field(discriminator="type")]
# Told apart beforehand, so that an error is about what was sent; the tags are in its path.
TEXT_TAG, PARTS_TAG = "words", "parts"
Content = Annotated[
    Annotated[str, Tag(TEXT_TAG)] | Annotated[list[ContentPart], Tag(PARTS_TAG)],
    Discriminator(lambda content: PARTS_TAG if isinstance(content, list) else TEXT_TAG),
]


def as_sent(part: TextPart | ImagePart | AudioPart | FilePart) -> dict[str, Any]:
    """The part as it came."""
    return part.model_dump(exclude_none=True)
