"""What was found, for readers in a hurry: the README's findings, their figure, and ``FINDINGS.md``.

All are made from the recorded runs: ``python -m kdnb.findings`` writes them anew from ``data/measured``;
``python -m kdnb.findings runs/...`` (``make record RUN=...``) records a finished run before. A finding is a question
and what was counted or measured: it has no word that another record could make false.
"""

import argparse
import hashlib
import json
import re
import sys
from collections import Counter
from functools import partial
from pathlib import Path

import pandas as pd

from kdnb import sources
from kdnb.claims import CLAIMS, FAILS, HOLDS, MARGIN, NO_EFFECT, UNDECIDED, stated
from kdnb.datasets import slices
from kdnb.errors import ArtefactError, exit_status
from kdnb.evaluation import equivalent
from kdnb.figures.explain import method_kind, method_name
from kdnb.files import atomic_write
from kdnb.measured import (
    MEASURED,
    PUBLISHED,
    answer,
    counted,
    in_brief,
    judged,
    persons_on_both_sides,
    readme_table,
    record,
    recorded,
    span,
    tables_of,
    tested,
    together,
)
from kdnb.settings import profiles, run_name
from kdnb.sources import REPOSITORY

README, PAGE = REPOSITORY / "README.md", REPOSITORY / "FINDINGS.md"
PICTURE = MEASURED / "findings.png"
NOTHING = "No full run is recorded yet (`make record RUN=runs/...`)."
_SAID = {HOLDS: "yes", FAILS: "no", NO_EFFECT: "no effect", UNDECIDED: "undecided"}
DATA_SETS = {
    "alzheimer": "Alzheimer MRI",
    "brain_tumor": "brain MRI",
    "eye_disease": "eye disease",
    "figshare_brain": "figshare's brain MRI",
    "phantom": "generated images",
}
# What the middle panel compares, and the loss of each: on real images the teacher's part with all labels is recorded
# for the paper's loss.
GAINS = {
    "distillation_adds": "all labels, paper's loss",
    "few_labels_without_t2": "few labels, paper's loss",
    "few_labels": "few labels, loss with T²",
}
# Explanations of the right panel besides the best single layer: of the network, then those that know nothing of what
# was learned.
SHOWN = ("integrated_gradients", "shap", "feature_maps_mean", "feature_maps_unpooled", "grad_cam")


def leaks(measured: Path = MEASURED) -> pd.DataFrame:
    """The taught student's test accuracy on the published split and without leaks.

    Args:
        measured: where records are kept.

    Returns:
        A row a data set and split, where both are recorded: columns dataset, split, accuracy, lo, hi (means over seeds,
        95% bootstrap intervals).
    """
    runs, names = recorded(measured), {"split_protocol": "split", "accuracy_lo": "lo", "accuracy_hi": "hi"}
    columns = ["dataset", "split_protocol", "accuracy", "accuracy_lo", "accuracy_hi"]
    taught = runs[runs["model"] == "student_kd"].reindex(columns=["profile", "run_seed", *columns])
    taught = taught[taught.groupby(["dataset", "profile", "run_seed"])["split_protocol"].transform("nunique") > 1]
    length = taught["profile"].map(list(profiles()).index)  # of several profiles the longest counts
    longest = length == length.groupby(taught["dataset"]).transform("max")
    return taught.loc[longest, columns].rename(columns=names).reset_index(drop=True)


def gains(measured: Path = MEASURED) -> pd.DataFrame:
    """What the teacher adds to the student's accuracy on each data set, without leaks where there is such a run.

    Args:
        measured: where records are kept.

    Returns:
        Columns dataset, what (as in :data:`GAINS`), difference, lo, hi, in points, and whether it is told from none.
    """
    claims = tested(judged(measured))
    claims = claims[claims["claim"].isin(GAINS)]
    table = claims.assign(
        what=claims["claim"].map(GAINS), difference=claims["measured"], told=claims["verdict"].isin([HOLDS, FAILS])
    )
    columns = ["dataset", "what", "difference", "lo", "hi", "told"]
    in_order = table.assign(place=table["what"].map(list(GAINS.values()).index)).sort_values(["place", "dataset"])
    return in_order.reindex(columns=columns).reset_index(drop=True)


def marks(measured: Path = MEASURED) -> pd.DataFrame:
    """How often a map's highest point lies on the lesion, on the first recorded run of generated images.

    Args:
        measured: where records are kept.

    Returns:
        Rows: :data:`SHOWN`, the average map of the single layer that does best (chosen by this very number), the best
        of the controls. Columns: method, name (in words), mean, lo, hi, n (images), cost (in forward passes, the
        largest batch timed; NaN where it was not timed).
    """
    summaries = {
        run: table for run, table in tables_of("localisation_summary", measured).items() if run.startswith("phantom")
    }
    if not summaries:
        return pd.DataFrame(columns=["method", "name", "mean", "lo", "hi", "n", "cost"])
    run, table = next(iter(summaries.items()))
    table = table.query("`class` == 'all' and model == 'student_kd' and metric == 'pointing_game'").set_index("method")
    layers = table.index.str.fullmatch(r"feature_maps_layer\d")
    controls = [method_kind(method) == "controls" for method in table.index]
    methods = [*SHOWN, table.loc[layers, "mean"].idxmax(), table.loc[controls, "mean"].idxmax()]
    timings = tables_of("met", measured)[run].query("model == 'student_kd'").sort_values("batch_size")
    cost = timings.groupby("method").last()["forward_equivalents"].rename("cost")
    scores = table.loc[[method for method in methods if method in table.index], ["mean", "lo", "hi", "n"]].join(cost)
    scores = scores.sort_values("mean", ascending=False, kind="stable").reset_index()
    return scores.assign(name=scores["method"].map(named))


def _data_set_name(dataset: str) -> str:
    return DATA_SETS.get(dataset, f"`{dataset}`")


def _votes(asked: pd.DataFrame, claim: str) -> str:
    """In how many of the real data sets that can test it a claim holds, and whether it does on generated images.

    The two are told apart: what holds on images made for it says nothing of patients.

    Returns:
        Such as ``real 2 of 4 (1 against), generated yes``.
    """
    rows = asked[asked["claim"] == claim]
    generated = rows["generated"].astype(bool)
    real = rows.loc[~generated, "verdict"]
    phrases = [f"real {counted(real)}"] if len(real) else []
    phrases += [f"generated {_SAID[verdict]}" for verdict in rows.loc[generated, "verdict"].iloc[-1:]]
    return ", ".join(phrases) or "not yet asked"


def _points(row: pd.Series) -> str:
    """A difference in points with its 95% interval, ``**+4.8 points** [+0.5, +9.2]``."""
    value, lo, hi = row[["difference", "lo", "hi"]].astype(float)
    return f"**{value:+z.1f} points** [{lo:+z.1f}, {hi:+z.1f}]"


def _over_real(claims: pd.DataFrame, claim: str) -> str:
    """The effect of a claim over the real data sets together, without leaks where there are two such runs.

    Returns:
        The effect with its interval and over how many data sets; where there are not two of them, that it is not known.
    """
    pooled, how = together(claims, claim, without_leaks=True), " without leaks"
    if pooled is None:
        pooled, how = together(claims, claim), ""
    if pooled is None:
        return "not yet measured on two real data sets"
    effect, count = pooled
    none = ", no effect" if equivalent(effect["lo"], effect["hi"], 100 * MARGIN) else ""
    return f"{_points(effect)} over {count} real sets{how}{none}"


def _knowledge(claims: pd.DataFrame, asked: pd.DataFrame) -> str:
    """Of the gain with few labels, what is beyond teachers that know nothing of the images.

    Returns:
        The gain over real data sets together and on generated images; where there are not two real ones, on each data
        set that was asked.
    """
    table = asked[asked["claim"] == "knowledge"].assign(difference=lambda rows: rows["measured"]).dropna(subset="lo")
    if table.empty:
        return "not yet asked"
    if any(together(claims, "knowledge", without_leaks=apart) for apart in (True, False)):
        generated = table[table["generated"].astype(bool)]
        phrases = [_over_real(claims, "knowledge")]
    else:
        generated, phrases = table, []
    phrases += [f"{_points(row)} on {_data_set_name(row['dataset'])}" for _, row in generated.iterrows()]
    gain = "; ".join([phrases[0], *(_plain(phrase) for phrase in phrases[1:])])
    return f"{gain}: {_votes(asked, 'knowledge')}"


def _plain(text: str) -> str:
    """Markdown without what is bold."""
    return text.replace("**", "")


def _without_leaks(measured: Path) -> str:
    """The accuracy without leaks beside the published split's, the widest gap first; chance, where that is all."""
    gaps: list[tuple[float, str, str]] = []
    commonest = _commonest_without_leaks(measured)
    for dataset, rows in leaks(measured).groupby("dataset", sort=False):
        official = rows["split"] == "official"
        before, after = rows.loc[official].iloc[0], rows.loc[~official].iloc[0]
        gap = before["accuracy"] - after["accuracy"]
        name = _data_set_name(dataset)
        chance = commonest.get(dataset, 0.0)
        nothing = f" (always naming the commonest class: {chance:.3f})" if after["lo"] <= chance else ""
        interval = f"[{after['lo']:.3f}, {after['hi']:.3f}]"
        gaps.append(
            (gap, f"{after['accuracy']:.3f}", f"{interval} instead of {before['accuracy']:.3f} on {name}{nothing}")
        )
    gaps.sort(reverse=True)
    return "; ".join(
        f"{accuracy if i else f'**{accuracy}**'} {published}" for i, (_, accuracy, published) in enumerate(gaps)
    )


def _commonest_without_leaks(measured: Path) -> dict[str, float]:
    """The share of the commonest class in a data set's test images without leaks: the accuracy of who looks at none."""
    counts = {run: table.groupby("class")["n"].first() for run, table in tables_of("per_class", measured).items()}
    return {run.split("-")[0]: float(n.max() / n.sum()) for run, n in counts.items() if run.endswith("-leak_free")}


def _which_map(measured: Path) -> str:
    """How often each method's highest point lies on the lesion, the best first, and what each costs."""
    table = marks(measured)
    named_here = table["method"].isin(["feature_maps_mean", "feature_maps_unpooled", "grad_cam"])
    controls, phrases = table["method"].map(method_kind) == "controls", []
    for i, row in table[(table.index == 0) | named_here | controls].iterrows():
        share = f"**{row['mean']:.0%}** of images" if i == 0 else f"{row['mean']:.0%}"
        cost = f" ({row['cost']:,.1f}{' forward passes' * (i == 0)})" if pd.notna(row["cost"]) else ""
        phrases.append(f"{row['name']} in {share}{cost}")
    return "; ".join(phrases) or "not yet measured"


def _span(asked: pd.DataFrame, claim: str) -> str:
    """The least and the most that a claim's number was, in points, over the data sets that can test it."""
    values = asked.loc[asked["claim"] == claim, "measured"]
    return span(values, " points") if len(values) else "what is not yet measured"


def _beyond_the_usual_place(asked: pd.DataFrame) -> str:
    """What average maps gain, by pixel AUC, over the best control, lesions' usual place included."""
    rows = asked.query("claim == 'maps_mark'").sort_values("run", ascending=False)
    phrases = [
        f"{row.measured:+.1f} points [{row.lo:+.1f}, {row.hi:+.1f}] on {_data_set_name(row.dataset)}"
        for row in rows.itertuples()
    ]
    return ", ".join(phrases) or "not yet measured"


def _few_labels(asked: pd.DataFrame, measured: Path) -> str:
    """How many labels a class the claim about few labels is about: ``20 to 50 a class``."""
    tables = tables_of("few_images", measured)
    runs = asked.loc[asked["claim"] == "few_labels", "run"]
    most = [tables[run]["images_per_class"].max() for run in runs if run in tables]
    return (
        f"{' to '.join(f'{count:.0f}' for count in dict.fromkeys((min(most), max(most))))} a class"
        if most
        else "in each class"
    )


def named(method: str) -> str:
    """A method in a sentence or on an axis; of a control, that it knows nothing of what was learned."""
    name = "where lesions usually lie" if method == "mean_mask" else method_name(method)
    if method.startswith("feature_maps"):
        return f"average map, {name.replace('mean of layers', 'all layers')}"
    return f"{name} (control)" if method_kind(method) == "controls" else name


def findings(measured: Path = MEASURED) -> str:
    """The findings as Markdown, those against hopes first.

    Args:
        measured: where records are kept.

    Returns:
        A numbered list; each is a question, and numbers from the recorded runs, the one to keep in bold.
    """
    if not len(recorded(measured)):
        return NOTHING
    persons, claims = persons_on_both_sides(), judged(measured)
    asked, over_real = tested(claims), partial(_over_real, claims)
    votes = partial(_votes, asked)
    return "\n".join(
        [
            (
                f"1. **What of the accuracy is leaks?** Without leaks the student's accuracy is "
                f"{_without_leaks(measured)}. {persons[0].upper()}{persons[1:]}."
            ),
            (
                f"2. **Does the student keep up?** At most a point behind its teacher: "
                f"{votes('student_against_teacher')}. With all labels the paper's loss adds "
                f"{over_real('distillation_adds')}. With T² it adds: {votes('teacher_adds')}; an ensemble of students "
                f"as teacher: {votes('better_teacher')}; with T² and longer training (splits that leak): "
                f"{votes('long_training')}."
            ),
            (
                f"3. **When does a teacher help?** With few labels, {_few_labels(asked, measured)}, and T² in the "
                f"loss it adds {over_real('few_labels')}: {votes('few_labels')}. Without T²: "
                f"{votes('few_labels_without_t2')}. Its word on images without labels adds "
                f"{_span(asked, 'unlabelled_images')}: {votes('unlabelled_images')}."
            ),
            (
                f"4. **Is that knowledge of the images, or just a softer target?** What it adds beyond teachers just "
                f"as soft that know nothing of the image: {_knowledge(claims, asked)}."
            ),
            (
                f"5. **Which map shows where the lesion is?** On generated images (one student) the highest point lies "
                f"on it: {_which_map(measured)}. AUC of lesion pixels, average maps minus the best control: "
                f"{_beyond_the_usual_place(asked)}."
            ),
            (
                f"6. **Do average maps show what was learned?** More than maps that know nothing of it: "
                f"**{votes('maps_over_controls')}**. As faithful as Grad-CAM: {votes('maps_as_grad_cam')}; as SHAP "
                f"with signs: {votes('maps_as_shap_signed')}. Better where taught: {votes('teaching_explains')}. They "
                f"are the same for every class."
            ),
        ]
    )


def caveats(measured: Path = MEASURED) -> str:
    """What the recorded runs differ from the paper's in, and what the verdicts rest on, as a paragraph of Markdown."""
    runs = recorded(measured)
    if not len(runs):
        return NOTHING
    sides = runs["pixels"].dropna().astype(int)
    pixels = " to ".join(map(str, dict.fromkeys((sides.min(), sides.max()))))
    starts = ", ".join(
        "random weights" if start == "scratch" else f"{start} weights" for start in sorted(set(runs["teacher_weights"]))
    )
    changed_after = sum("after" in stated(claim) for claim in CLAIMS)
    speaking = set(tested(judged(measured))["run"])
    older = [
        run
        for run, table in tables_of("fidelity_summary", measured).items()
        if run in speaking and not (table["metric"] == "recovered_10").any()
    ]
    older_measure = f" In {len(older)} of the runs faithfulness was judged by an older measure, which most maps pass."
    return (
        f"**Caveats.** Teachers start from {starts}, the paper's from ImageNet's; a record has one, "
        f"and one student whose maps are judged: the luck of both is in no interval."
        f"{_one_draw(measured)} Images have {pixels} pixels a side, the paper's 224. "
        f"{changed_after} of the {len(CLAIMS)} rules that decide were made or changed after runs had been seen "
        f"([chapter 10](notebooks/10_report.ipynb) says which).{older_measure * bool(older)} "
        f"This is **not a medical device**."
    )


def _one_draw(measured: Path) -> str:
    """In how many records the luck of which few images have a label is in no interval; younger ones draw anew."""
    older = set(tables_of("few_images", measured)) - set(tables_of("tests_transparent", measured))
    return f" In {len(older)} records all seeds share one draw of few labelled images." * bool(older)


def limits(measured: Path = MEASURED) -> str:
    """What a reader of ``FINDINGS.md`` must know of these records, as far as numbers say it: a list in Markdown."""
    told = (_without_a_person(), _short_of_the_paper(measured), _by_older_rules(measured), _before_pooling(measured))
    return "\n".join(f"- {sentence}" for sentence in told if sentence)


def _without_a_person() -> str:
    """Of how many of brain MRI's tumour images nobody knows whose they are."""
    known = Counter(name.split("/")[1] for name in slices.known("figshare_brain", "brain_tumor_slices.csv"))
    counts = sources.table()["brain_tumor"]["counts"]
    unknown = {name: counts[name] - count for name, count in sorted(known.items()) if counts[name] > count}
    images = " and ".join(f"{count} {name}" for name, count in unknown.items())
    return (
        f"It is not known whose {images} images of brain MRI are, nor whose those without a tumour. Copies stay "
        "together; other images of such a person may stand on both sides of a split that is called without leaks."
    )


def _short_of_the_paper(measured: Path) -> str:
    """How far brain MRI's taught student stays behind the paper's, and what it was given."""
    runs = recorded(measured)
    taught = runs.query("dataset == 'brain_tumor' and split_protocol == 'official' and model == 'student_kd'")
    published = pd.read_csv(PUBLISHED).query("dataset == 'brain_tumor' and model == 'student_kd'")["accuracy"].iloc[0]
    if taught.empty or taught["accuracy"].iloc[-1] >= published:
        return ""
    row = taught.iloc[-1]
    folder = measured / run_name(row["dataset"], row["profile"], row["run_seed"])
    budget = json.loads((folder / "provenance.json").read_text(encoding="utf-8"))["budget"]
    filters = " to ".join(str(end(budget["student_widths"])) for end in (min, max))
    return (
        f"On brain MRI's published split the taught student reaches {row['accuracy']:.3f}, the paper's "
        f"{published:.3f}: to be quick, profile `{row['profile']}` gives it {filters} filters a layer and "
        f"{budget['student_epochs']} epochs. Twice as many of both have been seen to exceed the paper's, in an "
        "exploration that is not recorded."
    )


def _by_older_rules(measured: Path) -> str:
    """Which records cannot be asked again about class evidence and about what teaching does to maps."""
    kept = set(tables_of("tests_evidence", measured)) & set(tables_of("tests_teaching", measured))
    asked = {run for run, table in tables_of("claims", measured).items() if "teaching_explains" in set(table["claim"])}
    lacking = ", ".join(f"`{run}`" for run in sorted(asked - kept))
    return (
        f"The records {lacking} do not keep the comparisons of class evidence and of taught students' maps: their "
        "verdicts on these are by the rules of their day."
    ) * bool(lacking)


def _before_pooling(measured: Path) -> str:
    """How often the highest point of the average map lies on the lesion, taken before pooling and after it."""
    means = marks(measured).set_index("method")["mean"]
    if not {"feature_maps_mean", "feature_maps_unpooled"} <= set(means.index):
        return ""
    before, after = means["feature_maps_unpooled"], means["feature_maps_mean"]
    return (
        "The paper's formula does not say where in a layer maps are averaged. Those that are judged here are what a "
        "layer hands on, after pooling, since any network has these; the authors' release takes them before, twice as "
        f"fine. On generated images the highest point of the finer ones lies on the lesion in {before:.0%}, of those "
        f"judged in {after:.0%}; the latter stay the default because their rules came first."
    )


def with_part(text: str, name: str, part: str) -> str:
    """The text with what stands between the two markers of ``name`` replaced."""
    return re.sub(
        rf"(<!-- {name} -->\n).*?(<!-- /{name} -->)",
        lambda markers: f"{markers[1]}{part}\n{markers[2]}",
        text,
        flags=re.DOTALL,
    )


def readme_now(readme: str, measured: Path = MEASURED) -> str:
    """The README with its findings and caveats as the recorded runs have them."""
    return with_part(with_part(readme, "findings", findings(measured)), "caveats", caveats(measured))


def page_now(page: str, measured: Path = MEASURED) -> str:
    """``FINDINGS.md`` with its answers, its table and its limits as the recorded runs have them."""
    for name, text in {"brief": in_brief, "answer": answer, "measured": readme_table, "limits": limits}.items():
        page = with_part(page, name, text(measured))
    return page


def drawn_from(measured: Path = MEASURED) -> str:
    """SHA-256 of the numbers in the figure: the picture carries it, so that a test knows whether it is current."""
    tables = (leaks(measured), gains(measured), marks(measured))
    return hashlib.sha256(
        "".join(table.to_csv(index=False, float_format="%.4g") for table in tables).encode()
    ).hexdigest()


def _for_people(table: pd.DataFrame) -> pd.DataFrame:
    """The table with data sets by their names."""
    return table.assign(dataset=table["dataset"].map(_data_set_name)) if "dataset" in table else table


def draw(path: Path, measured: Path = MEASURED) -> None:
    """Write the figure of three panels as a PNG: leaks, what the teacher adds, which map marks the lesion."""
    import matplotlib as mpl

    mpl.use("Agg")
    from kdnb.figures.findings import three_panels

    figure = three_panels(*(_for_people(table) for table in (leaks(measured), gains(measured), marks(measured))))
    figure.savefig(path, format="png", dpi=110, metadata={"Software": None, "Description": drawn_from(measured)})


def show() -> None:
    """Bring README, ``FINDINGS.md`` and the figure up to date with the recorded runs."""
    for page, now in ((README, readme_now), (PAGE, page_now)):
        text = now(page.read_text(encoding="utf-8"))
        with atomic_write(page) as path:
            path.write_text(text, encoding="utf-8")
    with atomic_write(PICTURE) as path:
        draw(path)


def _record_and_show(run: str | None) -> None:
    if run == "":
        raise ArtefactError("RUN is empty: name a finished run, such as make record RUN=runs/phantom-quick-seed0.")
    if run is not None:
        print(f"kdnb: recorded in {record(Path(run)).relative_to(REPOSITORY)}")
    show()


def main(arguments: list[str] | None = None) -> int:
    """Record a run, if one is named, and bring the README, FINDINGS.md and their figure up to date."""
    parser = argparse.ArgumentParser(prog="python -m kdnb.findings", description=main.__doc__)
    parser.add_argument("run", nargs="?", help="a run's folder")
    options = parser.parse_args(arguments)
    return exit_status(lambda: _record_and_show(options.run))


if __name__ == "__main__":
    sys.exit(main())
