// The first look: a few figures, and what a person should know before anything else.

function tile(label, value, below) {
  return el("div", { class: "tile" }, el("dt", null, label), el("dd", null, value), below ? el("p", null, below) : null);
}

function section(title, ...content) {
  return el("section", null, title ? el("h2", null, title) : null, ...content);
}

function overviewTab() {
  const parts = [el("dl", { class: "tiles" }, DATA.run ? runTiles() : fileTiles(), DATA.tensors ? tensorTiles() : [])];
  const found = findings();
  if (found) parts.push(found);
  const given = argumentsLine();
  if (given) parts.push(given);
  if (DATA.run) parts.push(metricsSection(), checkpointsSection());
  if (DATA.tensors && DATA.tensors.names.length) parts.push(compositionSection());
  if (!DATA.run && DATA.tensors && DATA.tensors.names.length) parts.push(largestSection());
  return el("div", null, parts);
}

function runTiles() {
  const { checkpoints, best, size, budget } = DATA.run;
  const readable = checkpoints.filter((one) => !one.problem);
  const last = readable[readable.length - 1];
  const tiles = [tile("Checkpoints", grouped(checkpoints.length), `${sizeText(size)}${budget ? ` of ${sizeText(budget)}` : ""}`)];
  if (last) {
    tiles.push(tile("Last step", grouped(last.step), last.epoch === null ? "" : `epoch ${last.epoch}${last.batch ? `, batch ${last.batch}` : ""}`));
    const ago = tile("Last commit", ageText(last.time), timeText(last.time).slice(0, 16));
    tiles.push(ago);
  }
  for (const { rule, step } of best.slice(0, 2)) {
    const top = checkpoints.find((one) => one.step === step);
    const name = rule.slice(0, rule.lastIndexOf(":"));
    if (top) tiles.push(tile(`Best ${name}`, numberText(top.metrics[name]), `step ${grouped(step)}`));
  }
  return tiles;
}

const SHOWN_ARGUMENTS = 24;

/** The arguments of the training in one line; all of them are in the record. */
function argumentsLine() {
  const last = recordAt(DATA.records.steps.length - 1);
  const found = [...last].filter(([key]) => DATA.records.keys[key][0] === "arguments");
  if (!found.length) return null;
  const words = found.slice(0, SHOWN_ARGUMENTS).map(([key, text]) => el("span", { class: "argument" }, DATA.records.keys[key][1], el("b", null, text)));
  const more = el("button", { type: "button", class: "link", onclick: () => go({ tab: "record" }) }, found.length > SHOWN_ARGUMENTS ? `${found.length - SHOWN_ARGUMENTS} more` : "all");
  return section("Arguments", el("p", { class: "arguments" }, words, more));
}

function fileTiles() {
  return [tile("Format", DATA.file.format || "none", DATA.file.what)];
}

/** The largest tensors of a file, each a way to its details. */
function largestSection() {
  const { names, bytes, dtypes, dtype, stats } = DATA.tensors;
  const largest = [...names.keys()].sort((a, b) => bytes[b] - bytes[a] || a - b).slice(0, 8);
  const rows = largest.map((at) => el("tr", null,
    el("td", null, el("button", { type: "button", class: "link path", onclick: () => go({ tab: "tensors", q: "", t: names[at] }) }, names[at])),
    el("td", { class: "muted" }, dtypes[dtype[at]]), el("td", { class: "muted" }, shapeText(shapeOf(at))), el("td", { class: "num" }, sizeText(bytes[at])),
    el("td", null, at in stats.histogram ? tinyHistogram(stats.histogram[at], statOf("zeros", at)) : ""), el("td", null, flagsOf(at))));
  return section("The largest tensors", el("div", { class: "wide" }, el("table", { class: "plain" }, el("tbody", null, rows))));
}

function tensorTiles() {
  const { names, stored, dtypes, dtype } = DATA.tensors;
  const elements = names.reduce((sum, _, at) => sum + elementsOf(at), 0);
  const kinds = dtypes.length > 2 ? `${dtypes.length} dtypes` : dtypes.join(", ");
  return [tile("Tensors", grouped(names.length), dtype.length ? kinds : ""), tile("Elements", manyText(elements), sizeText(stored))];
}

function elementsOf(at) {
  return shapeOf(at).reduce((product, size) => product * size, 1);
}

function shapeOf(at) {
  return DATA.tensors.shapes[DATA.tensors.shape[at]];
}

/** What is wrong or missing, before all else. */
function findings() {
  const lines = [...DATA.notes.map((text) => ["note", text])];
  if (DATA.file) lines.push(...fileFindings());
  if (DATA.run) {
    for (const one of DATA.run.checkpoints) if (one.problem) lines.push(["bad", `Step ${one.step} is damaged: ${one.problem}`]);
    for (const text of [...DATA.run.aside, ...DATA.run.notes]) lines.push(["note", text]);
  }
  if (DATA.tensors) lines.push(...tensorFindings());
  if (!lines.length) return null;
  return el("ul", { class: "findings" }, lines.map(([kind, text, q]) => el("li", { class: kind },
    text, q ? el("button", { type: "button", class: "link", onclick: () => go({ tab: "tensors", q, sort: "" }) }, "show them") : null)));
}

function fileFindings() {
  const { classes, program } = DATA.file;
  if (classes.length) return [["bad", `Holds objects that only a pickle would rebuild, which may run code: ${classes.join(", ")}. Nothing of them was run for this page.`]];
  if (program) return [["note", "A program with its weights. Nothing of the program was run for this page."]];
  return [["good", "Tensors and plain values only: nothing in it asks to run code."]];
}

function tensorFindings() {
  const stats = DATA.tensors.stats;
  const lines = [];
  const some = (counts) => counts.filter((count) => count > 0).length;
  const [nan, inf, dead] = [some(stats.nan), some(stats.inf), Object.keys(stats.dead).length];
  if (nan) lines.push(["bad", `${counted(nan, "tensor")} with NaN. `, "is:nan"]);
  if (inf) lines.push(["bad", `${counted(inf, "tensor")} with infinities. `, "is:inf"]);
  if (dead) lines.push(["note", `${counted(dead, "tensor")} with one value throughout. `, "is:dead"]);
  if (stats.of.length && !nan && !inf) {
    const all = stats.of.length === DATA.tensors.names.length ? "All" : "The";
    lines.push(["good", `${all} ${counted(stats.of.length, "tensor")} that were counted have finite values only.`]);
  }
  if (DATA.tensors.without) lines.push(["note", DATA.tensors.without]);
  return lines;
}

/** Bytes by dtype and by part of the tree, as two bars. */
function compositionSection() {
  const { names, bytes, dtype, dtypes } = DATA.tensors;
  const [byDtype, byPart] = [new Map(), new Map()];
  names.forEach((name, at) => {
    const part = name.split(".")[0];
    byDtype.set(dtypes[dtype[at]], (byDtype.get(dtypes[dtype[at]]) || 0) + bytes[at]);
    byPart.set(part, (byPart.get(part) || 0) + bytes[at]);
  });
  return section("Where the bytes are", el("div", { class: "pair" }, shareBar("by part", byPart), shareBar("by dtype", byDtype)));
}

function shareBar(title, parts) {
  const sorted = [...parts].sort((a, b) => b[1] - a[1]);
  const shown = sorted.slice(0, 6);
  const rest = sorted.slice(6).reduce((sum, [, size]) => sum + size, 0);
  if (rest) shown.push([`${sorted.length - 6} more`, rest]);
  const total = sorted.reduce((sum, [, size]) => sum + size, 0) || 1;
  const bar = el("div", { class: "shares", role: "img", "aria-label": shown.map(([name, size]) => `${name} ${sizeText(size)}`).join(", ") });
  const list = el("ul", { class: "keyed" });
  const coloured = [];
  shown.forEach(([name, size], at) => {
    const piece = el("span", null);
    piece.style.flexGrow = String(size / total);
    bar.append(piece);
    const dot = el("i", { class: "dot" });
    coloured.push([piece, at], [dot, at]);
    list.append(el("li", null, dot, el("span", { class: "name" }, name), el("b", null, sizeText(size)), el("span", { class: "muted" }, percentText(size / total))));
  });
  const paint = () => coloured.forEach(([node, at]) => {
    node.style.background = seriesColour(at);
  });
  watch((changed) => {
    if (changed.has("theme")) paint();
  });
  paint();
  return el("div", null, el("h3", null, title), bar, list);
}

// ---- metrics ---------------------------------------------------------------------------------------------------------

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
  const log = el("button", { type: "button", class: "switch", "aria-pressed": "false", onclick: () => go({ log: view.log ? "" : "1" }) }, "log scale");
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
  const keys = el("span", { class: "keys" }, markKey("checkpoint", "checkpoint"), markKey("best", "best"), markKey("pin", "pinned"), markKey("gap", "NaN or infinite"));
  return el("section", null, el("div", { class: "headline" }, el("h2", null, "Metrics"), keys, log), grid,
    all.length > groups.length ? el("p", { class: "note" }, `${grouped(all.length - groups.length)} more charts are left out; the record of a checkpoint has every metric.`) : null);
}

function markKey(kind, word) {
  const shape = kind === "gap" ? svg("path", { class: "gap", d: "M4.5 4.5l7 7m0 -7l-7 7" })
    : svg("path", { class: `mark ${kind}`, d: MARKS[kind](8, 8), stroke: "currentColor", fill: kind === "checkpoint" ? "none" : "currentColor" });
  return el("span", { class: "key" }, svg("svg", { width: 16, height: 16, viewBox: "0 0 16 16", "aria-hidden": "true" }, shape), word);
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
  const label = `${shown.map((one) => one.name).join(" and ")} over the steps; last ${shown.map((one) => numberText((last(one) || [])[1])).join(", ")}`;
  function draw(wide = width) {
    width = wide;
    if (!width) return;
    chart = lineChart({ width, series: shown, marks: stepMarks(), log: Boolean(view.log), label, onHover });
    place.replaceChildren(chart);
    names.replaceChildren(...shown.map((one, at) => {
      const dot = el("i", { class: "dot" });
      dot.style.background = seriesColour(at);
      return el("span", { class: "series" }, shown.length > 1 ? dot : null, one.name);
    }));
  }
  function hover(step) {
    if (chart && chart.showStep) chart.showStep(step);
    const at = (one) => (one.points.find(([where]) => where === step) || [])[1];
    const values = step === null ? shown.map((one) => (last(one) || [])[1]) : shown.map(at);
    readout.replaceChildren(...values.map((value, number) => {
      const text = el("b", null, numberText(value));
      if (values.length > 1) text.style.color = seriesColour(number);
      return text;
    }), step === null ? "" : ` at ${grouped(step)}`);
  }
  hover(null);
  whenWide(place, draw);
  return { draw, hover, key };
}
