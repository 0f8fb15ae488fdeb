"""Solutions of exercises 3; each function replaces the blank of its name."""

import numpy as np
from scipy.stats import t as student_t


def paired(a, b):
    gap = a.astype(float) - b
    return gap.mean(), gap.mean(axis=1).var(ddof=1) / len(gap)


def of_images(values, groups):
    names = np.unique(groups)
    parts = [values[groups == name] for name in names]
    residuals = np.array([len(part) / len(values) * (part.mean() - values.mean()) for part in parts])
    return len(names) / (len(names) - 1) * (residuals**2).sum()


def interval(difference, of_seeds, seeds, of_images, groups):
    variance = of_seeds + of_images
    freedom = variance**2 / (of_seeds**2 / (seeds - 1) + of_images**2 / (groups - 1))
    half = student_t.ppf(0.975, freedom) * np.sqrt(variance)
    return difference - half, difference + half


def holm(p):
    order = np.argsort(p)
    stepped = np.maximum.accumulate(np.minimum(1, p[order] * np.arange(len(p), 0, -1)))
    adjusted = np.empty(len(p))
    adjusted[order] = stepped
    return adjusted


def verdict(lo, hi, margin=0.01):
    if lo > 0 or hi < 0:
        return "adds" if lo > 0 else "takes"
    return "no effect" if -margin <= lo and hi <= margin else "undecided"
