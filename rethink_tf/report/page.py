"""A report as one page: nothing on it comes from elsewhere."""

import html
import re
from collections.abc import Sequence

from rethink_tf.report.study_tables import Table

_CSS = """
:root { color-scheme: light dark; --line: #8886; --text: #1c1c1c; --page: #ffffff; --soft: #f3f3f3 }
@media (prefers-color-scheme: dark) {
  :root { --text: #e4e4e4; --page: #16181a; --soft: #22262a }
}
body { margin: 0 auto; padding: 1rem; max-width: 62rem; color: var(--text); background: var(--page);
  font: 16px/1.5 system-ui, sans-serif }
h1, h2 { line-height: 1.2; overflow-wrap: anywhere }
.grid { display: grid; gap: 0 2rem;
  grid-template-columns: repeat(auto-fit, minmax(min(100%, 24rem), 1fr)) }
figure { margin: 1rem 0 }
svg { width: 100%; height: auto; max-width: 44rem; font-family: inherit }
.wide { overflow-x: auto }
.row { display: flex; flex-wrap: wrap; gap: 0.5rem; font-size: 0.85rem }
.row > div { flex: 1 1 14rem; min-width: 0 }
img { width: 100%; height: auto; border-radius: 4px }
table { border-collapse: collapse; font-size: 0.85rem }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; min-width: 5rem }
th { background: var(--soft); position: sticky; top: 0 }
figcaption, .note { font-size: 0.85rem; opacity: 0.8 }
"""


def render(
    title: str,
    summary: Sequence[str],
    figures: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    samples: Sequence[tuple[str, Sequence[tuple[str, str]]]] = (),
    galleries: Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[str, str]]]]]] = (),
) -> str:
    """Returns a page of HTML.

    Args:
        title: of the page.
        summary: paragraphs at its top.
        figures: (caption, SVG) each.
        tables: below them.
        samples: (caption, pictures side by side: (title, `data:` URI) each), last on the page.
        galleries: (heading, samples) each, above the figures.
    """
    parts = [f"<h1>{_text(title)}</h1>"]
    parts += [f"<p>{_text(each)}</p>" for each in summary]
    for heading, shown in galleries:
        inside = "\n".join(_sample(*each) for each in shown)
        parts.append(f'<h2>{_text(heading)}</h2>\n<div class="grid">{inside}</div>')
    shown = "\n".join(
        f"<figure>{_apart(svg, number)}<figcaption>{_text(caption)}</figcaption></figure>"
        for number, (caption, svg) in enumerate(figures)
    )
    parts.append(f'<div class="grid">{shown}</div>')
    parts += [_table(table) for table in tables]
    if samples:
        parts.append("<h2>Samples</h2>")
        parts += [_sample(caption, pictures) for caption, pictures in samples]
    body = "\n".join(parts)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        # An icon of none: else a browser asks for one.
        '<link rel="icon" href="data:,">\n'
        f"<title>{_text(title)}</title>\n<style>{_CSS}</style>\n</head>\n<body>\n{body}\n</body>\n"
        "</html>\n"
    )


def _apart(svg, number):
    """Gives a figure's marks names of its own: two figures on a page have some in common."""
    svg = re.sub(r'\bid="', f'id="f{number}-', svg)
    return re.sub(r"(url\(#|href=\"#)", rf"\g<1>f{number}-", svg)


def _sample(caption, pictures):
    shown = "".join(
        f'<div><img src="{uri}" alt="{_text(title)}"><br>{_text(title)}</div>'
        for title, uri in pictures
    )
    return (
        f'<figure><div class="row">{shown}</div><figcaption>{_text(caption)}</figcaption></figure>'
    )


def _table(table):
    head = "".join(f"<th>{_text(each)}</th>" for each in table.header)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{_text(each)}</td>" for each in row) + "</tr>" for row in table.rows
    )
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{_text(table.title)}</h2>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody>\n</table></div>\n{note}"
    )


def _text(text):
    """Escapes a text; what stands between two stars twice is bold."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
