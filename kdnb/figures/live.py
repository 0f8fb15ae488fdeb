"""Figures that answer to a slider or a menu, in JupyterLab."""

import io
from collections.abc import Callable
from typing import Any

import ipywidgets as widgets
import matplotlib.pyplot as plt
from matplotlib.figure import Figure


def live(draw: Callable[..., Figure], **controls: widgets.ValueWidget) -> widgets.VBox:
    """Controls above the figure that ``draw`` makes of their values, drawn anew whenever one of them changes.

    The figure is shown by a picture widget. ipywidgets' own ``interactive_output`` sends messages to the kernel while the cell runs, and a
    program that executes the notebook may then wait for ever for the cell to end (jupyter/nbclient, issue 312).

    Args:
        draw: takes the controls' values by name.
    """
    picture = widgets.Image(format="png")

    def redraw(_: Any = None) -> None:
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
    return widgets.VBox([*controls.values(), picture])
