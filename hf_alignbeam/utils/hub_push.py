"""Folders pushed to the Hub in a single commit: all of a folder arrives, or nothing.

Knows repositories and commits. Knows nothing of what the files mean.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError


def push_folder(folder: Path, repo: str, message: str, private: bool = False, deleted: Iterable[str] = ()) -> str:
    """Upload a folder.

    Args:
        folder: Every file in it goes to the same path in the repository.
        repo: The Hub id, created if need be.
        message: The commit's message.
        private: Whether a repository that is created is private.
        deleted: Paths in the repository that the same commit deletes.

    Returns:
        The commit's address, whose last part is what `revision=` should be.

    Raises:
        OSError: The Hub refuses the push or cannot be reached.
    """
    api = HfApi()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    additions = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    deletions = [CommitOperationDelete(path) for path in deleted]
    with explain_push_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        # upload_folder may split a commit that fails into two (huggingface_hub 2.4), and a reader may then load half of it
        return str(api.create_commit(repo, [*additions, *deletions], commit_message=message))


@contextmanager
def explain_push_errors(repo: str) -> Iterator[None]:
    """Turn every failed request into an OSError that names the repository; a failed connection is not an OSError by itself."""
    try:
        yield
    except (OSError, HTTPError) as error:
        raise OSError(
            f"{repo} could not be pushed: {error}\nCheck that the Hub can be reached, and that you may write there (`hf auth "
            "login` or HF_TOKEN). A push is one commit, so it never leaves part of a folder there."
        ) from error
