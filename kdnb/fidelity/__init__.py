"""How far an explanation can be trusted: fidelity to the model, truth where masks are known, and sanity."""

from kdnb.fidelity.localise import localisation, mass_ratio, pixel_auc, pointing_game, rank_accuracy
from kdnb.fidelity.perturb import (
    deletion_insertion,
    drop_increase,
    imputed,
    infidelity,
    relevance_rank,
    road,
    sensitivity_max,
    teacher_student_agreement,
)
from kdnb.fidelity.sanity import cascade, class_sensitivity, reader_features, reader_hits, spearman
from kdnb.fidelity.shortcut import shortcut_student
from kdnb.fidelity.tables import (
    LOW_FIDELITY,
    LOWER_IS_BETTER,
    Sample,
    captum_rows,
    class_row,
    draw_sample,
    fidelity_rows,
    localisation_rows,
    long_rows,
    paired,
    side_by_side,
    summary,
)

__all__ = [
    "LOWER_IS_BETTER",
    "LOW_FIDELITY",
    "Sample",
    "captum_rows",
    "cascade",
    "class_row",
    "class_sensitivity",
    "deletion_insertion",
    "draw_sample",
    "drop_increase",
    "fidelity_rows",
    "imputed",
    "infidelity",
    "localisation",
    "localisation_rows",
    "long_rows",
    "mass_ratio",
    "paired",
    "pixel_auc",
    "pointing_game",
    "rank_accuracy",
    "reader_features",
    "reader_hits",
    "relevance_rank",
    "road",
    "sensitivity_max",
    "shortcut_student",
    "side_by_side",
    "spearman",
    "summary",
    "teacher_student_agreement",
]
