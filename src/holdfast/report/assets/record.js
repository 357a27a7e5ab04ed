// What is recorded beside the tensors: arguments, environment, objects, files, and how two checkpoints differ in them.

const PARTS = ["arguments", "position", "metrics", "environment", "objects", "metadata", "values", "files"];

/** The lines of one checkpoint: number of the key to text. */
function recordAt(index) {
  const lines = new Map();
  for (const { set, gone } of DATA.records.sides.slice(0, index + 1)) {
    for (const key of gone) lines.delete(key);
    for (const [key, text] of set) lines.set(key, text);
  }
  return lines;
}

function recordTab() {
  const { steps } = DATA.records;
  const many = steps.length > 1;
  const options = () =>
    [...steps.keys()]
      .reverse()
      .map((index) => el("option", { value: String(steps[index]) }, `step ${grouped(steps[index])}`));
  const one = el(
    "select",
    { "aria-label": "Checkpoint", onchange: (event) => go({ step: event.target.value }) },
    options(),
  );
  const other = el(
    "select",
    { "aria-label": "Compared with", onchange: (event) => go({ with: event.target.value }) },
    el("option", { value: "" }, "nothing"),
    options(),
  );
  const filter = el("input", {
    type: "search",
    placeholder: "Search the record",
    "aria-label": "Search the record",
    autocomplete: "off",
    spellcheck: "false",
  });
  const body = el("div", { class: "record" });
  const place = (text) => steps.findIndex((step) => String(step) === text);

  function draw() {
    const at = view.step && place(view.step) >= 0 ? place(view.step) : steps.length - 1;
    const against = view.with ? place(view.with) : -1;
    one.value = String(steps[at]);
    other.value = against >= 0 ? view.with : "";
    body.replaceChildren(
      ...recordSections(recordAt(at), against >= 0 ? recordAt(against) : null, filter.value.toLowerCase()),
    );
  }

  filter.addEventListener("input", draw);
  watch((changed) => {
    if (changed.has("step") || changed.has("with")) draw();
  });
  draw();
  const choice = many
    ? [el("label", { class: "choice" }, "checkpoint ", one), el("label", { class: "choice" }, "compared with ", other)]
    : [];
  return section(
    "",
    el("div", { class: "headline" }, choice, filter),
    DATA.records.note ? el("p", { class: "note" }, DATA.records.note) : null,
    body,
  );
}

function recordSections(lines, before, wanted) {
  const parts = new Map(PARTS.map((part) => [part, []]));
  const keys = new Set([...lines.keys(), ...(before ? before.keys() : [])]);
  for (const key of [...keys].sort((a, b) => a - b)) {
    const [part, path] = DATA.records.keys[key];
    const [text, old] = [lines.get(key), before ? before.get(key) : undefined];
    if (before && text === old) continue;
    if (wanted && !`${part} ${path} ${text || ""} ${old || ""}`.toLowerCase().includes(wanted)) continue;
    parts.get(part).push([path, text, old]);
  }
  const shown = [...parts].filter(([, rows]) => rows.length);
  if (!shown.length)
    return [el("p", { class: "note" }, before ? "The two say the same." : "Nothing is recorded here.")];
  return shown.map(([part, rows]) => section(part, el("div", { class: "wide" }, recordTable(rows, Boolean(before)))));
}

function recordTable(rows, compared) {
  const cells = ([path, text, old]) => {
    if (!compared) return [el("td", { class: "mono" }, text)];
    return [
      el("td", { class: old === undefined ? "muted" : "mono was" }, old === undefined ? "not there" : old),
      el("td", { class: text === undefined ? "muted" : "mono now" }, text === undefined ? "gone" : text),
    ];
  };
  const head = compared
    ? el(
        "thead",
        null,
        el(
          "tr",
          null,
          ["", "there", "here"].map((text) => el("th", { scope: "col" }, text)),
        ),
      )
    : null;
  return el(
    "table",
    { class: "plain pairs" },
    head,
    el(
      "tbody",
      null,
      rows.map((row) => el("tr", null, el("th", { scope: "row", class: "path" }, row[0]), cells(row))),
    ),
  );
}
