"""Controls that redraw a picture in JupyterLab; a page without a kernel shows the first picture."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
from markupsafe import escape
from matplotlib.figure import Figure

from replication.notebooks.display import show_figure


class Explorer:
    """A picture with controls: one output that is a widget in a live front end and an image everywhere else."""

    def __init__(self, box: widgets.Widget, image: Any) -> None:
        self.box, self.image = box, image

    def _repr_mimebundle_(self, include: Any = None, exclude: Any = None) -> tuple[dict[str, Any], dict[str, Any]]:
        still = base64.b64encode(self.image.data).decode("ascii")
        details = {"width": self.image.width, "alt": self.image.alt}
        return {**self.box._repr_mimebundle_(), "image/png": still}, {"image/png": details}


def explore(draw: Callable[..., Figure], alt: str, **controls: widgets.Widget) -> Explorer:
    """Show ``draw(**values)`` and draw it again whenever a control changes.

    Args:
        draw: takes the value of each control by its name. A ValueError (the rule refuses the setting) is shown as text, and the
            picture stays as it was.
        alt: the alternative text of the picture.
        controls: widgets with a ``value``; the image shows their first values.
    """
    first = show_figure(draw(**{name: control.value for name, control in controls.items()}), alt)
    shown = widgets.Image(value=first.data, format="png", layout={"max_width": "100%", "width": f"{first.width}px"})
    note = widgets.HTML()

    def redraw(change: Any) -> None:
        try:
            drawn = show_figure(draw(**{name: control.value for name, control in controls.items()}), alt)
        except ValueError as error:
            note.value = str(escape(str(error)))
            return
        note.value = ""
        shown.layout.width = f"{drawn.width}px"
        shown.value = drawn.data

    for name, control in controls.items():
        control.description = control.description or name.replace("_", " ")
        control.style.description_width = "initial"
        if hasattr(control, "continuous_update"):
            control.continuous_update = False
        control.observe(redraw, names="value")
    return Explorer(widgets.VBox([*controls.values(), note, shown]), first)
