// The first look: a few figures, and what a person should know before anything else.

function tile(label, value, below) {
  return el(
    "div",
    { class: "tile" },
    el("dt", null, label),
    el("dd", null, value),
    below ? el("p", null, below) : null,
  );
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
  const tiles = [
    tile("Checkpoints", grouped(checkpoints.length), `${sizeText(size)}${budget ? ` of ${sizeText(budget)}` : ""}`),
  ];
  if (last) {
    tiles.push(
      tile(
        "Last step",
        grouped(last.step),
        last.epoch === null ? "" : `epoch ${last.epoch}${last.batch ? `, batch ${last.batch}` : ""}`,
      ),
    );
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
  const words = found
    .slice(0, SHOWN_ARGUMENTS)
    .map(([key, text]) => el("span", { class: "argument" }, DATA.records.keys[key][1], el("b", null, text)));
  const more = el(
    "button",
    { type: "button", class: "link", onclick: () => go({ tab: "record" }) },
    found.length > SHOWN_ARGUMENTS ? `${found.length - SHOWN_ARGUMENTS} more` : "all",
  );
  return section("Arguments", el("p", { class: "arguments" }, words, more));
}

function fileTiles() {
  return [tile("Format", DATA.file.format || "none", DATA.file.what)];
}

/** The largest tensors of a file, each a way to its details. */
function largestSection() {
  const { names, bytes, dtypes, dtype, stats } = DATA.tensors;
  const largest = [...names.keys()].sort((a, b) => bytes[b] - bytes[a] || a - b).slice(0, 8);
  const rows = largest.map((at) =>
    el(
      "tr",
      null,
      el(
        "td",
        null,
        el(
          "button",
          { type: "button", class: "link path", onclick: () => go({ tab: "tensors", q: "", t: names[at] }) },
          names[at],
        ),
      ),
      el("td", { class: "muted" }, dtypes[dtype[at]]),
      el("td", { class: "muted" }, shapeText(shapeOf(at))),
      el("td", { class: "num" }, sizeText(bytes[at])),
      el("td", null, at in stats.histogram ? tinyHistogram(stats.histogram[at], statOf("zeros", at)) : ""),
      el("td", null, flagsOf(at)),
    ),
  );
  return section(
    "The largest tensors",
    el("div", { class: "wide" }, el("table", { class: "plain" }, el("tbody", null, rows))),
  );
}

function tensorTiles() {
  const { names, stored, dtypes, dtype } = DATA.tensors;
  const elements = names.reduce((sum, _, at) => sum + elementsOf(at), 0);
  const kinds = dtypes.length > 2 ? `${dtypes.length} dtypes` : dtypes.join(", ");
  return [
    tile("Tensors", grouped(names.length), dtype.length ? kinds : ""),
    tile("Elements", manyText(elements), sizeText(stored)),
  ];
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
    for (const one of DATA.run.checkpoints)
      if (one.problem) lines.push(["bad", `Step ${one.step} is damaged: ${one.problem}`]);
    for (const text of [...DATA.run.aside, ...DATA.run.notes]) lines.push(["note", text]);
  }
  if (DATA.tensors) lines.push(...tensorFindings());
  if (!lines.length) return null;
  return el(
    "ul",
    { class: "findings" },
    lines.map(([kind, text, q]) =>
      el(
        "li",
        { class: kind },
        text,
        q
          ? el(
              "button",
              { type: "button", class: "link", onclick: () => go({ tab: "tensors", q, sort: "" }) },
              "show them",
            )
          : null,
      ),
    ),
  );
}

function fileFindings() {
  const { classes, program } = DATA.file;
  if (classes.length)
    return [
      [
        "bad",
        `Holds objects that only a pickle would rebuild, which may run code: ${classes.join(", ")}. ` +
          "Nothing of them was run for this page.",
      ],
    ];
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
  return section(
    "Where the bytes are",
    el("div", { class: "pair" }, shareBar("by part", byPart), shareBar("by dtype", byDtype)),
  );
}

function shareBar(title, parts) {
  const sorted = [...parts].sort((a, b) => b[1] - a[1]);
  const shown = sorted.slice(0, 6);
  const rest = sorted.slice(6).reduce((sum, [, size]) => sum + size, 0);
  if (rest) shown.push([`${sorted.length - 6} more`, rest]);
  const total = sorted.reduce((sum, [, size]) => sum + size, 0) || 1;
  const bar = el("div", {
    class: "shares",
    role: "img",
    "aria-label": shown.map(([name, size]) => `${name} ${sizeText(size)}`).join(", "),
  });
  const list = el("ul", { class: "keyed" });
  const coloured = [];
  shown.forEach(([name, size], at) => {
    const piece = el("span", null);
    piece.style.flexGrow = String(size / total);
    bar.append(piece);
    const dot = el("i", { class: "dot" });
    coloured.push([piece, at], [dot, at]);
    list.append(
      el(
        "li",
        null,
        dot,
        el("span", { class: "name" }, name),
        el("b", null, sizeText(size)),
        el("span", { class: "muted" }, percentText(size / total)),
      ),
    );
  });
  const paint = () =>
    coloured.forEach(([node, at]) => {
      node.style.background = seriesColour(at);
    });
  watch((changed) => {
    if (changed.has("theme")) paint();
  });
  paint();
  return el("div", null, el("h3", null, title), bar, list);
}
