"""What a person sees while work goes on, and that the work goes on where nobody can see it."""

import io
from pathlib import Path

import pytest

from tasks.progress import log_line


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs Linux's /dev/full, a disk that is always full")
def test_line_that_cannot_be_printed_ends_no_work(monkeypatch: pytest.MonkeyPatch) -> None:
    full = io.TextIOWrapper(Path("/dev/full").open("wb", buffering=0), encoding="utf-8", write_through=True)  # noqa: SIM115
    for stream in (full, io.TextIOWrapper(io.BytesIO(), encoding="ascii")):
        monkeypatch.setattr("sys.stdout", stream)
        log_line("tokenize   …")
