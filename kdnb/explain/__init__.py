"""Explanations: average feature maps in one forward pass, the methods they are compared with, and the controls."""

from kdnb.explain.evidence import ClassEvidence, class_evidence, explains_itself, layer_evidence
from kdnb.explain.maps import (
    as_found,
    average,
    average_feature_maps,
    collecting,
    receptive_fields,
    unpooled_feature_maps,
    weighted_average,
)
from kdnb.explain.methods import (
    CONTROLS,
    METHODS,
    Method,
    available,
    blurred,
    control_seed,
    drawn_controls,
    explain_all,
    methods,
    reinitialised,
    rescaled,
    upsampled,
)

__all__ = [
    "CONTROLS",
    "METHODS",
    "ClassEvidence",
    "Method",
    "as_found",
    "available",
    "average",
    "average_feature_maps",
    "blurred",
    "class_evidence",
    "collecting",
    "control_seed",
    "drawn_controls",
    "explain_all",
    "explains_itself",
    "layer_evidence",
    "methods",
    "receptive_fields",
    "reinitialised",
    "rescaled",
    "unpooled_feature_maps",
    "upsampled",
    "weighted_average",
]
