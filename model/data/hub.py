"""Data sets on the Hugging Face Hub, streamed by `datasets`: nothing is downloaded before it is read.

`hub:NAME` or `hub:USER/NAME`, with `/CONFIG` behind the latter where the data set has several, and `@REVISION` to pin
it. The revision is looked up once, so that every part of a corpus is read from one commit.
"""

import functools
from collections.abc import Iterator
from typing import Any, NamedTuple

from model.data.readers import Row
from model.errors import KodaError

PREFIX = "hub:"
PATIENCE = 10.0  # seconds that the Hub has to answer


class Named(NamedTuple):
    """A data set on the Hub."""

    name: str
    config: str | None
    revision: str | None  # a commit, a tag or a branch


def named(source: str) -> Named:
    """`hub:user/name/config@revision` in its parts. Raises KodaError for anything else."""
    path, _, revision = source.removeprefix(PREFIX).partition("@")
    match path.split("/"):
        case [name] if name:
            return Named(name, None, revision or None)
        case [user, name] if user and name:
            return Named(f"{user}/{name}", None, revision or None)
        case [user, name, config] if user and name and config:
            return Named(f"{user}/{name}", config, revision or None)
    raise KodaError(f"{source!r}: a Hub data set is named hub:USER/NAME, with /CONFIG and @REVISION behind if need be.")


def commit(source: str) -> str:
    """The commit that the source's revision names now (the newest one, if it names none).

    Raises KodaError at once where the Hub cannot be reached or has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, _, revision = named(source)
    try:
        found = HfApi().dataset_info(name, revision=revision, timeout=PATIENCE).sha
    except RevisionNotFoundError:
        raise KodaError(f"{source}: {name} has no such revision.") from None
    except RepositoryNotFoundError:
        raise KodaError(
            f"{source} is not on the Hub, or needs a token that may read it (HF_TOKEN in the environment)."
        ) from None
    except Exception as error:
        # Which HTTP library there is underneath, and so what its errors are, has changed and may again.
        if not isinstance(error, HfHubHTTPError | OSError) and not type(error).__module__.startswith("http"):
            raise
        pinned = f" --revision {revision}" if revision else ""
        raise KodaError(
            f"{source} cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}). Where there is a "
            f"network: `hf download --repo-type dataset {name}{pinned} --local-dir FOLDER`; then name FOLDER as the "
            "source."
        ) from None
    assert found is not None
    return found


def shards(name: str, config: str | None, split: str, revision: str | None) -> int:
    """In how many parts the split can be read, each on its own."""
    return _opened(name, config, split, revision).num_shards


def rows(name: str, config: str | None, split: str, revision: str | None, index: int) -> Iterator[Row]:
    """The rows of one of these parts, each with where it is."""
    opened = _opened(name, config, split, revision)
    for number, row in enumerate(opened.shard(num_shards=opened.num_shards, index=index)):
        yield f"{PREFIX}{name}, part {index}, row {number}", row


@functools.lru_cache(maxsize=8)  # listing a data set of 59,166 files takes a while
def _opened(name: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        where = f"{PREFIX}{name}{f'/{config}' if config else ''}"
        raise KodaError(f"{where}, split {split!r}: {str(error).splitlines()[0]}") from None
