"""Repositories of the Hugging Face Hub that hold a fit: the files of ``fit.save`` and a model card."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bll_pyro.archive import MANIFEST
from bll_pyro.scope import own_python_random
from bll_pyro.sharing.card import model_card

if TYPE_CHECKING:
    from bll_pyro.fitting import Fit

SCHEME = "hf://"
OURS = ("posterior-*.safetensors", "backbone-*.safetensors")  # what replaces the tensors of an earlier fit
EMPTY = {".gitattributes", "README.md"}  # of a repository that nothing was put into
ADDRESS = re.compile(r"hf://(?P<repo>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?/?")


@own_python_random()
def push(
    fit: Fit,
    repo: str,
    *,
    evaluation: Any = None,
    private: bool | None = None,
    token: str | None = None,
) -> str:
    """Put a fit and its model card into a repository, in one commit; returns its address.

    ``bll.load("hf://owner/name")`` reads it. A fit and README there are replaced, and remain in the history. A detector with
    ``KNearestNeighbours`` holds features of up to 5,000 training rows; the default one holds means of ten rows or more.

    Parameters
    ----------
    fit
        The fit.
    repo
        ``"owner/name"``; it is made where it is missing.
    evaluation
        Scores for the card, from :func:`bll_pyro.evaluate`.
    private
        Whether a new repository is; None takes the owner's setting.
    token
        A token that may write; None takes that of ``hf auth login`` or ``HF_TOKEN``.

    Raises
    ------
    ValueError
        If the hub cannot be reached or refuses, or the repository holds something else.
    """
    address = _address(f"{SCHEME}{repo}", "push_to_hub", f'"owner/name", got {repo!r}')
    if address["revision"]:
        raise ValueError(f'push_to_hub: expected "owner/name", got {repo!r} with a revision; leave it out')
    hub = _client("push_to_hub")
    api = hub.HfApi(token=token)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        fit.save(folder)  # what cannot be saved is told before anything is asked of the hub
        (folder / "README.md").write_text(model_card(fit, repo, evaluation), encoding="utf-8")
        with _told(repo, "push_to_hub"):
            api.create_repo(repo, private=private, exist_ok=True)
            there = set(api.list_repo_files(repo))
            if MANIFEST not in there and there - EMPTY:
                raise ValueError(
                    f"push_to_hub: expected an empty repository or one with a fit, got {repo} with {sorted(there - EMPTY)[0]}; "
                    "choose another name"
                )
            done = api.upload_folder(
                repo_id=repo,
                folder_path=folder,
                commit_message="Upload a Bayesian last layer",
                delete_patterns=list(OURS),
            )
    return str(done.commit_url)


@own_python_random()
def downloaded(address: str, *, head_only: bool = False) -> Path:
    """The folder with the fit of an address ``hf://owner/name`` or ``hf://owner/name@revision``, in the cache of the hub's client.

    A branch or no revision asks the hub for the newest commit. Without a network it is what is in the cache.
    """
    found = _address(
        address,
        "load",
        f'"hf://owner/name" or "hf://owner/name@revision" with a branch, tag or commit, got {address!r}',
    )
    hub = _client("load")
    with _told(found["repo"], "load"):
        return Path(
            hub.snapshot_download(
                found["repo"],
                revision=found["revision"],
                allow_patterns=[MANIFEST, OURS[0]] if head_only else [MANIFEST, *OURS],
            )
        )


def _address(address: str, owner: str, expected: str) -> dict[str, Any]:
    found = ADDRESS.fullmatch(address)
    if found is None:
        raise ValueError(f"{owner}: expected {expected}; correct the name")
    return found.groupdict()


def _client(owner: str) -> Any:
    try:
        return import_module("huggingface_hub")
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{owner}: expected the package huggingface-hub, got none: pip install 'bll-pyro[hub]'",
            name=error.name,
        ) from error


@contextmanager
def _told(repo: str, owner: str) -> Iterator[None]:
    """Errors of the client in our words: what is missing, and what to do."""
    from huggingface_hub import constants, errors

    log_in = "log in with `hf auth login`, or set HF_TOKEN"
    where = f"{constants.ENDPOINT}/{repo}"
    try:
        yield
    except errors.GatedRepoError as error:
        said = f"access to {where}, got a gated repository; accept its terms there, and {log_in}"
        raise ValueError(f"{owner}: expected {said}") from error
    except errors.RepositoryNotFoundError as error:
        said = f"a repository {where} that this account may see, got none; check the name, or {log_in}"
        raise ValueError(f"{owner}: expected {said}") from error
    except errors.RevisionNotFoundError as error:
        raise ValueError(
            f"{owner}: expected a branch, tag or commit of {where}, got another name; see its history there"
        ) from error
    except errors.HfHubHTTPError as error:
        status = error.response.status_code
        remedy = log_in if status in (401, 403) else "try again later"
        raise ValueError(
            f"{owner}: expected {where} to do what was asked, got status {status}: {str(error).splitlines()[0]}; {remedy}"
        ) from error
    except (OSError, errors.HTTPError) as error:
        raise ValueError(
            f"{owner}: expected to reach {where}, got {type(error).__name__}: {error}; check the network and HF_HUB_OFFLINE, or "
            "use a folder that fit.save wrote"
        ) from error
