"""Figures that answer to a slider or a menu, in JupyterLab."""

import io
from collections.abc import Callable

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


class _WithPicture(widgets.VBox):
    """A box of widgets whose output carries its first picture, too, for a page that has no kernel for the widgets."""

    picture: bytes
    alt: str

    def _repr_mimebundle_(self, **options: object) -> tuple[dict[str, object], dict[str, object]]:
        view = super()._repr_mimebundle_(**options)
        return {**view, "image/png": self.picture, "text/plain": self.alt}, {"image/png": {"alt": self.alt}}


def live(draw: Callable[..., Figure], alt: str, **controls: widgets.ValueWidget) -> widgets.VBox:
    """Controls above the figure that ``draw`` makes of their values, drawn anew whenever one of them changes.

    Where no kernel runs (a committed notebook, the book) the figure of the controls' first values stands in its place.

    The figure is shown by a picture widget. ipywidgets' own ``interactive_output`` sends messages to the kernel while
    the cell runs, and a program that executes the notebook may then wait for ever for the cell to end
    (jupyter/nbclient, issue 312).

    Args:
        draw: takes the controls' values by name.
        alt: the first figure in words.
        controls: sliders and menus.

    Returns:
        What a cell shows as its value.
    """
    picture = widgets.Image(format="png")

    def redraw(_: object = None) -> None:
        figure = draw(**{name: control.value for name, control in controls.items()})
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=100)
        plt.close(figure)
        picture.value = file.getvalue()

    for control in controls.values():
        control.observe(redraw, "value")
    redraw()
    picture.layout.max_width = "100%"
    picture.layout.object_fit = "contain"
    box = _WithPicture([*controls.values(), picture])
    box.picture, box.alt = bytes(picture.value), alt
    return box
