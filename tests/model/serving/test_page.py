"""The chat page, in Debian's Chromium."""

import itertools
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, expect

from model.export.runtime import Token
from tests.browser import MARKS
from tests.model.serving.conftest import Opener, Running

pytestmark = MARKS


@pytest.fixture
def page(browser: Browser, in_jax: Running) -> Iterator[Page]:
    """A tab, which fails the test where it requests something elsewhere, or something in it fails."""
    elsewhere: list[str] = []
    failures: list[str] = []
    with browser.new_context(viewport={"width": 390, "height": 844}) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        page.on("request", lambda request: elsewhere.append(request.url))
        page.on("pageerror", lambda error: failures.append(str(error)))
        yield page
    assert elsewhere and all(url.startswith(("http://127.0.0.1:", "data:")) for url in elsewhere)
    assert failures == []


def open_(page: Page, running: Running, temperature: str = "0") -> None:
    page.goto(running.address)
    expect(page.get_by_role("heading")).to_have_text("small")
    page.get_by_label("Temperature").fill(temperature)


def send(page: Page, text: str) -> None:
    page.get_by_label("Your message").fill(text)
    page.get_by_label("Your message").press("Enter")


def turns(page: Page) -> list[str]:
    """What is shown of the conversation, once it is complete."""
    expect(page.get_by_role("button", name="Send")).to_be_visible()
    return page.locator(".turn:not(.note)").all_text_contents()


def answering(monkeypatch: pytest.MonkeyPatch, running: Running, *texts: str) -> None:
    """Have the model answer with these texts."""
    tokens = [*map(Token, texts), Token("", ends=True)]
    monkeypatch.setattr(running.watched.runtime, "generate", lambda *_: (token for token in tokens))


def test_conversation_goes_on_with_what_was_said(page: Page, in_jax: Running) -> None:
    open_(page, in_jax)
    first = in_jax.chat("Say 3").choices[0].message.content
    send(page, "Say 3")
    assert turns(page) == ["You: Say 3", f"Model: {first}"]
    expect(page.locator(".note")).to_have_text("Model: (The context is full.)")
    page.get_by_role("button", name="New conversation").click()
    assert turns(page) == []


def test_messages_are_sent_with_the_answers_to_them(
    page: Page, in_jax: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompts: list[Any] = []
    real = in_jax.watched.runtime.encode
    monkeypatch.setattr(in_jax.watched.runtime, "encode", lambda prompt: prompts.append(prompt) or real(prompt))
    answering(monkeypatch, in_jax, "Ye", "s.")
    open_(page, in_jax)
    for text in ("one", "two"):
        send(page, text)
        assert turns(page)[-1] == "Model: Yes."
    said = [{"role": "user", "content": "one"}, {"role": "assistant", "content": "Yes."}]
    assert prompts[-1] == [*said, {"role": "user", "content": "two"}]


def test_what_the_model_writes_is_text(page: Page, in_jax: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    written = "<img src=x onerror=alert(1)><script>alert(2)</script> & <b>bold</b>\n\n  two"
    answering(monkeypatch, in_jax, written[:20], written[20:])
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    open_(page, in_jax)
    send(page, "<i>hello</i>")
    assert turns(page) == ["You: <i>hello</i>", f"Model: {written}"]
    assert page.locator("#turns img, #turns script, #turns b, #turns i").count() == 0 and dialogs == []


def test_stop_ends_the_answer_and_what_came_stays(page: Page, in_jax: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    answering(monkeypatch, in_jax, *itertools.repeat("a ", 50))
    watched = in_jax.watched
    watched.pause_after = 5
    try:
        open_(page, in_jax)
        send(page, "Go on")
        expect(page.locator(".assistant")).to_contain_text("a a a a")
        expect(page.get_by_role("log")).to_have_attribute("aria-busy", "true")
        page.get_by_role("button", name="Stop").click()
        assert turns(page)[1].startswith("Model: a a a a")
    finally:
        watched.pause_after = 0
        watched.go_on.set()
        watched.go_on.clear()
    assert watched.tokens < 10
    answering(monkeypatch, in_jax, "Again.")
    send(page, "And now?")
    assert turns(page)[-1] == "Model: Again."


def test_error_is_shown_and_the_question_goes_back_to_its_field(page: Page, in_jax: Running) -> None:
    open_(page, in_jax)
    long = "word " * 200
    send(page, long)
    expect(page.get_by_role("alert")).to_contain_text("the context of this model 128")
    assert turns(page) == []
    expect(page.get_by_label("Your message")).to_have_value(long)


def test_failure_under_way_is_shown_beside_what_came(
    page: Page, in_jax: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: object) -> Iterator[Token]:
        yield Token("So far")
        raise MemoryError("none left")

    monkeypatch.setattr(in_jax.watched.runtime, "generate", failing)
    open_(page, in_jax)
    send(page, "Go on")
    expect(page.get_by_role("alert")).to_have_text("The model failed: MemoryError: none left")
    assert turns(page)[1] == "Model: So far"


def test_key_is_required_and_then_works(page: Page, opener: Opener) -> None:
    keyed = Running(partial(opener, "jax"), key="secret")
    try:
        page.goto(keyed.address)
        expect(page.get_by_role("alert")).to_have_text("The API key is missing or wrong.")
        page.get_by_label("Key").fill("secret")
        page.get_by_label("Key").press("Tab")
        expect(page.get_by_role("heading")).to_have_text("small")
        expect(page.get_by_role("alert")).to_be_hidden()
        send(page, "Say 3")
        assert len(turns(page)) == 2
    finally:
        keyed.stop()


def test_no_key_field_where_none_is_needed(page: Page, in_jax: Running) -> None:
    open_(page, in_jax)
    expect(page.get_by_label("Key")).to_be_hidden()


@pytest.mark.parametrize("width", [320, 390, 1280])
def test_page_is_readable_in_light_and_dark_on_any_width(
    page: Page, in_jax: Running, monkeypatch: pytest.MonkeyPatch, width: int
) -> None:
    """No scrolling to the side, and text against ground of a contrast of 4.5 or more (WCAG 2.1, 1.4.3)."""
    answering(monkeypatch, in_jax, "https://example.org/" + "x" * 300 + "\n" * 60, "end")
    page.set_viewport_size({"width": width, "height": 700})
    open_(page, in_jax)
    send(page, "w" * 60)
    assert turns(page)
    expect(page.get_by_label("Your message")).to_be_in_viewport()
    grounds = set()
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
        for selector in (".user", ".assistant", ".note, header p", "#send"):
            text, ground = page.locator(selector).first.evaluate(COLOURS)
            assert contrast(text, ground) >= 4.5, (scheme, selector)
        grounds.add(tuple(page.locator("body").evaluate(COLOURS)[1]))
    assert len(grounds) == 2


COLOURS = """element => {
  const numbers = colour => colour.match(/[\\d.]+/g).map(Number);
  let ground = element;
  while (numbers(getComputedStyle(ground).backgroundColor)[3] === 0) ground = ground.parentElement;
  return [numbers(getComputedStyle(element).color), numbers(getComputedStyle(ground).backgroundColor)];
}"""


def contrast(one: list[float], other: list[float]) -> float:
    """The ratio of two colours' luminances, by WCAG's formula."""

    def luminance(colour: list[float]) -> float:
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in colour[:3])]
        return sum(weight * value for weight, value in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)
