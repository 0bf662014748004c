// Draws the curves of the chosen runs. Their data lie in scripts, for a page that is opened from disk
// cannot fetch any. Texts are set as text: a run may be called anything.
"use strict";

const waiting = new Map();

function phaseavgCurves(name, curves) {
  waiting.get(name)(curves);
}

(() => {
  const find = (id) => document.getElementById(id);

  function decoded(text) {
    try {
      return decodeURIComponent(text);
    } catch {
      return text; // typed by hand
    }
  }

  // What an address within the page leads to may be folded away.
  function unfold() {
    const target = find(decoded(location.hash.slice(1)));
    for (let fold = target?.closest("details"); fold; fold = fold.parentElement.closest("details")) {
      fold.open = true;
    }
    if (target?.closest("details")) target.scrollIntoView();
  }

  const plot = find("plot");
  if (!plot) {
    addEventListener("hashchange", unfold);
    unfold();
    return;
  }

  const boxes = [...document.querySelectorAll("input[name=run]")];
  const colours = plot.dataset.colours.split(" ");
  const DASHES = { solid: "", dash: "8 4", dot: "2 3", dashdot: "8 3 2 3" };
  const kept = new Map(); // promises of curves, by the name of their file
  let drawing = 0;

  function load(name) {
    if (!kept.has(name)) {
      const loaded = new Promise((resolve, reject) => {
        const script = document.createElement("script");
        waiting.set(name, resolve);
        script.onerror = () => reject(new Error(`page/curves/${name}.js cannot be loaded`));
        script.src = `page/curves/${name}.js`;
        document.head.append(script);
      });
      loaded.catch(() => kept.delete(name));
      kept.set(name, loaded);
    }
    return kept.get(name);
  }

  function style(index) {
    const dashes = Object.keys(DASHES);
    return {
      color: colours[index % colours.length],
      dash: dashes[Math.floor(index / colours.length) % dashes.length],
    };
  }

  function swatch({ color, dash }) {
    const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const line = document.createElementNS("http://www.w3.org/2000/svg", "line");
    const sizes = { width: 36, height: 6, viewBox: "0 0 36 6", "aria-hidden": "true" };
    for (const [key, value] of Object.entries(sizes)) svg.setAttribute(key, value);
    const looks = { x1: 0, x2: 36, y1: 3, y2: 3, stroke: color, "stroke-width": 2.5 };
    looks["stroke-dasharray"] = DASHES[dash];
    for (const [key, value] of Object.entries(looks)) line.setAttribute(key, value);
    svg.append(line);
    return svg;
  }

  function cell(row, kind, content) {
    const made = document.createElement(kind);
    made.append(content);
    row.append(made);
    return made;
  }

  const number = (value) => String(Number(value.toPrecision(5))).replace("-", "−");

  function tabulate(curves) {
    const body = find("values").tBodies[0];
    body.replaceChildren();
    find("shown-metric").textContent = find("metric").selectedOptions[0].label;
    for (const { box, x, y, line } of curves) {
      const row = body.insertRow();
      cell(row, "td", swatch(line));
      const name = cell(row, "th", "");
      name.scope = "row";
      const link = document.createElement("a");
      link.href = `#run-${box.dataset.number}`;
      link.textContent = box.dataset.name;
      name.append(link);
      const found = y.length
        ? [number(y.at(-1)), String(x.at(-1)), number(Math.min(...y)), number(Math.max(...y))]
        : ["not measured", "", "", ""];
      for (const text of [...found, box.dataset.outcome, box.dataset.of]) cell(row, "td", text);
    }
    if (!curves.length) {
      const none = cell(body.insertRow(), "td", "No run is chosen.");
      none.colSpan = 8;
    }
  }

  // The epochs that are asked for, and else those that there are.
  function axis(curves) {
    const [from, to] = ["from", "to"].map((id) => find(id).valueAsNumber);
    if (Number.isNaN(from) && Number.isNaN(to)) return { autorange: true };
    const epochs = curves.flatMap(({ x }) => x);
    const first = Number.isNaN(from) ? Math.min(...epochs, to) : from;
    const last = Number.isNaN(to) ? Math.max(...epochs, from) : to;
    return { autorange: false, range: [first, last] };
  }

  async function draw() {
    const mine = ++drawing;
    const metric = find("metric").value;
    const chosen = boxes.filter((box) => box.checked);
    const loaded = await Promise.allSettled(chosen.map((box) => load(box.dataset.curves)));
    if (mine !== drawing) return; // another choice was made meanwhile
    const failed = loaded.filter((one) => one.status === "rejected");
    find("problem").hidden = !failed.length;
    find("problem").textContent = failed.map((one) => one.reason.message).join("; ");
    const curves = chosen.flatMap((box, index) => {
      if (loaded[index].status === "rejected") return [];
      const { epochs, metrics } = loaded[index].value;
      const values = metrics[metric] ?? [];
      const at = epochs.map((_, n) => n).filter((n) => (values[n] ?? null) !== null);
      return [{ box, x: at.map((n) => epochs[n]), y: at.map((n) => values[n]), line: style(index) }];
    });
    tabulate(curves);
    const view = axis(curves);
    const narrow = plot.clientWidth < 600;
    const grid = { gridcolor: "#e6e8ec", linecolor: "#535a66", automargin: true, zeroline: false };
    await Plotly.react(
      plot,
      curves.map(({ box, x, y, line }) => ({
        x,
        y,
        name: box.dataset.name.replaceAll("&", "&amp;").replaceAll("<", "&lt;"),
        meta: box.value,
        type: "scatter",
        mode: x.length > 60 ? "lines" : "lines+markers",
        line: { ...line, width: 2 },
        marker: { size: 5 },
        hovertemplate: "epoch %{x}: %{y}<br>%{fullData.name}<extra></extra>",
      })),
      {
        font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: "#1c1f24" },
        margin: { l: 44, r: 12, t: 30, b: 44 },
        showlegend: false,
        hovermode: "closest",
        hoverlabel: { namelength: -1, align: "left" },
        dragmode: narrow ? false : "zoom",
        paper_bgcolor: "#fff",
        plot_bgcolor: "#fff",
        uirevision: `${metric} ${view.range} ${find("log").checked}`,
        xaxis: { ...grid, ...view, title: { text: "epoch", font: { size: 13 } } },
        yaxis: {
          ...grid,
          type: find("log").checked ? "log" : "linear",
        },
      },
      {
        responsive: true,
        displaylogo: false,
        modeBarButtonsToRemove: ["select2d", "lasso2d", "autoScale2d"],
      },
    );
    plot.dataset.drawn = String(mine);
  }

  function remember() {
    const kept = new URLSearchParams({ metric: find("metric").value });
    for (const id of ["from", "to"]) if (find(id).value) kept.set(id, find(id).value);
    if (find("log").checked) kept.set("log", "1");
    const keys = boxes.filter((box) => box.checked).map((box) => encodeURIComponent(box.value));
    history.replaceState(null, "", `#${kept}&runs=${keys.join(",")}`);
  }

  function restore() {
    const asked = new URLSearchParams(location.hash.slice(1));
    const runs = /[#&]runs=([^&]*)/.exec(location.hash);
    if (!runs) return false;
    const keys = new Set(runs[1].split(",").map(decoded));
    for (const box of boxes) box.checked = keys.has(box.value);
    const metric = find("metric");
    if ([...metric.options].some((option) => option.value === asked.get("metric"))) {
      metric.value = asked.get("metric");
    }
    for (const id of ["from", "to"]) find(id).value = asked.get(id) ?? "";
    find("log").checked = asked.has("log");
    find("curves").scrollIntoView();
    return true;
  }

  function filter() {
    const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    for (const box of boxes) {
      const item = box.closest("li");
      const text = `${item.textContent} ${box.dataset.of}`.toLowerCase();
      item.hidden = !words.every((word) => text.includes(word));
      shown += !item.hidden;
    }
    for (const set of document.querySelectorAll("#chooser fieldset")) {
      set.hidden = !set.querySelector("li:not([hidden])");
    }
    const chosen = boxes.filter((box) => box.checked).length;
    find("shown").textContent = `${shown} of ${boxes.length} runs shown, ${chosen} chosen`;
  }

  function changed() {
    filter();
    remember();
    draw();
  }

  for (const form of [find("chooser"), find("view")]) {
    form.addEventListener("submit", (event) => event.preventDefault());
    form.addEventListener("change", (event) => {
      if (event.target.id !== "filter") changed();
    });
  }
  find("filter").addEventListener("input", filter);
  find("all").addEventListener("click", () => {
    for (const box of boxes) box.checked ||= !box.closest("li").hidden;
    changed();
  });
  find("clear").addEventListener("click", () => {
    for (const box of boxes) box.checked = false;
    changed();
  });
  addEventListener("hashchange", () => {
    if (restore()) draw();
    else unfold();
    filter();
  });

  if (!restore()) {
    for (const box of boxes) box.checked = "first" in box.dataset;
    unfold();
  }
  filter();
  draw();
})();
