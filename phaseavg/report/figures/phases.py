"""Draw test errors at phase ends, by column of Table 1."""

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from phaseavg.report.figures.style import COLOURS, new_picture, plain
from phaseavg.report.study import Study

ROW_INCHES = 0.25
AVERAGED, TRAINED, PASSED = "the average", "as the optimizer left it", "after a BN pass"
LOOKS = {AVERAGED: COLOURS[0], TRAINED: COLOURS[5], PASSED: COLOURS[1]}


def errors_at_ends(study: Study) -> pd.DataFrame:
    """Return the test errors (%) at phase ends, a row per cell, seed and phase end.

    Columns: table, column; seed; phase, counted from 1; phases, their number; epoch; weights: the
    average if it replaced the trained weights, else the trained weights, in runs without averaging
    also after a BatchNorm pass; test_error.
    """
    ends_of = dict(list(study.metrics[study.metrics["replaced"].notna()].groupby("run_id")))
    errors = []
    for row in study.finished.itertuples():
        ends = ends_of[row.run_id]
        ends = ends[ends["epoch"] <= row.epochs]  # the run may be longer
        averages = ends["replaced"].any() and not row.before_averaging
        for number, end in enumerate(ends.to_dict("records"), start=1):
            place = (row.table, row.column, row.seed, number, len(ends), end["epoch"])
            if averages and end["replaced"]:
                errors.append((*place, AVERAGED, end["average.error"]))
            else:
                errors.append((*place, TRAINED, end["weights.error"]))
            if not averages:
                errors.append((*place, PASSED, end["bn.error"]))
    columns = ["table", "column", "seed", "phase", "phases", "epoch", "weights", "test_error"]
    return pd.DataFrame(errors, columns=columns)


def draw(study: Study) -> tuple[Figure, pd.DataFrame]:
    """Draw the errors at phase ends, a panel per phase.

    Args:
        study: a study of Table 1 with one network.
    """
    data = errors_at_ends(study)
    last = int(data["phases"].max())
    drawn = set(data["table"])
    order = dict.fromkeys((c.table, c.column) for c in study.request.cells if c.table in drawn)
    places, heads, y = {}, {}, 0.0
    for table in dict.fromkeys(table for table, _ in order):
        heads[f"Table {table[1:]}"] = y
        for cell in (key for key in order if key[0] == table):
            for weights in (TRAINED, PASSED):
                lines = data[(data["table"] == table) & (data["column"] == cell[1])]
                if len(lines) and (weights == TRAINED or (lines["weights"] == PASSED).any()):
                    y += 1
                    places[*cell, weights] = y
        y += 1.6
    # Runs with fewer phases, such as the cosine schedule's, end in the last panel.
    panel_of = data["phase"].where(data["phase"] < data["phases"], last)
    picture = new_picture(9.5, ROW_INCHES * y + 1.3)
    panels = picture.subplots(1, last, sharey=True, squeeze=False)[0]
    for number, axes in enumerate(panels, start=1):
        shown = data[panel_of == number]
        for (table, column, weights), lines in shown.groupby(["table", "column", "weights"]):
            y_at = places[table, column, PASSED if weights == PASSED else TRAINED]
            axes.plot(lines["test_error"], [y_at] * len(lines), "|", color="black", markersize=7)
            mean, deviation = lines["test_error"].mean(), lines["test_error"].std()
            spread = None if pd.isna(deviation) else deviation
            axes.errorbar(mean, y_at, xerr=spread, color=LOOKS[weights], marker="o", markersize=5)
        plain(axes).spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.set_title(
            "end of training" if number == last else f"end of phase {number}", fontsize=10
        )
        axes.set_xlabel("test error (%)")
    texts = {y: f"{c}, BN pass" if w == PASSED else c for (_, c, w), y in places.items()}
    texts |= {y: table for table, y in heads.items()}
    panels[0].set_yticks(list(texts), labels=list(texts.values()), fontsize=9)
    for label in panels[0].get_yticklabels():
        if label.get_text() in heads:
            label.set_fontweight("bold")
    panels[0].set_ylim(y - 1, -0.8)
    handles = [
        Line2D([], [], color=colour, marker="o", markersize=5, label=word)
        for word, colour in LOOKS.items()
    ]
    handles.append(Line2D([], [], color="black", marker="|", linewidth=0, label="a seed"))
    picture.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False)
    return picture, data
