"""Data sets on the Hugging Face Hub, streamed by `datasets`: nothing is downloaded before it is read.

`hub:NAME` or `hub:USER/NAME`, with `/CONFIG` behind the latter where the data set has several. The revision is looked
up once, so that every part of a corpus is read from one commit.
"""

import functools
import re
from collections.abc import Iterator
from typing import Any

from model.data.document import Document, Flaw
from model.data.readers import cell, no_column
from model.errors import KodaError

PREFIX = "hub:"
COMMIT = re.compile(r"[0-9a-f]{40}")
PATIENCE = 10.0  # seconds that the Hub has to answer


def names(source: str) -> tuple[str, str | None]:
    """`hub:user/name/config` → the data set's name and its configuration. Raises KodaError for anything else."""
    match source.removeprefix(PREFIX).split("/"):
        case [name] if name:
            return name, None
        case [user, name] if user and name:
            return f"{user}/{name}", None
        case [user, name, config] if user and name and config:
            return f"{user}/{name}", config
    raise KodaError(f"tokenize.source = {source!r}: a Hub data set is named hub:USER/NAME or hub:USER/NAME/CONFIG.")


def commit(source: str, revision: str) -> str:
    """The commit that `revision` (a branch, a tag, a commit; empty: the newest) names now.

    Raises KodaError at once where the Hub cannot be reached or has no such data set.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError, RevisionNotFoundError

    name, _ = names(source)
    try:
        found = HfApi().dataset_info(name, revision=revision or None, timeout=PATIENCE).sha
    except RevisionNotFoundError:
        raise KodaError(f"{source} has no revision {revision!r} (tokenize.revision).") from None
    except RepositoryNotFoundError:
        raise KodaError(
            f"{source} is not on the Hub, or needs a token that may read it (HF_TOKEN in the environment)."
        ) from None
    except (HfHubHTTPError, OSError) as error:
        raise KodaError(_offline(source, name, revision, error)) from None
    except Exception as error:  # httpx's connection errors are no OSError
        if not type(error).__module__.startswith(("httpx", "httpcore")):
            raise
        raise KodaError(_offline(source, name, revision, error)) from None
    assert found is not None
    return found


def _offline(source: str, name: str, revision: str, error: Exception) -> str:
    pinned = f" --revision {revision}" if revision else ""
    return (
        f"{source} cannot be reached ({type(error).__name__}: {str(error).splitlines()[0]}). Where there is a network: "
        f"`hf download --repo-type dataset {name}{pinned} --local-dir FOLDER`; then here: tokenize.source=FOLDER."
    )


def shards(name: str, config: str | None, split: str, revision: str | None) -> int:
    """In how many parts the split can be read, each on its own."""
    return _opened(name, config, split, revision).num_shards


def documents(
    name: str, config: str | None, split: str, revision: str | None, column: str, index: int
) -> Iterator[Document | Flaw]:
    """The rows of one of these parts."""
    opened = _opened(name, config, split, revision)
    part = opened.shard(num_shards=opened.num_shards, index=index)
    for number, row in enumerate(part):
        where = f"{PREFIX}{name}, part {index}, row {number}"
        yield cell(where, column, row[column]) if column in row else no_column(where, column, list(row))


@functools.lru_cache(maxsize=8)  # listing a data set of 59,166 files takes a while
def _opened(name: str, config: str | None, split: str, revision: str | None) -> Any:
    import datasets

    try:
        return datasets.load_dataset(name, config, split=split, revision=revision, streaming=True)
    except (ValueError, FileNotFoundError, datasets.exceptions.DatasetNotFoundError) as error:
        where = f"{PREFIX}{name}{f'/{config}' if config else ''}"
        raise KodaError(f"{where}, split {split!r}: {str(error).splitlines()[0]}") from None
