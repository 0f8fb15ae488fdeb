"""A control changes the picture, and nothing is left open."""

import ipywidgets as widgets
import matplotlib.pyplot as plt

from kdnb.figures.live import live


def test_a_control_draws_the_figure_anew_with_its_value():
    seen = []

    def draw(temperature):
        seen.append(temperature)
        figure, axes = plt.subplots()
        axes.bar([0], [temperature])
        return figure

    slider = widgets.FloatSlider(value=1.0, min=0.5, max=20.0)
    box = live(draw, temperature=slider)
    picture = box.children[-1]
    first = bytes(picture.value)
    slider.value = 5.0
    assert seen == [1.0, 5.0] and box.children[0] is slider
    assert first.startswith(b"\x89PNG") and bytes(picture.value).startswith(b"\x89PNG") and bytes(picture.value) != first
    assert not plt.get_fignums()


def test_no_output_widget_takes_part():
    figure = plt.figure()
    assert not any(isinstance(part, widgets.Output) for part in live(lambda: figure).children)
