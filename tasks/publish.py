"""Stage 8: exports → three repositories with model cards, in a local folder or on the Hub."""

import os
import shutil
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from model.errors import KodaError
from model.files import listing, read_json, write_json
from tasks.cards import card
from tasks.progress import progress
from tasks.run import RECORD, STAGES, Built
from tasks.section import Section
from tasks.stage import stage

KINDS = ("hf", "gguf", "mlx")


class Publish(Section):
    to: Annotated[str, Field(pattern=r"^(local|[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*)$")] = "local"
    """`local` lays the repositories out in the run's folder; USER/NAME also uploads them to the Hub, with HF_TOKEN."""
    private: bool = True
    """Repositories that are made on the Hub are private at first."""
    license: str = "apache-2.0"
    """Licence of the published weights, by its identifier on the Hub."""


@stage(version=1)
def publish(out: Path, settings: Publish, exports: Built, scores: Built, model: Built, tokens: Built) -> dict[str, Any]:
    """Lay out hf/, gguf/ and mlx/, each with its card, checksums and lineage; upload them where that is asked for."""
    name = out.parent.name
    lineage = {
        "run": name,
        "configuration": (out.parent / "run.toml").read_text(encoding="utf-8"),
        "stages": {
            stage: {name: record[name] for name in ("key", "reads", "settings", "finished")}
            for stage in STAGES
            if (record := _record(out.parent / stage))
        },
        "tokenizer_sha256": read_json(tokens / "train/manifest.json")["tokenizer"],
        "corpus_shards": read_json(tokens / "train/manifest.json")["shards"],
        "versions": read_json(exports / "stage.json")["versions"],
    }
    kinds = [kind for kind in KINDS if (exports / kind).is_dir()]
    for kind in kinds:
        folder = out / kind
        shutil.copytree(exports / kind, folder)
        write_json(folder / "lineage.json", lineage)
        (folder / "README.md").write_text(
            card(kind, name, settings.license, out.parent, exports, scores, model, tokens), encoding="utf-8"
        )
        sums = "".join(f"{facts['sha256']}  {path}\n" for path, facts in listing(folder).items())
        (folder / "CHECKSUMS").write_text(sums, encoding="utf-8")
    if settings.to == "local":
        where = str(out.parent / "publish")
    else:
        _upload(out, settings, kinds)
        where = f"https://huggingface.co/{settings.to}"
    files = {kind: len(listing(out / kind)) for kind in kinds}
    return {"where": where, "files": sum(files.values()), "bytes": sum(f["size"] for f in listing(out).values())}


def _record(folder: Path) -> dict[str, Any]:
    return read_json(folder / RECORD) if (folder / RECORD).is_file() else {}


def repository(to: str, kind: str) -> str:
    """The name of a kind's repository: USER/NAME, USER/NAME-GGUF, USER/NAME-MLX."""
    return to if kind == "hf" else f"{to}-{kind.upper()}"


def _upload(out: Path, settings: Publish, kinds: list[str]) -> None:
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    token = os.environ.get("HF_TOKEN")
    if not token:
        raise KodaError(
            f"publish.to = {settings.to!r} needs a token with write access in the environment, as HF_TOKEN."
        )
    api = HfApi(token=token)
    with progress("publish", len(kinds)) as watch:
        for number, kind in enumerate(kinds):
            name = repository(settings.to, kind)
            watch(number, name)
            try:
                api.create_repo(name, private=settings.private, exist_ok=True)
                api.upload_folder(repo_id=name, folder_path=out / kind, commit_message="Koda: publish")
            except HfHubHTTPError as error:
                if error.response is not None and error.response.status_code in (401, 403):
                    raise KodaError(f"the Hub refused HF_TOKEN for {name}: it needs write access there.") from None
                raise
