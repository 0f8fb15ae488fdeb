"""Explanations: average feature maps in one forward pass, the methods they are compared with, and the controls."""

from kdnb.explain.maps import as_found, average, average_feature_maps, collecting, receptive_fields, weighted_average
from kdnb.explain.methods import CONTROLS, METHODS, Method, blurred, explain_all, methods, reinitialised, rescaled, upsampled

__all__ = [
    "CONTROLS",
    "METHODS",
    "Method",
    "as_found",
    "average",
    "average_feature_maps",
    "blurred",
    "collecting",
    "explain_all",
    "methods",
    "receptive_fields",
    "reinitialised",
    "rescaled",
    "upsampled",
    "weighted_average",
]
