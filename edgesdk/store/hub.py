"""Plan a pull from a Hugging Face repository.

huggingface_hub says what the repository holds, at which commit, and with which login; the files
then come the same way as any other, so that a resume, a full disk and a lost network are handled
in one place. Environment variables such as HF_ENDPOINT and HF_TOKEN have their usual meaning.
"""

from __future__ import annotations

from edgesdk.errors import DownloadFailed, UnknownModel
from edgesdk.store.choosing import choose_files
from edgesdk.store.names import safe_file_name
from edgesdk.store.plan import Plan, PlannedFile, UrlPart
from edgesdk.store.reference import HubReference


def plan_from_hub(reference: HubReference) -> Plan:
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
    chosen = choose_files(files, reference.patterns, where=f"hf:{repository}")
    token = get_token()
    headers = () if token is None else (("Authorization", f"Bearer {token}"),)
    card = info.card_data
    licence = card.get("license") if card is not None else None
    return Plan(
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
