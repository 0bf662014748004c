"""What training the common beginnings of runs once saves, by the configs and by the records."""

from collections.abc import Mapping

import pandas as pd

from phaseavg.report.figures.drawing import COLOURS, Drawing, blank, new_picture, plain
from phaseavg.report.figures.of_cells import command
from phaseavg.report.headline import cost
from phaseavg.report.study import Study
from phaseavg.sweep.cells import Run
from phaseavg.sweep.plan import COUNTS, counted

ALL, RECORDED, TRAINED = "all cells", "runs with a record", "trained"


def counts(runs: Mapping[str, Run], records: pd.DataFrame) -> pd.DataFrame:
    """Return the epochs of runs by data set and network.

    Columns: dataset, model; what, all cells or the runs with a record; runs, how many different
    ones; by `COUNTS`, as asked for, after merging equal runs, shared; trained, what the records say
    (NaN of all cells).

    Args:
        runs: by run id.
        records: of these that have ended, from `load_runs`.
    """
    by_network: dict[tuple[str, str], dict[str, Run]] = {}
    for run_id, run in runs.items():
        network = (run.cells[0].dataset, run.cells[0].model)
        by_network.setdefault(network, {})[run_id] = run
    rows = []
    for network, members in by_network.items():
        own = records[records["run_id"].isin(members.keys())]
        ended = {run_id: members[run_id] for run_id in own["run_id"]}
        for what, some in ((ALL, members), (RECORDED, ended)):
            line = dict(zip(("dataset", "model"), network, strict=True))
            line |= {"what": what, "runs": len(some), **counted(some)}
            rows.append(line | ({} if what == ALL else {TRAINED: cost(own)[0]}))
    return pd.DataFrame(rows, columns=["dataset", "model", "what", "runs", *COUNTS, TRAINED])


def draw(study: Study) -> list[Drawing]:
    """Return the epochs that are asked for, that are left after sharing, and that were trained."""
    name, title = "sharing", "Epochs that sharing saves"
    if not study.runs:
        return [blank(name, title, "there are no cells")]
    data = counts(study.runs, study.records)
    recorded = data[(data["what"] == RECORDED) & (data["runs"] > 0)]
    missing = "" if len(recorded) else f"no records; {command(study, study.request.cells)}"
    shown = {ALL: data[data["what"] == ALL]} | ({RECORDED: recorded} if len(recorded) else {})
    picture = new_picture(8, 0.9 * max(map(len, shown.values())) + 1.8)
    panels = picture.subplots(1, len(shown), squeeze=False)[0]
    kinds = [*COUNTS, TRAINED]
    for axes, (what, lines) in zip(panels, shown.items(), strict=True):
        bars = [kind for kind in kinds if lines[kind].notna().any()]
        thickness = 0.8 / len(bars)
        for place, kind in enumerate(bars):
            heights = [
                number + thickness * (place - (len(bars) - 1) / 2) for number in range(len(lines))
            ]
            colour = COLOURS[kinds.index(kind)]
            drawn = axes.barh(heights, lines[kind], thickness * 0.9, color=colour, label=kind)
            axes.bar_label(
                drawn, [f"{epochs:,.0f}" for epochs in lines[kind]], padding=3, fontsize=8
            )
        labels = [f"{row.dataset}\n{row.model}\n{row.runs} runs" for row in lines.itertuples()]
        axes.set_yticks(range(len(lines)), labels=labels)
        axes.set_ylim(len(lines) - 0.5, -0.5)
        axes.set_xlim(right=lines[COUNTS[0]].max() * 1.2)
        axes.xaxis.set_major_formatter("{x:,.0f}")
        plain(axes).set(xlabel="epochs", title=what)
        axes.tick_params(axis="y", length=0)
    handles, names = panels[-1].get_legend_handles_labels()
    picture.legend(handles, names, loc="outside lower center", ncols=4, frameon=False)
    caption = (
        f"Epochs of tables {', '.join(study.request.tables)}: as their cells ask for them, with "
        "equal runs merged, with common beginnings shared; counted from the configs. On the right "
        "those of the runs that have ended, and what the records say was trained for them."
    )
    return [Drawing(name, title, caption, picture, data, missing)]
