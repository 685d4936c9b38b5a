"""A page that needs nothing else: its style, sections and tables."""

import html
from collections.abc import Iterable, Sequence

from bilevel_jax.reporting.text import visible


def whole_page(title: str, subtitle: str, sections: Iterable[str]) -> str:
  """Returns the page, as HTML.

  Args:
    sections: HTML, as `section` makes it.
  """
  title, subtitle, body = escape(title), escape(subtitle), "\n".join(sections)
  return _PAGE.format(title=title, style=_STYLE, subtitle=subtitle, body=body)


def section(title: str, body: str) -> str:
  """Returns a section of a page."""
  return f"<section><h2>{title}</h2>\n{body}\n</section>"


def folded(title: str, body: str) -> str:
  """Returns a part of a page that opens when its title is clicked.

  Args:
    title: what is always shown, as HTML.
  """
  return f"<details><summary>{title}</summary>{body}</details>"


def paragraph(words: str) -> str:
  """Returns a paragraph of text."""
  return f"<p>{escape(words)}</p>"


def article(head: str, good: bool, *texts: str) -> str:
  """Returns what a model wrote, coloured by whether it was good.

  Args:
    texts: shown as they are, one below the other.
  """
  shown = "".join(f"<pre>{escape(one)}</pre>" for one in texts)
  return (
    f'<article class="{"good" if good else "bad"}">'
    f"<header>{escape(head)}</header>{shown}</article>"
  )


def figure(title: str, unit: str, drawing: str) -> str:
  """Returns a drawing, which is HTML, under its title."""
  return (
    f"<figure><figcaption>{escape(title)} <span>{escape(unit)}</span>"
    f"</figcaption>{drawing}</figure>"
  )


def grid(parts: str) -> str:
  """Returns parts of a page side by side, as many as fit."""
  return f'<div class="grid">{parts}</div>'


def table(
  head: Sequence[str], rows: Iterable[Sequence[object]], kind: str = ""
) -> str:
  """Returns a table.

  Args:
    kind: `figures` for columns of numbers.
  """
  lines = [
    "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
    for row in rows
  ]
  top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
  return (
    f'<table class="{kind}"><thead><tr>{top}</tr></thead>'
    f"<tbody>{''.join(lines)}</tbody></table>"
  )


def escape(value: object) -> str:
  """Returns HTML that shows a value's text, whatever is in it."""
  return html.escape(visible(str(value)))


_STYLE = """
:root { color-scheme: light dark; --line: #8884; --soft: #8881;
  --good: #10a37f; --bad: #d9534f; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }
h1 { margin: 0; } h2 { margin: 2.5rem 0 .8rem; } h3 { margin: 1.2rem 0 .4rem; }
.subtitle, figcaption span, header { opacity: .7; }
.grid { display: grid; gap: 1.2rem;
  grid-template-columns: repeat(auto-fill, minmax(min(22rem, 100%), 1fr)); }
figure { margin: 0; border: 1px solid var(--line); border-radius: 8px;
  padding: .7rem .8rem .3rem; }
figcaption { font-weight: 600; }
figcaption span { display: block; font-weight: 400; font-size: .85em; }
svg, img { width: 100%; height: auto; display: block; }
table { border-collapse: collapse; margin: .4rem 0; }
th, td { text-align: left; padding: .25rem 1.2rem .25rem 0;
  border-bottom: 1px solid var(--line); overflow-wrap: anywhere; }
table.figures :is(th, td):not(:first-child) { text-align: right;
  font-variant-numeric: tabular-nums; overflow-wrap: normal; }
table.figures td:not(:first-child) { white-space: nowrap; }
table.figures :is(th, td):first-child { min-width: 5.5em; }
section { overflow-x: auto; }
article { border-left: 3px solid var(--bad); background: var(--soft);
  border-radius: 0 8px 8px 0; padding: .5rem .9rem; margin: .6rem 0; }
article.good { border-color: var(--good); }
article header { font-size: .85em; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; margin: .4rem 0;
  font: 13px/1.5 ui-monospace, monospace; }
pre + pre { border-top: 1px dashed var(--line); padding-top: .4rem; }
summary { cursor: pointer; margin-top: .6rem; }
"""

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<p class="subtitle">{subtitle}</p>
{body}
</body>
</html>
"""
