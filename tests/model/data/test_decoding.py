import random

import pytest

from model.data.decoding import Undecodable, decoded

GERMAN = "Über die Größe der Häuser weiß man, daß sie süß schön für Äpfel wäre. " * 5
FRENCH = "Été à Évian : l’élève, âgé, a préféré être là où ça l’a mené, dit-on. " * 5
OTHERS = {
    "cp1251": "Мой дядя самых честных правил, когда не в шутку занемог. ",
    "koi8-r": "Мой дядя самых честных правил, когда не в шутку занемог. ",
    "cp1253": "Η γλώσσα είναι ελληνική και γράφεται έτσι. ",
    "cp1255": "שלום עולם, זה טקסט בעברית. ",
    "gbk": "学而时习之，不亦说乎？有朋自远方来，不亦乐乎？",
    "big5": "學而時習之，不亦說乎？有朋自遠方來，不亦樂乎？",
    "shift_jis": "吾輩は猫である。名前はまだ無い。",
    "euc-kr": "나랏말싸미 듕귁에 달아 문자와로 서르 사맛디 아니할쎄. ",
    "utf-16-le": "Мой дядя самых честных правил. ",
    "iso2022_jp": "吾輩は猫である。名前はまだ無い。",
}


def refused(raw: bytes, encoding: str = "") -> tuple[str, str]:
    with pytest.raises(Undecodable) as raised:
        decoded(raw, encoding)
    return raised.value.reason, raised.value.detail


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_text_that_names_its_encoding_is_read_by_it(encoding: str) -> None:
    for text in (GERMAN, *OTHERS.values()):
        for setting in ("", "cp1251", "gbk"):
            assert decoded(text.encode(encoding), setting) == (text, False)
    assert refused("Text".encode("utf-16")[:-1])[0] == "not_utf8"


@pytest.mark.parametrize("text", [GERMAN, FRENCH, "café, “quoted”", "é"])
def test_western_text_is_read_as_windows_1252(text: str) -> None:
    assert decoded(text.encode("cp1252")) == (text, True)


@pytest.mark.parametrize("encoding", OTHERS)
def test_text_in_another_encoding_is_refused_unless_that_is_set(encoding: str) -> None:
    text = OTHERS[encoding] * 3
    raw = text.encode(encoding)
    assert decoded(raw, encoding) == (text, False)
    if encoding != "iso2022_jp":  # which is ASCII to whoever does not know it
        reason, detail = refused(raw)
        assert reason in ("not_utf8", "not_text")
        assert "tokenize.encoding" in detail or "control character 0x" in detail


def test_what_is_not_in_the_encoding_that_is_set_is_refused() -> None:
    assert refused(b"caf\xe9 \xff\xff", "gbk") == (
        "not_utf8",
        "it is neither UTF-8 nor gbk (byte 3 is 0xe9). tokenize.encoding names another",
    )


@pytest.mark.parametrize("length", [10, 1_000_000])
def test_one_rule_for_control_characters_in_files_of_every_size(length: int) -> None:
    """The place is named, at the end of a large file as in a small one."""
    text = "words and" + " words" * (length // 6)
    for allowed in ("\v", "\f", "\x1b", "\r\n", "\t"):
        assert decoded((text + allowed).encode()).text == text + allowed
    for control in (0x00, 0x07, 0x08, 0x1A):
        raw = f"{text}{chr(control)}more"
        expected = ("not_text", f"character {len(text)} is the control character {control:#04x}")
        assert refused(raw.encode()) == refused(raw.encode("utf-16")) == expected
    assert decoded((text + "\x1a" * 60).encode()).text == text  # DOS's end of a file
    assert decoded((text + "\x1a").encode("utf-16")).text == text
    assert decoded(f"{text}\r\n\x1a\r\n\x1a".encode()).text == f"{text}\r\n"


def test_bytes_of_no_text_are_refused() -> None:
    draw = random.Random(0)
    for _ in range(200):
        assert refused(draw.randbytes(400))[0] in ("not_text", "not_utf8")
