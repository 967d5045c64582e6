from pathlib import Path

from model.files import link


def test_folder_is_linked_twice(tmp_path: Path) -> None:
    """An attempt that was interrupted has linked it already."""
    (tmp_path / "weights").mkdir()
    (tmp_path / "weights/arrays").write_bytes(b"numbers")
    for _ in range(2):
        link(tmp_path / "weights", tmp_path / "linked")
    assert (tmp_path / "linked/arrays").samefile(tmp_path / "weights/arrays")
    assert (tmp_path / "weights/arrays").read_bytes() == b"numbers"
