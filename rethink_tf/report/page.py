"""A report as one page: nothing on it comes from elsewhere."""

import html
import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

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
.small { gap: 0 1rem; grid-template-columns: repeat(auto-fill, minmax(8rem, 1fr)) }
figure { margin: 1rem 0 }
.small figure { margin: 0.4rem 0; overflow-wrap: anywhere }
svg { width: 100%; height: auto; max-width: 44rem; font-family: inherit }
.wide { overflow-x: auto }
.row { display: flex; flex-wrap: wrap; gap: 0.5rem; font-size: 0.85rem }
.row > div { flex: 1 1 14rem; min-width: 0 }
img { width: 100%; height: auto; border-radius: 4px }
table { border-collapse: collapse; font-size: 0.85rem }
th, td { padding: 0.3rem 0.6rem; border-bottom: 1px solid var(--line); text-align: left;
  vertical-align: top; min-width: 3.5rem }
td.long { min-width: 14rem }
th { background: var(--soft); position: sticky; top: 0 }
figcaption, .note { font-size: 0.85rem; opacity: 0.8 }
"""

_LONG = 40  # letters of a cell that gets more room


def render(
    title: str,
    summary: Sequence[str],
    figures: Sequence[tuple[str, str]],
    tables: Sequence[Table],
    samples: Mapping[str, Sequence[tuple[str, Sequence[tuple[str, str]]]]] = MappingProxyType({}),
    small_figures: Sequence[tuple[str, str, Sequence[tuple[str, str]]]] = (),
    galleries: Sequence[tuple[str, Sequence[tuple[str, Sequence[tuple[str, str]]]]]] = (),
) -> str:
    """Returns a page of HTML.

    Args:
        title: of the page.
        summary: paragraphs at its top.
        figures: (caption, SVG) each.
        tables: below them.
        samples: {heading: (caption, pictures side by side: (title, `data:` URI) each)}, last on
            the page.
        small_figures: (heading, note, [(caption, SVG without marks)]) each, below the tables.
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
    for heading, note, group in small_figures:
        shown = "\n".join(
            f"<figure>{svg}<figcaption>{_text(caption)}</figcaption></figure>"
            for caption, svg in group
        )
        parts.append(f'<h2>{_text(heading)}</h2>\n<p class="note">{_text(note)}</p>')
        parts.append(f'<div class="grid small">{shown}</div>')
    for heading, rows in samples.items():
        if rows:
            parts.append(f"<h2>{_text(heading)}</h2>")
            parts += [_sample(caption, pictures) for caption, pictures in rows]
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
    rows = "\n".join("<tr>" + "".join(_cell(each) for each in row) + "</tr>" for row in table.rows)
    note = f'<p class="note">{_text(table.note)}</p>' if table.note else ""
    return (
        f"<h2>{_text(table.title)}</h2>\n"
        f'<div class="wide"><table>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>{rows}</tbody>\n</table></div>\n{note}"
    )


def _cell(text):
    # A sentence would be a column of single words on a phone.
    start = '<td class="long">' if len(text) > _LONG else "<td>"
    return f"{start}{_text(text)}</td>"


def _text(text):
    """Escapes a text; what stands between two stars twice is bold."""
    return re.sub(r"\*\*(.+?)\*\*", r"<strong>\1</strong>", html.escape(text))
