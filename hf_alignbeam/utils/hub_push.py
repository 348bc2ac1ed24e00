"""Folders pushed to the Hub: the whole of one in a single commit, or nothing of it.

Knows repositories. What the folders hold is the business of who wrote them.
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
from huggingface_hub.errors import HTTPError


def push_folder(folder: Path, repo: str, message: str, private: bool = False, gone: Iterable[str] = ()) -> str:
    """Upload a folder.

    Args:
        folder: All of it goes to the top of the repository.
        repo: The Hub id, made if need be.
        message: Of the commit.
        private: Whether a repository that is made is private.
        gone: What the repository holds and shall not hold any more.

    Returns:
        The commit's address, whose last part is what `revision=` should be.

    Raises:
        OSError: The Hub does not take it, or does not answer.
    """
    api = HfApi()
    files = sorted(file for file in folder.rglob("*") if file.is_file())
    added = [CommitOperationAdd(file.relative_to(folder).as_posix(), file) for file in files]
    with explain_push_errors(repo):
        api.create_repo(repo, private=private, exist_ok=True)
        # upload_folder may cut a commit that fails in two (huggingface_hub 2.4), and whoever loads gets a half of it
        return str(api.create_commit(repo, [*added, *map(CommitOperationDelete, gone)], commit_message=message))


@contextmanager
def explain_push_errors(repo: str) -> Iterator[None]:
    """Turn every failure of a request into an OSError that names the repository: that of a connection is none by itself."""
    try:
        yield
    except (OSError, HTTPError) as error:
        raise OSError(
            f"{repo} could not be pushed: {error}\nSee that the Hub can be reached, and that you may write there (`hf auth "
            "login` or HF_TOKEN). A push is one commit: nothing of it is there before all of it is."
        ) from error
