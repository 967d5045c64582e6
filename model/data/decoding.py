"""The bytes of a text file → its text. No letter is ever replaced, and no encoding is guessed that could be another."""

import codecs
import re
from typing import NamedTuple

# What a file begins with that names its own encoding; UTF-32's before UTF-16's, which is its beginning.
MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
WESTERN = "cp1252"  # Windows-1252, a superset of Latin-1's letters
END_OF_FILE = "\x1a"  # of CP/M and DOS, which padded files with it
TEXTUAL = b"\t\n\v\f\r\x1b"  # control bytes that texts have: white space, and the colours of terminals
CONTROL = bytes(frozenset(range(32)) - frozenset(TEXTUAL))
CONTROL_CHARACTER = re.compile(f"[{re.escape(CONTROL.decode())}]")
LETTERS = bytes(range(ord("A"), ord("Z") + 1)) + bytes(range(ord("a"), ord("z") + 1))
# Of the letters of Western European texts, about 3 to 15 in 100 have accents; of Cyrillic, Greek or Chinese text that
# is read as such, more than 50. A few words may be all accents.
ACCENTED, FEW = 0.4, 8


class Decoded(NamedTuple):
    """A text, and whether it was read as Windows-1252 because nothing names its encoding."""

    text: str
    is_western: bool = False


class Undecodable(Exception):
    """Bytes that are no text: a reason to count them by, and the detail."""

    def __init__(self, reason: str, detail: str):
        super().__init__(detail)
        self.reason, self.detail = reason, detail


def decoded(raw: bytes, encoding: str = "") -> Decoded:
    """A file's text: by its mark; else as UTF-8; else by `encoding`, or, if that is empty, as Windows-1252.

    Raises Undecodable for bytes that are not of these, and for control characters, wherever they are.
    """
    text, is_western = _text(raw, encoding)
    text = without_end_of_file(text)
    if detail := control_character(text, raw):
        raise Undecodable("not_text", detail)
    return Decoded(text, is_western)


def without_end_of_file(text: str) -> str:
    """A text up to END_OF_FILE, if nothing but line ends follows it."""
    end = text.rstrip(f"{END_OF_FILE}\r\n")
    return end + text[len(end) :].partition(END_OF_FILE)[0]


def control_character(text: str, raw: bytes) -> str:
    """Where a text has a control character, which is no text; empty if it has none. `raw`: its bytes."""
    # In every encoding a control character has such a byte, which is much faster to look for.
    has_control = len(raw.translate(None, CONTROL)) < len(raw)
    match = CONTROL_CHARACTER.search(text) if has_control else None
    return f"character {match.start()} is the control character {ord(match[0]):#04x}" if match else ""


def _text(raw: bytes, encoding: str) -> Decoded:
    mark = next((name for mark, name in MARKS if raw.startswith(mark)), "")
    try:
        # In ASCII alone, UTF-8 shows nothing: encodings with shifts (ISO-2022-JP) and UTF-16 may have no other bytes.
        if mark or not encoding or not raw.isascii():
            return Decoded(raw.decode(mark or "utf-8"))
    except UnicodeDecodeError as error:
        if mark:
            raise Undecodable("not_utf8", f"it is not {mark}, by which it is marked ({_byte(error)})") from None
    try:
        text = raw.decode(encoding or WESTERN)
    except UnicodeError as error:
        detail = f"it is neither UTF-8 nor {encoding or 'Windows-1252'} ({_byte(error)})"
        raise Undecodable("not_utf8", f"{detail}. tokenize.encoding names another") from None
    if not encoding and not _is_western(raw):
        raise Undecodable(
            "not_utf8",
            "it is not UTF-8, and read as Windows-1252 too many of its letters have accents. tokenize.encoding names "
            "its encoding, such as cp1251, gbk or shift_jis",
        )
    return Decoded(text, is_western=not encoding)


def _is_western(raw: bytes) -> bool:
    """Is this likely to be text in Windows-1252, by how many of its letters are not ASCII?"""
    others = len(raw) - len(raw.translate(None, bytes(range(128, 256))))
    letters = len(raw) - len(raw.translate(None, LETTERS))
    return others < FEW or others <= ACCENTED * (others + letters)


def _byte(error: UnicodeError) -> str:
    if not isinstance(error, UnicodeDecodeError):
        return str(error)
    return f"byte {error.start} is {error.object[error.start]:#x}"
