// Metrics over the steps: a chart each, halves of one metric together, all read out at the same step.

const MOST_CHARTS = 60;
const HALF = /^(train|training|val|valid|validation|eval|test|dev)([_/.-])/;

/** Metrics that belong into one chart: train_loss and val_loss. */
function metricGroups() {
  const points = new Map();
  for (const { step, metrics } of [...DATA.run.checkpoints, ...DATA.run.history]) {
    for (const [name, value] of Object.entries(metrics)) {
      if (!points.has(name)) points.set(name, new Map());
      if (value !== null) points.get(name).set(step, value);
    }
  }
  const groups = new Map();
  for (const name of [...points.keys()].sort()) {
    const key = name.replace(HALF, "");
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push({ name, points: [...points.get(name)].sort((a, b) => a[0] - b[0]) });
  }
  const rule = DATA.run.best.length ? DATA.run.best[0].rule : "";
  const first = rule.slice(0, rule.lastIndexOf(":")).replace(HALF, "");
  return [...groups].sort(([a], [b]) => Number(b === first) - Number(a === first));
}

function stepMarks() {
  const marks = new Map();
  for (const one of DATA.run.checkpoints) {
    marks.set(one.step, one.best.length ? "best" : one.pins.length ? "pin" : "checkpoint");
  }
  return marks;
}

function metricsSection() {
  const all = metricGroups();
  const groups = all.slice(0, MOST_CHARTS);
  if (!groups.length) return section("Metrics", el("p", { class: "note" }, "No checkpoint of this run has metrics."));
  const grid = el("div", { class: `charts ${{ 1: "one", 2: "even", 4: "even" }[groups.length] || ""}` });
  const charts = [];
  const hover = (step) => charts.forEach((chart) => chart.hover(step));
  for (const [key, series] of groups) charts.push(metricCard(grid, key, series, hover));
  const log = el(
    "button",
    { type: "button", class: "switch", "aria-pressed": "false", onclick: () => go({ log: view.log ? "" : "1" }) },
    "log scale",
  );
  const redraw = () => {
    log.setAttribute("aria-pressed", view.log ? "true" : "false");
    for (const chart of charts) {
      chart.draw();
      chart.hover(null);
    }
  };
  watch((changed) => {
    if (changed.has("log") || changed.has("theme")) redraw();
  });
  redraw();
  const keys = el(
    "span",
    { class: "keys" },
    markKey("checkpoint", "checkpoint"),
    markKey("best", "best"),
    markKey("pin", "pinned"),
    markKey("gap", "NaN or infinite"),
  );
  return el(
    "section",
    null,
    el("div", { class: "headline" }, el("h2", null, "Metrics"), keys, log),
    grid,
    all.length > groups.length
      ? el(
          "p",
          { class: "note" },
          `${grouped(all.length - groups.length)} more charts are left out; the record has every metric.`,
        )
      : null,
  );
}

function markKey(kind, word) {
  const shape =
    kind === "gap"
      ? svg("path", { class: "gap", d: "M4.5 4.5l7 7m0 -7l-7 7" })
      : svg("path", {
          class: `mark ${kind}`,
          d: MARKS[kind](8, 8),
          stroke: "currentColor",
          fill: kind === "checkpoint" ? "none" : "currentColor",
        });
  return el(
    "span",
    { class: "key" },
    svg("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, shape),
    word,
  );
}

function metricCard(grid, key, series, onHover) {
  const readout = el("p", { class: "readout" });
  const place = el("div", { class: "plot" });
  const names = el("h3", null);
  grid.append(el("figure", { class: "card" }, el("div", { class: "headline" }, names, readout), place));
  const dashes = [null, "5 3", "2 3", "8 3 2 3"];
  let chart = null;
  let width = 0;
  const shown = series.slice(0, 4).map((one, at) => ({ ...one, dash: dashes[at] }));
  const last = (one) => [...one.points].reverse().find(([, value]) => Number.isFinite(value));
  const title = shown.map((one) => one.name).join(" and ");
  const label = `${title} over the steps; last ${shown.map((one) => numberText((last(one) || [])[1])).join(", ")}`;
  function draw(wide = width) {
    width = wide;
    if (!width) return;
    chart = lineChart({ width, series: shown, marks: stepMarks(), log: Boolean(view.log), label, onHover });
    place.replaceChildren(chart);
    names.replaceChildren(
      ...shown.map((one, at) => {
        const dot = el("i", { class: "dot" });
        dot.style.background = seriesColour(at);
        return el("span", { class: "series" }, shown.length > 1 ? dot : null, one.name);
      }),
    );
  }
  function hover(step) {
    if (chart && chart.showStep) chart.showStep(step);
    const at = (one) => (one.points.find(([where]) => where === step) || [])[1];
    const values = step === null ? shown.map((one) => (last(one) || [])[1]) : shown.map(at);
    readout.replaceChildren(
      ...values.map((value, number) => {
        const text = el("b", null, numberText(value));
        if (values.length > 1) text.style.color = seriesColour(number);
        return text;
      }),
      step === null ? "" : ` at ${grouped(step)}`,
    );
  }
  hover(null);
  whenWide(place, draw);
  return { draw, hover, key };
}
