"""Upload a model folder to the Hub."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NamedTuple

from cdrl_infer.errors import CheckpointError, InputError, NetworkError, listing, printable, shown
from cdrl_infer.storage.folder import CARD, OF_WEIGHTS, model_files
from cdrl_infer.storage.hub.client import Target, Token, is_repo_id, within
from cdrl_infer.storage.hub.download import WEIGHTS, file_sizes
from cdrl_infer.storage.hub.explain import explained
from cdrl_infer.storage.weights import VARIANTS
from cdrl_infer.untrusted import inside

_log = logging.getLogger(__name__)


class Pushed(NamedTuple):
    """The result of an upload."""

    url: str  # of the commit or the pull request
    commit: str  # 40 hexadecimal digits
    files: tuple[str, ...]  # names of the files that were sent
    card_kept: bool  # whether the repository had a README.md that was left alone


def variants(folder: str | os.PathLike[str]) -> list[str | None]:
    """The variants of the weights in a model folder; None, the plain weights, comes first.

    Raises:
        CheckpointError: there are no weights.
    """
    found = {m["variant"] for m in map(WEIGHTS.fullmatch, file_sizes(Path(folder))) if m}
    if not found:
        raise CheckpointError(f"{folder}: expected a model folder, found no weights in it")
    return sorted(found, key=lambda variant: variant or "")


def push(
    folder: str | os.PathLike[str],
    repo_id: str,
    *,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    create_pr: bool = False,
    commit_message: str | None = None,
    overwrite_card: bool = False,
) -> Pushed:
    """Upload a model folder in one commit; the repository is created if it does not exist.

    A failed upload leaves the files of the repository unchanged. Other files in the repository stay,
    except reference statistics that belong to other weights.

    Args:
        folder: as `cdrl_infer.storage.folder.save_model` writes it. Only files of a model are sent.
        repo_id: ``user/model``.
        private: whether a created repository is private; None is the account's default. True is
            refused if the repository exists and is public.
        token: with the right to write; by default the one of `hf auth login`.
        revision: the branch, created if it does not exist; None is "main".
        create_pr: open a pull request instead of committing to the branch.
        commit_message: by default "Upload a CDRL model".
        overwrite_card: replace a README.md that the repository has already.

    Raises:
        CheckpointError: the Hub refused; the text says why and what to do.
        NetworkError: the Hub cannot be reached, or the connection broke.
        InputError: an argument is invalid.
    """
    check_push(repo_id, revision=revision, create_pr=create_pr)
    folder = Path(folder)
    names = _names_to_push(folder)
    target = Target(repo_id, revision or "main", token, writing=True)
    try:
        make_repository(repo_id, private=private, token=token)
        with explained(target), _branch(target) as present:
            card_kept = CARD in present and CARD in names and not overwrite_card
            if card_kept:
                names.remove(CARD)
            for stale in sorted(filter(WEIGHTS.fullmatch, present - set(names))):
                _log.warning(
                    "%s stays in %s: this upload does not replace it", shown(stale), repo_id
                )
            old = {*OF_WEIGHTS} & present - set(names)
            for name in old:
                _log.warning("%s is removed from %s: it belongs to other weights", name, repo_id)
            api, size = target.api(), sum((folder / name).stat().st_size for name in names)
            made = within(
                lambda: api.upload_folder(
                    repo_id=repo_id,
                    folder_path=folder,
                    allow_patterns=names,
                    delete_patterns=[*old],
                    commit_message=commit_message or "Upload a CDRL model",
                    revision=revision,
                    create_pr=create_pr,
                ),
                size,
            )
    except NetworkError as error:
        raise NetworkError(
            f"{error}; an upload is one commit, so {repo_id} has all of the files or none; upload again "
            "to go on, files that arrived are not sent twice"
        ) from error
    except CheckpointError as error:
        raise CheckpointError(
            f"{error}; an upload is one commit, so the files of {repo_id} are unchanged"
        ) from error
    url = printable(str(made.pr_url or made.commit_url))
    return Pushed(url, printable(str(made.oid)), tuple(names), card_kept)


def check_push(repo_id: str, *, revision: str | None = None, create_pr: bool = False) -> None:
    """Raise `InputError` for an upload that no repository could accept."""
    if not is_repo_id(repo_id):
        raise InputError(f"expected the name of a repository, user/model, got {repo_id!r}")
    if create_pr and revision not in (None, "main"):
        raise InputError(
            f"a pull request is made against main, got revision {revision!r}; leave one of them out"
        )


def make_repository(repo_id: str, *, private: bool | None = None, token: Token = None) -> None:
    """Create a repository unless it exists; raises the errors of `push`."""
    check_push(repo_id)
    target = Target(repo_id, token=token, writing=True)
    with explained(target):
        within(lambda: target.api().create_repo(repo_id, private=private, exist_ok=True))
        public = private and not within(target.info).private
    if public:
        raise InputError(
            f"{repo_id} exists and is public, but private was asked; make it private in its settings "
            "on the Hub, or name another repository"
        )


@contextmanager
def _branch(target: Target) -> Iterator[set[str]]:
    """The names of a branch's files. A branch created for the block is deleted if the block fails."""
    from huggingface_hub.errors import RevisionNotFoundError

    made = False
    try:
        info = within(target.info)
    except RevisionNotFoundError:
        within(lambda: target.api().create_branch(target.repo_id, branch=target.revision))
        made = True
        info = within(target.info)
    try:
        yield {sibling.rfilename for sibling in info.siblings or ()}
    except BaseException:
        if made:
            with suppress(Exception):  # the block's error says more
                remove = target.api().delete_branch
                within(lambda: remove(target.repo_id, branch=target.revision), seconds=5)
        raise


def _names_to_push(folder: Path) -> list[str]:
    """The files of a model folder, in all its variants; other files in it are not sent.

    Raises:
        CheckpointError: not a model folder, or a link leads out of it.
    """
    if not (folder / "config.json").is_file():
        raise CheckpointError(f"{folder}: expected a model folder, found no config.json in it")
    names = sorted(file_sizes(folder))
    known = {name for variant in VARIANTS for name in model_files(variant)}
    sent = [name for name in names if name in known]
    for name in sent:
        inside(folder, name)
    if left := [name for name in names if name not in known]:
        _log.warning("not sent, because they are not files of a model: %s", listing(left))
    return sent
