"""Data sets on the Hugging Face Hub, streamed by `datasets`: nothing is downloaded before it is read.

A source is `hub:NAME` or `hub:USER/NAME`; `/CONFIG` after the latter selects one of several configurations, and
`@REVISION` pins it. The revision is resolved once, so that every part of a corpus is read from one commit.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from model.data.readers import Row
from model.errors import KodaError

PREFIX = "hub:"
TIMEOUT = 10.0  # seconds to wait for an answer of the Hub


class Named(NamedTuple):
    """A data set on the Hub."""

    name: str
    config: str | None
    revision: str | None  # a commit, a tag or a branch


def named(source: str) -> Named:
    """The parts of `hub:user/name/config@revision`. Raises KodaError for anything else."""
    path, _, revision = source.removeprefix(PREFIX).partition("@")
    match path.split("/"):
        case [name] if name:
            return Named(name, None, revision or None)
        case [user, name] if user and name:
            return Named(f"{user}/{name}", None, revision or None)
        case [user, name, config] if user and name and config:
            return Named(f"{user}/{name}", config, revision or None)
    raise KodaError(
        f"{source!r}: a Hub data set is named hub:USER/NAME, optionally with /CONFIG and @REVISION after it."
    )


def commit(source: str) -> str:
    """The commit that the source's revision names now; the newest one if it has no revision.

    Raises KodaError where the Hub cannot be reached or has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = named(source)
    try:
        sha = HfApi().dataset_info(name, revision=revision, timeout=TIMEOUT).sha
    except RevisionNotFoundError:
        raise KodaError(f"{source}: {name} has no such revision.") from None
    except RepositoryNotFoundError:
        raise KodaError(
            f"{source} is not on the Hub, or needs an access token (HF_TOKEN in the environment)."
        ) from None
    except Exception as error:
        # huggingface_hub has changed its HTTP library, and with it the errors, and may change it again.
        if not isinstance(error, HfHubHTTPError | OSError) and not type(error).__module__.startswith("http"):
            raise
        pinned = f" --revision {revision}" if revision else ""
        raise KodaError(
            f"{source} cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}). On a machine with a "
            f"network, run `hf download --repo-type dataset {name}{pinned} --local-dir FOLDER`; then use FOLDER as the "
            "source."
        ) from None
    assert sha is not None
    return sha


def shards(name: str, config: str | None, split: str, revision: str | None) -> int:
    """The number of parts of the split that can be read independently."""
    return _open(name, config, split, revision).num_shards


def rows(name: str, config: str | None, split: str, revision: str | None, index: int) -> Iterator[Row]:
    """The rows of one of these parts, each with its place."""
    dataset = _open(name, config, split, revision)
    for number, row in enumerate(dataset.shard(num_shards=dataset.num_shards, index=index)):
        yield f"{PREFIX}{name}, part {index}, row {number}", row


@functools.lru_cache(maxsize=8)  # listing a data set of 59,166 files takes a while
def _open(name: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        where = f"{PREFIX}{name}{f'/{config}' if config else ''}"
        raise KodaError(f"{where}, split {split!r}: {str(error).splitlines()[0]}") from None
