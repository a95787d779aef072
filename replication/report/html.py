"""HTML pages from templates: nothing is fetched, formulas are inlined, and every page can be read on a phone.

The templates escape every text. Only what this package itself renders (highlighted code, formulas, figures) is marked as safe, so
that a completion holding a script tag stays the text of a completion.
"""

from __future__ import annotations

import base64
import functools
import io
import re
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
from markupsafe import Markup

from replication.report.wording import shown_table
from replication.runs import atomic_write, make_folder

_FORMULA = re.compile(r"(`+[^`]*`+)|\$\$(.+?)\$\$|\$([^$\n]+?)\$", re.S)
#: A link from one notebook to another: their pages lie side by side too.
_NOTEBOOK_LINK = re.compile(r'href="(\w+)\.ipynb"')
#: The picture of an exhibit in a notebook's output.
_EXHIBIT = re.compile(r'data-figure="(\w+)" src="data:image/png;base64,([^"]+)"')
_HTML_REPRESENTATIONS = ("text/html", "image/png", "text/markdown", "text/plain")


@functools.cache
def environment() -> jinja2.Environment:
    """The templates of this package, with escaping on and undefined names as errors."""
    loader = jinja2.FileSystemLoader(Path(__file__).resolve().parent / "templates")
    options: dict[str, Any] = {"undefined": jinja2.StrictUndefined, "trim_blocks": True, "lstrip_blocks": True}
    return jinja2.Environment(loader=loader, autoescape=True, **options)


def render(template: str, **values: Any) -> str:
    """A page from ``templates/<template>``; lines without trailing blanks, so that equal pages are equal files."""
    text = environment().get_template(template).render(**values)
    return "\n".join(line.rstrip() for line in text.splitlines()) + "\n"


def table_html(frame: pd.DataFrame) -> str:
    """A frame of numbers as an HTML table, formatted by ``wording``."""
    return render("table.html", table=shown_table(frame))


def data_uri(data: bytes, media_type: str) -> str:
    """``data`` as an address that an ``img`` can show without a second file."""
    return f"data:{media_type};base64,{base64.b64encode(data).decode('ascii')}"


@functools.lru_cache(maxsize=512)
def formula(tex: str, size: float = 12.0) -> Markup:
    r"""A formula as an inline image with its source as alternative text, set by matplotlib: no script, no font to fetch.

    Args:
        tex: what matplotlib's mathtext understands of TeX (``\frac``, ``\sum``, ``\mathrm``; no environments).
        size: in points.

    Raises:
        ValueError: for TeX that mathtext does not know.
    """
    import matplotlib
    from matplotlib.figure import Figure
    from matplotlib.font_manager import FontProperties
    from matplotlib.mathtext import MathTextParser

    text, font = f"${' '.join(tex.split())}$", FontProperties(size=size)
    with matplotlib.rc_context({"mathtext.fontset": "cm", "svg.hashsalt": "replication", "svg.fonttype": "path"}):
        width, height, depth, _, _ = MathTextParser("path").parse(text, dpi=72, prop=font)
        figure = Figure(figsize=(width / 72, height / 72))
        figure.text(0, depth / height, text, fontproperties=font)
        data = io.BytesIO()
        figure.savefig(data, format="svg", transparent=True, metadata={"Date": None})
    style = f"height:{height / size:.3f}em;vertical-align:{-depth / size:.3f}em"
    address = data_uri(data.getvalue(), "image/svg+xml")
    return Markup('<img class="formula" style="{}" alt="{}" src="{}">').format(style, tex.strip(), address)


def with_formulas(markdown: str) -> str:
    """Markdown with its ``$...$`` and ``$$...$$`` replaced by images; code spans are left alone."""

    def image(match: re.Match[str]) -> str:
        code, display, inline = match.groups()
        if code:
            return code
        if display:
            return f'\n\n<div class="display">{formula(display, 14.0)}</div>\n\n'
        return str(formula(inline))

    return _FORMULA.sub(image, markdown)


def notebook_page(notebook: Any, title: str, *, show_code: bool, figures: Path | None = None) -> str:
    """An executed notebook as a page of its own.

    Args:
        notebook: of nbformat 4.
        title: of the page.
        show_code: code cells unfolded; folded, a click opens them.
        figures: folder in which the pictures of exhibits are stored as <name>.png, for a page in a folder beside it that refers to
            ../figures/<name>.png. None: they stay inside the page.
    """
    from nbconvert.filters import ansi2html, markdown2html
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    formatter = HtmlFormatter(style="default", wrapcode=True)
    cells = []
    for cell in notebook.cells:
        if cell.cell_type == "markdown":
            html = _NOTEBOOK_LINK.sub(r'href="\1.html"', markdown2html(with_formulas(cell.source)))
            cells.append({"kind": "markdown", "html": Markup(html)})
        elif cell.cell_type == "code" and cell.source.strip():
            code = Markup(highlight(cell.source, PythonLexer(), formatter))
            outputs = [_output(output, ansi2html, figures) for output in cell.get("outputs", [])]
            cells.append({"kind": "code", "html": code, "outputs": [output for output in outputs if output]})
    style = Markup(formatter.get_style_defs(".highlight"))
    return render("notebook.html", title=title, cells=cells, show_code=show_code, highlight_style=style)


def _stored(html: str, figures: Path) -> str:
    """HTML whose pictures of exhibits are files in ``figures``."""

    def store(match: re.Match[str]) -> str:
        make_folder(figures)
        atomic_write(figures / f"{match[1]}.png", base64.b64decode(match[2]))
        return f'data-figure="{match[1]}" src="../figures/{match[1]}.png"'

    return _EXHIBIT.sub(store, html)


def _output(output: Any, ansi2html: Any, figures: Path | None) -> Markup | None:
    if output.output_type == "stream":
        return Markup("<pre>{}</pre>").format(Markup(ansi2html(output.text)))
    kind = next((kind for kind in _HTML_REPRESENTATIONS if kind in output.data), None)
    if kind is None:
        return None
    text = output.data[kind]
    if kind == "text/html":
        text = _NOTEBOOK_LINK.sub(r'href="\1.html"', _stored(text, figures) if figures else text)
        return Markup('<div class="wide">{}</div>').format(Markup(text))
    if kind == "image/png":
        details = output.get("metadata", {}).get("image/png", {})
        wide, alt = details.get("width", 800), details.get("alt", "figure")
        address = "data:image/png;base64," + "".join(text.split())
        image = Markup('<img class="figure scaled" style="--wide: {}px" alt="{}" src="{}">').format(wide, alt, address)
        return Markup('<div class="wide">{}</div>').format(image)
    if kind == "text/markdown":
        from nbconvert.filters import markdown2html

        html = _NOTEBOOK_LINK.sub(r'href="\1.html"', markdown2html(with_formulas(text)))
        return Markup('<div class="prose">{}</div>').format(Markup(html))
    return Markup("<pre>{}</pre>").format(Markup(ansi2html(text)))
