"""Figures: functions from tables and arrays to a matplotlib Figure, a file for each subject.

Colours are Okabe and Ito's, told apart by colour-blind readers; heat maps use viridis.
"""

import seaborn as sns

COLOURS = {
    "teacher": "#000000",
    "student_ce": "#0072B2",
    "student_ls": "#56B4E9",
    "student_released": "#E69F00",
    "student_kd": "#009E73",
    "student_kd_t2": "#D55E00",
    "student_dist": "#CC79A7",
    "student_dkd": "#CC79A7",
    "student_standardised": "#CC79A7",
}
NAMES = {
    "teacher": "teacher",
    "student_ce": "student, cross-entropy",
    "student_ls": "student, label smoothing",
    "student_released": "student, loss as released",
    "student_kd": "student, the paper's loss",
    "student_kd_t2": "student, the paper's loss with T²",
    "student_dist": "student, DIST",
    "student_dkd": "student, DKD",
    "student_standardised": "student, standardised logits",
}


def theme() -> None:
    """One look for every figure."""
    sns.set_theme(context="notebook", style="whitegrid", font_scale=0.9, rc={"figure.constrained_layout.use": True})
