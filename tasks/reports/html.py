"""HTML of the reports: one file without scripts or references, for light and dark, for a desk and a phone."""

import html
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from model.files import atomic_write

STYLE = """
:root { color-scheme: light dark; --ink: #1c2430; --soft: #566170; --line: #d8dde4; --paper: #fff; --tint: #f4f6f9; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e9f0; --soft: #a3aebc; --line: #343d4a; --paper: #14181e; --tint: #1c222b; }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; text-size-adjust: 100%; }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); }
body { margin: 0 auto; padding: 1.5rem 1rem 4rem; max-width: 60rem; overflow-wrap: break-word; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; } h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, figcaption { color: var(--soft); margin: .3rem 0; font-size: .93rem; }
.facts { display: flex; flex-wrap: wrap; gap: .6rem; margin: 1.2rem 0; padding: 0; list-style: none; }
.facts li { background: var(--tint); border-radius: .5rem; padding: .6rem .9rem; flex: 1 1 9rem; }
.facts b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
.beside { display: grid; gap: 0 2rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 16rem), 1fr)); }
.beside > * { min-width: 0; }
.scroll { overflow-x: auto; }
@media (min-width: 40rem) { body > .scroll td:first-child { white-space: nowrap; } }
table { border-collapse: collapse; width: 100%; font-variant-numeric: tabular-nums; font-size: .93rem; }
th, td { text-align: right; padding: .35rem 0 .35rem 1rem; border-bottom: 1px solid var(--line); vertical-align: top; }
th { color: var(--soft); font-weight: 500; font-size: .85rem; vertical-align: bottom; }
.l { text-align: left; } .beside td.l { overflow-wrap: anywhere; } td:not(.l) { white-space: nowrap; }
th:first-child, td:first-child { padding-left: 0; position: sticky; left: 0; background: var(--paper); }
figure { margin: .8rem 0; } figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: system-ui, sans-serif !important; }
svg.narrow { display: none; }
@media (max-width: 40rem) { svg.wide { display: none; } svg.narrow { display: block; } }
pre { background: var(--tint); padding: .8rem; border-radius: .5rem; font-size: .85rem; margin: .5rem 0; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; }
details { margin: .8rem 0; } summary { cursor: pointer; color: var(--soft); }
code { overflow-wrap: anywhere; }
.beside svg.wide { display: none; } .beside svg.narrow { display: block; }
pre.text { max-height: 18rem; overflow-y: auto; }
h4 { font-size: .9rem; font-weight: 500; margin: 1rem 0 .2rem; } li { margin: .3rem 0; }
.tokens table { width: auto; font-size: .8rem; } .tokens th, .tokens td { padding: .25rem .4rem; white-space: nowrap; }
.tokens td:first-child { color: var(--soft); padding-right: .6rem; z-index: 1; }
"""


def write(path: Path, title: str, parts: Iterable[str]) -> Path:
    """Put a page in its place; empty parts are left out."""
    with atomic_write(path) as file:
        file.write(
            '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escaped(title)} · Koda</title><style>{STYLE}</style></head><body>\n"
            + "\n".join(filter(None, parts))
            + "\n</body></html>\n"
        )
    return path


def escaped(text: Any) -> str:
    """Any value as text of a page."""
    return html.escape(shown(text))


def shown(value: Any) -> str:
    """A value as a person reads it; nothing for None."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"
    return str(value)


def heading(text: str, level: int = 2, mark: str = "") -> str:
    """`mark`: the name by which links on the page lead here."""
    place = f' id="{mark}"' if mark else ""
    return f"<h{level}{place}>{escaped(text)}</h{level}>"


def note(text: str) -> str:
    """A line of small print; nothing for no text."""
    return f"<p>{escaped(text)}</p>" if text else ""


def table(head: Sequence[str], rows: Sequence[Sequence[Any]], left: int = 1) -> str:
    """A table in a box of its own to scroll in; the first `left` columns are words, the others numbers.
    Nothing for no rows."""
    if not rows:
        return ""

    def row(cells: Sequence[Any], tag: str) -> str:
        marked = (f"<{tag}{' class=l' if n < left else ''}>{escaped(cell)}</{tag}>" for n, cell in enumerate(cells))
        return f"<tr>{''.join(marked)}</tr>"

    top = row(head, "th") if any(head) else ""
    return f"<div class=scroll><table>{top}{''.join(row(cells, 'td') for cells in rows)}</table></div>"


def figure(picture: str, caption: str) -> str:
    """A plot and what it shows."""
    return f"<figure>{picture}<figcaption>{escaped(caption)}</figcaption></figure>"


def facts(values: Iterable[tuple[str, str]]) -> str:
    """The figures that readers look for first, each above its label."""
    items = "".join(f"<li><b>{escaped(value)}</b><span>{escaped(label)}</span></li>" for value, label in values)
    return f"<ul class=facts>{items}</ul>" if items else ""


def beside(*parts: str) -> str:
    """Parts next to each other, below each other where there is no room."""
    return f"<div class=beside>{''.join(f'<div>{part}</div>' for part in parts if part)}</div>"


def folded(summary: str, inside: str) -> str:
    """Something long, which a click opens."""
    return f"<details><summary>{escaped(summary)}</summary>{inside}</details>" if inside else ""


def sample(prompt: str, text: str) -> str:
    """Text that a model generated, the prompt in bold."""
    return f"<pre><b>{escaped(prompt)}</b>{escaped(text)}</pre>"


def links(items: Iterable[tuple[str, str]]) -> str:
    """Numbered sentences, each with a link to the mark on the page that it is about."""
    rows = (f'<li>{escaped(text)} <a href="#{mark}">Show it</a></li>' for text, mark in items)
    return f"<ol>{''.join(rows)}</ol>"


def explained(picture: str, lines: Iterable[str], code: str) -> str:
    """A picture, what it shows line by line, and where the code is."""
    below = "".join(f"<figcaption>{escaped(line)}</figcaption>" for line in lines)
    return f"<figure>{picture}{below}<figcaption>Code: <code>{escaped(code)}</code></figcaption></figure>"


def coloured(pieces: Sequence[str], shades: Sequence[float], values: Sequence[float | None], unit: str) -> str:
    """A text on whose pieces lies more colour the larger their shade is, from 0 to 1; values are shown on pointing."""
    spans = []
    for piece, shade, value in zip(pieces, shades, values, strict=True):
        title = "" if value is None else f' title="{value:.3g} {unit}"'
        spans.append(f"<span{title}{_ground(shade)}>{html.escape(piece)}</span>")
    return f"<pre class=text>{''.join(spans)}</pre>"


def _ground(shade: float) -> str:
    """A background that the page's text can be read on, light or dark."""
    return f' style="background:rgb(224 131 47/{0.75 * min(shade, 1):.2f})"' if shade > 0.01 else ""


def token_table(head: Sequence[str], rows: Iterable[tuple[str, Sequence[tuple[str, float, str]]]]) -> str:
    """A column for each token of `head`; each cell is a text, a shade from 0 to 1, and what is shown on pointing."""
    top = "".join(f"<th class=l>{_visible(piece)}</th>" for piece in head)
    body = "".join(
        f"<tr><td>{escaped(name)}</td>"
        + "".join(
            f'<td class=l title="{html.escape(more, quote=True)}"{_ground(shade)}>{_visible(text)}</td>'
            for text, shade, more in cells
        )
        + "</tr>"
        for name, cells in rows
    )
    return f"<div class='scroll tokens'><table><tr><th></th>{top}</tr>{body}</table></div>"


def _visible(piece: str) -> str:
    """A piece of text in a cell, its spaces and line breaks to be seen."""
    return html.escape(piece.replace("\n", "⏎").replace(" ", "·").replace("\t", "⇥"))
