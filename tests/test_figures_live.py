"""A control changes the picture, and nothing is left open."""

import ipywidgets as widgets
import matplotlib.pyplot as plt

from kdnb.figures.live import live
from kdnb.pipeline import LIVE, still


def test_a_control_draws_the_figure_anew_with_its_value():
    plt.close("all")  # what another test left open
    seen = []

    def draw(temperature):
        seen.append(temperature)
        figure, axes = plt.subplots()
        axes.bar([0], [temperature])
        return figure

    slider = widgets.FloatSlider(value=1.0, min=0.5, max=20.0)
    box = live(draw, "one bar", temperature=slider)
    picture = box.children[-1]
    first = bytes(picture.value)
    slider.value = 5.0
    assert seen == [1.0, 5.0] and box.children[0] is slider
    assert (
        first.startswith(b"\x89PNG") and bytes(picture.value).startswith(b"\x89PNG") and bytes(picture.value) != first
    )
    assert not plt.get_fignums()


def test_no_output_widget_takes_part():
    figure = plt.figure()
    assert not any(isinstance(part, widgets.Output) for part in live(lambda: figure, "nothing").children)


def test_without_a_kernel_the_first_picture_stands_in_its_place():
    box = live(plt.figure, "an empty figure")
    data, metadata = box._repr_mimebundle_()
    assert LIVE in data and data["image/png"].startswith(b"\x89PNG")
    assert data["text/plain"] == metadata["image/png"]["alt"] == "an empty figure"
    kept = still({"output_type": "execute_result", "data": data, "metadata": metadata, "execution_count": 1})
    assert set(kept["data"]) == {"image/png", "text/plain"} and kept["metadata"] == metadata
