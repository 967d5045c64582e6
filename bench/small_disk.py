"""A disk of its own for a folder: small enough to be filled, and it can hang. It takes Linux, and root."""

import os
import subprocess
import tempfile
import time
from pathlib import Path

SIZE = 64 << 20


def available() -> bool:
    """Can one be mounted here?"""
    with tempfile.TemporaryDirectory() as folder:
        image, mounted = Path(folder) / "image", Path(folder) / "mounted"
        mounted.mkdir()
        if there := mount(image, mounted):
            unmount(mounted)
    return there


def mount(image: Path, folder: Path) -> bool:
    """Make a disk in the file `image`, and mount it at `folder`; False where this process cannot."""
    if os.geteuid() != 0:
        return False
    with image.open("wb") as file:
        file.truncate(SIZE)
    commands = [["mkfs.ext4", "-q", "-m", "0", str(image)], ["mount", "-o", "loop", str(image), str(folder)]]
    try:
        return all(subprocess.run(command, capture_output=True).returncode == 0 for command in commands)
    except FileNotFoundError:
        return False


def unmount(folder: Path) -> None:
    subprocess.run(["umount", "-l", str(folder)], check=False)


def freeze(folder: Path) -> None:
    """From now on whoever writes there waits, and cannot even be killed."""
    subprocess.run(["fsfreeze", "--freeze", str(folder)], check=True)


def thaw(folder: Path, check: bool = True) -> None:
    subprocess.run(["fsfreeze", "--unfreeze", str(folder)], check=check, stderr=None if check else subprocess.DEVNULL)


def hang(folder: Path, seconds: float) -> None:
    """The disk answers no write for so long."""
    freeze(folder)
    try:
        time.sleep(seconds)
    finally:
        thaw(folder)
