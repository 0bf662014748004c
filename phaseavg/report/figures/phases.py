"""The errors at the ends of phases, method by method of Table 1."""

import pandas as pd
from matplotlib.lines import Line2D

from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.of_cells import cells_in, finished, lacking, networks_in
from phaseavg.report.headline import METHODS
from phaseavg.report.study import Study

TABLES = ("t1a", "t1b", "t1c", "t1d")
AFTER = "SGD after a BN pass"
ROW_INCHES = 0.25
AVERAGED, TRAINED, PASSED = "the average", "as the optimizer left it", "after a BN pass"
LOOKS = {AVERAGED: COLOURS[0], TRAINED: COLOURS[5], PASSED: COLOURS[1]}


def errors_at_ends(study: Study, network: tuple[str, str]) -> pd.DataFrame:
    """Return the test errors at the ends of phases, a row per method, seed and end.

    Columns: schedule, method; seed; phase, counted from 1, and of how many; epoch; weights, which
    they are: the average where it has taken over, else as trained, and of SGD also after a BN pass;
    test_error (%).
    """
    rows = finished(study, cells_in(study, TABLES, network)).set_index(["table", "column"])
    ends_of = dict(list(study.metrics[study.metrics["replaced"].notna()].groupby("run_id")))
    found = []
    for schedule, methods in METHODS.items():
        for method, cell in methods.items():
            if cell not in rows.index:
                continue
            for row in rows.loc[[cell]].itertuples():
                ends = ends_of[row.run_id]
                ends = ends[ends["epoch"] <= row.epochs]  # fewer where the row is of a longer run
                for number, end in enumerate(ends.to_dict("records"), start=1):
                    place = (row.seed, number, len(ends), end["epoch"])
                    replaced = end["replaced"] and not row.before_averaging
                    key = "average.error" if replaced else "weights.error"
                    weights = AVERAGED if replaced else TRAINED
                    found.append((schedule, method, *place, weights, end[key]))
                    if method == "SGD":
                        found.append((schedule, AFTER, *place, PASSED, end["bn.error"]))
    columns = ["schedule", "method", "seed", "phase", "phases", "epoch", "weights", "test_error"]
    return pd.DataFrame(found, columns=columns)


def draw(study: Study) -> list[Drawing]:
    """Return of each network the errors at the ends of phases."""
    title = "Errors at the ends of phases (Table 1)"
    networks = networks_in(study, TABLES)
    if not networks:
        return [blank("phases", title, f"none of tables {', '.join(TABLES)} is among the cells")]
    return [_of_network(study, network, title) for network in networks]


def _of_network(study: Study, network: tuple[str, str], title: str) -> Drawing:
    name, title = f"phases-{'-'.join(network)}", f"{title}: {' '.join(network)}"
    data = errors_at_ends(study, network)
    missing = lacking(study, cells_in(study, TABLES, network))
    if data.empty:
        return blank(name, title, missing)
    places: dict[tuple[str, str], float] = {}
    heads: dict[str, float] = {}
    y = 0.0
    for schedule, lines in data.groupby("schedule", sort=False):
        heads[schedule] = y
        sgd, *others = METHODS[schedule]
        for method in (sgd, AFTER, *others):
            if method in set(lines["method"]):
                y += 1
                places[schedule, method] = y
        y += 1.6
    last = int(data["phases"].max())
    # A training of one phase, such as the cosine's, ends where the others do.
    data["panel"] = data["phase"].where(data["phase"] < data["phases"], last)
    picture = new_picture(9.5, ROW_INCHES * y + 1.3)
    panels = picture.subplots(1, last, sharey=True, squeeze=False)[0]
    for number, axes in enumerate(panels, start=1):
        shown = data[data["panel"] == number]
        for key, lines in shown.groupby(["schedule", "method"]):
            y_at, colour = places[key], LOOKS[lines["weights"].iloc[0]]
            axes.plot(lines["test_error"], [y_at] * len(lines), "|", color="black", markersize=7)
            mean, deviation = lines["test_error"].mean(), lines["test_error"].std()
            spread = None if pd.isna(deviation) else deviation
            axes.errorbar(mean, y_at, xerr=spread, color=colour, marker="o", markersize=5)
        plain(axes).spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.grid(linewidth=0.4, alpha=0.6)
        axes.set_title(
            "end of training" if number == last else f"end of phase {number}", fontsize=10
        )
        axes.set_xlabel("test error (%)")
    by_height = sorted([*places.items(), *heads.items()], key=lambda item: item[1])
    texts = [key if isinstance(key, str) else key[1] for key, _ in by_height]
    panels[0].set_yticks([height for _, height in by_height], labels=texts, fontsize=9)
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
    caption = (
        "Test error (%) at the ends of the phases, mean ± sample deviation over seeds, and each "
        "seed: of the average where it has taken over, else of the weights as the optimizer left "
        "them, and of SGD also after a BatchNorm pass. Each panel has a scale of its own."
    )
    return Drawing(name, title, caption, picture, data.drop(columns="panel"), missing)
