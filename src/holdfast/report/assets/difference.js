// Two files side by side: which tensors differ and by how much, which are only on one side, which values differ.

const MEASURES = ["relative", "norm", "largest", "cosine", "differing"];

function differenceTab() {
  const found = DATA.difference;
  const measured = found.unlike.some((one) => "norm" in one);
  const parts = [
    section(
      "",
      el(
        "div",
        { class: "sides" },
        side("A", found.a),
        el("span", { class: "arrow-big", "aria-hidden": "true" }, "→"),
        side("B", found.b),
      ),
      el("dl", { class: "tiles" }, differenceTiles(found)),
    ),
  ];
  if (found.notes.length)
    parts.push(
      el(
        "ul",
        { class: "findings" },
        found.notes.map((text) => el("li", { class: "note" }, text)),
      ),
    );
  if (found.unlike.length && !measured)
    parts.push(
      el("p", { class: "note" }, "By how much tensors differ was not measured: that needs torch, and no --no-stats."),
    );
  if (found.unlike.length) parts.push(unlikeSection(found.unlike, measured));
  if (found.values.length) parts.push(section("Values", el("div", { class: "wide" }, valueTable(found.values))));
  for (const [key, title] of [
    ["renamed", "Renamed: the same values under another name"],
    ["removed", "Only in A"],
    ["added", "Only in B"],
  ]) {
    if (found[key].length) parts.push(pairList(title, found[key]));
  }
  return el("div", null, parts);
}

function side(letter, name) {
  return el("p", { class: "side" }, el("b", null, letter), el("span", { class: "path" }, name));
}

function differenceTiles(found) {
  if (found.identical) return [tile("Identical", grouped(found.same), "tensors, to the last bit")];
  const counts = [
    ["Changed", found.unlike.length],
    ["The same", found.same],
    ["Only in A", found.removed.length],
    ["Only in B", found.added.length],
    ["Renamed", found.renamed.length],
    ["Values", found.values.length],
  ];
  return counts.map(([title, count]) => tile(title, grouped(count), title === "Values" ? "that differ" : "tensors"));
}

function unlikeSection(unlike, measured) {
  const relatives = unlike.map((one) => one.relative).filter((one) => one > 0);
  const range = relatives.length ? [Math.log10(Math.min(...relatives)), Math.log10(Math.max(...relatives))] : [0, 1];
  const columns = [
    { key: "name", title: "tensor", class: "name", sortable: true },
    ...(measured
      ? [
          { key: "bar", title: "relative change", class: "spark" },
          ...MEASURES.map((key) => ({ key, title: key, class: "num", sortable: true })),
        ]
      : []),
    { key: "form", title: "form", class: "shape" },
  ];
  const cells = (at) => {
    const one = unlike[at];
    return [
      one.other ? nameParts(`${one.name} → ${one.other}`) : nameParts(one.name),
      ...(measured
        ? [
            relativeBar(one, range),
            numberText(one.relative, 3),
            numberText(one.norm, 3),
            numberText(one.largest, 3),
            cosineText(one.cosine),
            one.differing === undefined ? "–" : percentText(one.differing),
          ]
        : []),
      one.right === one.left ? one.left : el("b", null, `${one.left} → ${one.right}`),
    ];
  };
  const search = el("input", {
    type: "search",
    placeholder: "Search",
    "aria-label": "Search tensors that differ",
    autocomplete: "off",
    spellcheck: "false",
    oninput: () => list(),
  });
  let sort = measured ? "-relative" : "";
  const table = longTable({
    class: measured ? "differing measured" : "differing",
    label: "Tensors that differ",
    columns,
    cells,
    onSort: (next) => {
      sort = next;
      list();
    },
  });
  function list() {
    const wanted = search.value.toLowerCase();
    const numbers = [...unlike.keys()].filter((at) => unlike[at].name.toLowerCase().includes(wanted));
    const [down, key] = [sort.startsWith("-"), sort.replace(/^-/, "")];
    if (key === "name")
      numbers.sort((a, b) => (down ? -1 : 1) * unlike[a].name.localeCompare(unlike[b].name, "en", { numeric: true }));
    else if (key) {
      const missing = (at) => Number(typeof unlike[at][key] !== "number");
      numbers.sort((a, b) => missing(a) - missing(b) || (down ? -1 : 1) * (unlike[a][key] - unlike[b][key]) || a - b);
    }
    table.sorted(sort);
    table.show(numbers);
  }
  list();
  table.node.style.height = `min(70vh, ${unlike.length * ROW + 36}px)`;
  tables.difference = table;
  return el(
    "section",
    null,
    el("div", { class: "headline" }, el("h2", null, "Tensors that differ"), search),
    table.node,
  );
}

function cosineText(cosine) {
  return typeof cosine === "number" ? cosine.toFixed(5).replace("-", "−") : "–";
}

/** How large a relative change is among the others, on a logarithmic scale. */
function relativeBar(one, [low, high]) {
  if (one.nan && one.nan.some((count) => count > 0)) return el("span", { class: "chip bad" }, "NaN or inf");
  if (!(one.relative > 0)) return "";
  const share = high > low ? 0.06 + (0.94 * (Math.log10(one.relative) - low)) / (high - low) : 1;
  return svg(
    "svg",
    { class: "tiny", viewBox: "0 0 88 22", width: 88, height: 22, "aria-hidden": "true" },
    svg("rect", { class: "track", x: 0, y: 8, width: 88, height: 6, rx: 3 }),
    svg("rect", { class: "amount", x: 0, y: 8, width: (88 * share).toFixed(1), height: 6, rx: 3 }),
  );
}

function valueTable(values) {
  const cell = (text, kind) =>
    el("td", { class: text === null ? "muted" : `mono ${kind}` }, text === null ? "not there" : text);
  return el(
    "table",
    { class: "plain pairs" },
    el(
      "thead",
      null,
      el(
        "tr",
        null,
        ["", "in A", "in B"].map((text) => el("th", { scope: "col" }, text)),
      ),
    ),
    el(
      "tbody",
      null,
      values.map(([name, left, right]) =>
        el("tr", null, el("th", { scope: "row", class: "path" }, name), cell(left, "was"), cell(right, "now")),
      ),
    ),
  );
}

const SHOWN_PAIRS = 200;

function pairList(title, pairs) {
  const rows = pairs
    .slice(0, SHOWN_PAIRS)
    .map(([name, text]) =>
      el("tr", null, el("th", { scope: "row", class: "path" }, name), el("td", { class: "mono" }, text)),
    );
  const more =
    pairs.length > SHOWN_PAIRS ? el("p", { class: "muted" }, `and ${grouped(pairs.length - SHOWN_PAIRS)} more`) : null;
  return section(
    `${title} (${grouped(pairs.length)})`,
    el("div", { class: "wide" }, el("table", { class: "plain pairs" }, el("tbody", null, rows))),
    more,
  );
}
