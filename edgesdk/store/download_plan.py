"""Plan a download: the files that make up a model, and where each one comes from.

A plan comes from the catalog (models that edgesdk knows by name), from a Hugging Face repository,
or from a reference to one file.
"""

from __future__ import annotations

import fnmatch
import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import PurePosixPath
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from edgesdk.bundle.manifest import MANIFEST_NAME, Sha256
from edgesdk.errors import DownloadFailed, StoreError, UnknownModel
from edgesdk.store.reference import (
    CatalogReference,
    HubReference,
    Reference,
    UrlReference,
    WheelReference,
    parse_reference,
    safe_file_name,
)
from edgesdk.system.checks import suggestion

# Weights that can hold code when they are read (pickle: *.bin, *.pt) are left out on purpose.
_CHECKPOINT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "*.jinja"),
    *("LICENSE*", "LICENCE*"),
    # How sentence-transformers makes vectors.
    *("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"),
)
_POOLING = "*_Pooling/config.json"


@dataclass(frozen=True)
class UrlPart:
    """Bytes at an address.

    Attributes:
        hash_known: whether their hash is known beforehand, so that a resume which went wrong would
            be found out; only then is one tried at a server that does not name versions.
        headers: may hold a token, so they stay out of the repr.
    """

    url: str
    hash_known: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


# Of a wheel it is one member; exactly one must fit the pattern.
DownloadPart = UrlPart | WheelReference


@dataclass(frozen=True)
class PlannedFile:
    """A file to be made. `name` is a relative POSIX path; size in bytes and hash where known."""

    name: str
    parts: tuple[DownloadPart, ...]
    size: int | None = None
    sha256: str | None = None

    def __post_init__(self) -> None:
        path = PurePosixPath(self.name)
        if path.is_absolute() or ".." in path.parts or "\\" in self.name or not path.name:
            raise StoreError(
                f"The source lists a file {self.name!r}, which lies outside the model.",
                hint="Do not trust this source.",
            )


@dataclass(frozen=True)
class DownloadPlan:
    """All files of a model. `source` says for good where they are from (a commit, a version)."""

    source: str
    files: tuple[PlannedFile, ...]
    licence: str | None = None

    def __post_init__(self) -> None:
        names = [file.name for file in self.files]
        if len(set(names)) != len(names):
            raise StoreError(
                f"{self.source} has files whose names differ only in odd characters.",
                hint="Download it yourself, rename them, and pull the folder's path.",
            )


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class CatalogFile(_Row):
    """A file of a known model: the concatenation of its parts, each a pypi: or https:// text."""

    name: str
    size: Annotated[int, Field(gt=0)]
    sha256: Sha256
    parts: Annotated[tuple[str, ...], Field(min_length=1)]


class CatalogModel(_Row):
    """A known model."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,95}$")]
    summary: str
    licence: str
    files: Annotated[tuple[CatalogFile, ...], Field(min_length=1)]

    @property
    def size(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @functools.cached_property
    def plan(self) -> DownloadPlan:
        """What must be fetched for it."""
        texts = [part for file in self.files for part in file.parts]
        return DownloadPlan(
            source=texts[0] if len(texts) == 1 else f"{texts[0]} and {len(texts) - 1} more",
            files=tuple(
                PlannedFile(
                    file.name,
                    tuple(_download_part(parse_reference(part)) for part in file.parts),
                    size=file.size,
                    sha256=file.sha256,
                )
                for file in self.files
            ),
            licence=self.licence,
        )


class _Catalog(_Row):
    format_version: Literal[1]
    models: tuple[CatalogModel, ...]


def plan_download(
    reference: CatalogReference | HubReference | UrlReference | WheelReference,
) -> DownloadPlan:
    """Plan what a reference means; nothing is downloaded yet.

    Raises:
        UnknownModel: the catalog or the hub does not have it.
        DownloadFailed: the hub does not answer, or has no files that fit.
    """
    if isinstance(reference, CatalogReference):
        return find_in_catalog(reference.name).plan
    if isinstance(reference, HubReference):
        return plan_from_hub(reference)
    return plan_single_file(reference)


def parse_catalog(text: str | bytes) -> Mapping[str, CatalogModel]:
    """Read a catalog, by name.

    Raises:
        ValueError: it is not a catalog (pydantic's error says where), names a model twice, or has
            a part that is neither pypi: nor https://.
    """
    rows = _Catalog.model_validate(json.loads(text)).models
    models = {row.name: row for row in rows}
    if len(models) != len(rows):
        raise ValueError("the catalog names a model twice")
    for model in rows:
        _ = model.plan  # A part of another kind is found here.
    return models


@functools.cache
def catalog() -> Mapping[str, CatalogModel]:
    """The catalog that came with this edgesdk."""
    text = resources.files("edgesdk.store").joinpath("catalog.json").read_bytes()
    return parse_catalog(text)


def find_in_catalog(name: str) -> CatalogModel:
    """The catalog's model of that name."""
    known = catalog()
    model = known.get(name)
    if model is None:
        raise UnknownModel(
            f"The catalog has no model {name!r}.",
            hint=suggestion(name, known) or "List them with: edgesdk list --available",
        )
    return model


def plan_from_hub(reference: HubReference) -> DownloadPlan:
    """Ask the hub what the repository holds; nothing is downloaded yet.

    huggingface_hub knows the endpoint and the token. Its own download is not used: it drops what it
    has of a file when it is killed, where ours goes on.

    Raises:
        UnknownModel: there is no such repository or revision, or it is private.
        DownloadFailed: the hub cannot be reached, or wants a login.
    """
    from huggingface_hub import HfApi, get_token, hf_hub_url
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    repository = reference.repository
    try:
        info = HfApi().model_info(repository, revision=reference.revision, files_metadata=True)
    except GatedRepoError as error:
        raise DownloadFailed(
            f"{repository} is gated: its terms must be accepted first.",
            hint=f"Accept them at https://huggingface.co/{repository}, then run: hf auth login",
        ) from error
    except RevisionNotFoundError as error:
        raise UnknownModel(
            f"{repository} has no revision {reference.revision!r}.", hint="Try it without one."
        ) from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise UnknownModel(
            f"Hugging Face has no repository {repository!r} that you may read.",
            hint="Check the spelling; for a private one, run: hf auth login",
        ) from error
    except Exception as error:
        # The rest are errors of the HTTP library below the hub's, which its versions differ in.
        raise DownloadFailed(
            f"The hub does not answer about {repository}: {error}.", hint="Check the network."
        ) from error

    files = {sibling.rfilename: sibling for sibling in info.siblings or ()}
    chosen = choose_checkpoint_files(files, reference.patterns, where=f"hf:{repository}")
    token = get_token()
    headers = () if token is None else (("Authorization", f"Bearer {token}"),)
    card = info.card_data
    licence = card.get("license") if card is not None else None
    return DownloadPlan(
        source=str(HubReference(repository, info.sha, reference.patterns)),
        licence=licence if isinstance(licence, str) else None,
        files=tuple(
            PlannedFile(
                safe_file_name(name),
                (
                    UrlPart(
                        hf_hub_url(repository, name, revision=info.sha), lfs is not None, headers
                    ),
                ),
                size=files[name].size,
                sha256=None if lfs is None else lfs.sha256,
            )
            for name, lfs in ((name, files[name].lfs) for name in chosen)
        ),
    )


def plan_single_file(reference: WheelReference | UrlReference) -> DownloadPlan:
    """The plan for a reference that means one file."""
    if isinstance(reference, UrlReference):
        name, sha256 = reference.file_name, reference.sha256
    else:
        member = PurePosixPath(reference.member).name
        name, sha256 = member, None
        if reference.is_pattern:
            name = f"{reference.default_name}{PurePosixPath(member).suffix}"
    file = PlannedFile(safe_file_name(name), (_download_part(reference),), sha256=sha256)
    return DownloadPlan(source=str(reference), files=(file,))


def choose_checkpoint_files(
    names: Iterable[str], patterns: Sequence[str], *, where: str
) -> list[str]:
    """Choose among `names` (relative POSIX paths), in name order.

    With patterns: the files that fit one. Without: all files of a bundle; or the safetensors with
    their configuration and tokenizer; or the only GGUF file.

    Raises:
        DownloadFailed: nothing fits, or there are several GGUF files to choose from.
    """
    present = sorted(names)
    if patterns:
        chosen = [n for n in present if any(fnmatch.fnmatchcase(n, p) for p in patterns)]
        if not chosen:
            raise DownloadFailed(
                f"No file of {where} fits {', '.join(patterns)}.", hint=_listing(present)
            )
        return chosen
    top = [name for name in present if "/" not in name]
    if MANIFEST_NAME in top:
        return present
    if any(name.endswith(".safetensors") for name in top):
        kept = [n for n in top if any(fnmatch.fnmatchcase(n, p) for p in _CHECKPOINT)]
        return [*kept, *fnmatch.filter(present, _POOLING)]
    ggufs = [name for name in present if name.endswith(".gguf")]
    if len(ggufs) == 1:
        return ggufs
    if ggufs:
        raise DownloadFailed(
            f"{where} has {len(ggufs)} GGUF files.", hint=f"Name one. {_listing(ggufs)}"
        )
    raise DownloadFailed(
        f"{where} has no safetensors and no GGUF file at its top level.", hint=_listing(present)
    )


def _download_part(reference: Reference) -> DownloadPart:
    """The part that a reference to a single file means."""
    if isinstance(reference, UrlReference):
        return UrlPart(reference.url, hash_known=reference.sha256 is not None)
    if isinstance(reference, WheelReference):
        return reference
    raise ValueError(f"{reference} is neither pypi: nor https://")


def _listing(names: list[str]) -> str:
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"It has: {', '.join(names[:12]) or 'no files'}{more}."
