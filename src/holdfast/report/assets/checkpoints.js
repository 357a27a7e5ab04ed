// The checkpoints of a run: where each stands, what it measured, and why it is kept.

const MOST_ROWS = 400;

function checkpointsSection() {
  const { checkpoints, rules, resume } = DATA.run;
  const names = [...new Set(checkpoints.flatMap((one) => Object.keys(one.metrics)))].sort().slice(0, 6);
  const head = ["step", "epoch", "committed", "size", ...names, "", "why it is kept"];
  const numeric = (at) => at < 2 || (at >= 3 && at < 4 + names.length);
  const newest = [...checkpoints].reverse();
  const shown = newest.filter((one, at) => at < MOST_ROWS || one.best.length || one.pins.length);
  const rows = shown.map((one) => checkpointRow(one, names));
  const table = el(
    "table",
    { class: "plain checkpoints" },
    el(
      "thead",
      null,
      el(
        "tr",
        null,
        head.map((text, at) => el("th", { scope: "col", class: numeric(at) ? "num" : "" }, text)),
      ),
    ),
    el("tbody", null, rows),
  );
  const said = Object.entries(rules).map(([name, text]) =>
    el("span", { class: "rule" }, `${name} `, el("code", null, text)),
  );
  return section(
    "Checkpoints",
    el("p", { class: "muted" }, said, " ", resume.join("; "), "."),
    checkpoints.length ? el("div", { class: "wide" }, table) : el("p", { class: "note" }, "None yet."),
    shown.length < newest.length
      ? el("p", { class: "note" }, `${grouped(newest.length - shown.length)} older checkpoints are left out.`)
      : null,
  );
}

function checkpointRow(one, names) {
  const marks = [
    ...one.best.map((rule) => el("span", { class: "chip best" }, `best ${rule}`)),
    ...one.pins.map((name) => el("span", { class: "chip pin" }, `pin ${name}`)),
    one.problem ? el("span", { class: "chip bad" }, "damaged") : null,
  ];
  const epoch = one.epoch === null ? "" : `${one.epoch}${one.batch ? `.${one.batch}` : ""}`;
  const best = (name) => one.best.some((rule) => rule.startsWith(`${name}:`));
  const kept = el(
    "td",
    { class: one.verdict === "kept" ? "" : "muted" },
    one.verdict === "kept" ? "" : `${one.verdict}: `,
    one.reasons.join("; "),
  );
  const open = el(
    "button",
    { type: "button", class: "link", onclick: () => go({ tab: "record", step: String(one.step) }) },
    grouped(one.step),
  );
  return el(
    "tr",
    null,
    el("td", { class: "num" }, one.problem ? grouped(one.step) : open),
    el("td", { class: "num" }, epoch),
    el("td", { class: "nowrap", title: one.time ? timeText(one.time) : null }, one.time ? ageText(one.time) : ""),
    el("td", { class: "num" }, one.size === undefined ? "" : sizeText(one.size)),
    names.map((name) =>
      el("td", { class: best(name) ? "num strong" : "num" }, name in one.metrics ? numberText(one.metrics[name]) : ""),
    ),
    el("td", null, marks),
    kept,
  );
}
