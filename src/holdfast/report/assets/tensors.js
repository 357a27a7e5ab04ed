// The table of all tensors: search, sort, and the one that is selected.

let rowsOfStats = null;

/** Where a tensor's statistics stand in their columns; -1 where it has none. */
function statsRow(at) {
  if (!rowsOfStats) rowsOfStats = new Map(DATA.tensors.stats.of.map((number, row) => [number, row]));
  const row = rowsOfStats.get(at);
  return row === undefined ? -1 : row;
}

function statOf(name, at) {
  const row = statsRow(at);
  return row < 0 ? null : DATA.tensors.stats[name][row];
}

/** Words of a search, all of which must fit: parts of the name, * for anything, dtype:float, is:nan, is:dead. */
function searchTest(text) {
  const tests = text
    .toLowerCase()
    .split(/\s+/)
    .filter(Boolean)
    .map((word) => {
      if (word === "is:nan" || word === "is:inf") return (at) => statOf(word.slice(3), at) > 0;
      if (word === "is:dead") return (at) => at in DATA.tensors.stats.dead;
      if (word === "is:shared") return (at) => sharedWith(at).length > 0;
      if (word.startsWith("dtype:")) return (at) => DATA.tensors.dtypes[DATA.tensors.dtype[at]].includes(word.slice(6));
      if (word.includes("*")) {
        const pattern = new RegExp(
          word
            .split("*")
            .map((part) => part.replace(/[.+?^${}()|[\]\\]/g, "\\$&"))
            .join(".*"),
        );
        return (at) => pattern.test(lowerNames()[at]);
      }
      return (at) => lowerNames()[at].includes(word);
    });
  return (at) => tests.every((test) => test(at));
}

let lowered = null;

function lowerNames() {
  if (!lowered) lowered = DATA.tensors.names.map((name) => name.toLowerCase());
  return lowered;
}

let sharers = null;

function sharedWith(at) {
  if (!sharers) {
    sharers = new Map();
    for (const group of DATA.tensors.shared) for (const one of group) sharers.set(one, group);
  }
  return (sharers.get(at) || []).filter((one) => one !== at);
}

function sortedTensors(numbers, sort) {
  if (!sort) return numbers;
  const [down, key] = [sort.startsWith("-"), sort.replace(/^-/, "")];
  const sign = down ? -1 : 1;
  if (key === "name" || key === "dtype") {
    const compare = new Intl.Collator("en", { numeric: true }).compare;
    const text = key === "name" ? (at) => DATA.tensors.names[at] : (at) => DATA.tensors.dtypes[DATA.tensors.dtype[at]];
    return numbers.sort((a, b) => sign * compare(text(a), text(b)) || a - b);
  }
  const value = { bytes: (at) => DATA.tensors.bytes[at], shape: elementsOf }[key] || ((at) => statOf(key, at));
  const values = new Map(numbers.map((at) => [at, value(at)]));
  const missing = (at) => (values.get(at) === null ? 1 : 0);
  return numbers.sort((a, b) => missing(a) - missing(b) || sign * (values.get(a) - values.get(b)) || a - b);
}

const NUMBER_COLUMNS = ["min", "max", "mean", "std", "zeros"];

function tensorColumns() {
  const some = DATA.tensors.stats.of.length > 0;
  return [
    { key: "name", title: "tensor", class: "name", sortable: true },
    { key: "dtype", title: "dtype", class: "dtype", sortable: true },
    { key: "shape", title: "shape", class: "shape", sortable: true },
    { key: "bytes", title: "size", class: "num", sortable: true },
    ...(some ? [{ key: "values", title: "magnitudes", class: "spark" }] : []),
    ...(some ? NUMBER_COLUMNS.map((key) => ({ key, title: key, class: "num statistic", sortable: true })) : []),
    { key: "flags", title: "", class: "flags" },
  ];
}

function tensorCells(at) {
  const { names, dtypes, dtype, bytes, stats } = DATA.tensors;
  const cells = [nameParts(names[at]), dtypes[dtype[at]], shapeText(shapeOf(at)), sizeText(bytes[at])];
  if (stats.of.length) {
    const histogram = stats.histogram[at];
    cells.push(histogram ? tinyHistogram(histogram, statOf("zeros", at)) : "");
    for (const key of ["min", "max", "mean", "std"]) cells.push(numberText(statOf(key, at), 3));
    const row = statsRow(at);
    cells.push(row < 0 ? "–" : percentText(stats.count[row] ? stats.zeros[row] / stats.count[row] : 0));
  }
  cells.push(flagsOf(at));
  return cells;
}

/** The name with its last part set off; all of it in the title, since a narrow column cuts it. */
function nameParts(name) {
  const cut = name.lastIndexOf(".") + 1;
  return el(
    "span",
    { class: "path", title: name },
    el("span", { class: "before" }, el("bdi", { dir: "ltr" }, name.slice(0, cut))),
    el("b", null, name.slice(cut)),
  );
}

function flagsOf(at) {
  const found = [];
  if (statOf("nan", at) > 0) found.push(el("span", { class: "chip bad" }, "NaN"));
  if (statOf("inf", at) > 0) found.push(el("span", { class: "chip bad" }, "inf"));
  if (at in DATA.tensors.stats.dead) found.push(el("span", { class: "chip warn" }, "dead"));
  if (sharedWith(at).length) found.push(el("span", { class: "chip" }, "shared"));
  return found;
}

function tensorsTab() {
  const search = el("input", {
    type: "search",
    id: "search",
    placeholder: "Search: encoder*weight, dtype:bfloat16, is:nan",
    "aria-label": "Search tensors",
    autocomplete: "off",
    spellcheck: "false",
    oninput: (event) => go({ q: event.target.value }),
  });
  const count = el("span", { class: "muted" });
  const panel = el("aside", { class: "panel", "aria-label": "The selected tensor" });
  const numbers = new Map(DATA.tensors.names.map((name, at) => [name, at]));
  const table = longTable({
    class: DATA.tensors.stats.of.length ? "tensors counted" : "tensors",
    label: "Tensors",
    columns: tensorColumns(),
    cells: tensorCells,
    onSelect: (at) => go({ t: DATA.tensors.names[at] }),
    onSort: (sort) => go({ sort }),
  });
  const body = el("div", { class: "split" }, table.node, panel);

  function list() {
    if (search.value !== view.q) search.value = view.q;
    const fits = searchTest(view.q);
    const found = [];
    for (let at = 0; at < DATA.tensors.names.length; at += 1) if (fits(at)) found.push(at);
    table.sorted(view.sort);
    table.show(sortedTensors(found, view.sort));
    const bytes = found.reduce((sum, at) => sum + DATA.tensors.bytes[at], 0);
    count.textContent = `${counted(found.length, "tensor")}, ${sizeText(bytes)}`;
    say(count.textContent);
  }

  function pick() {
    const at = numbers.has(view.t) ? numbers.get(view.t) : -1;
    table.select(at, true);
    body.classList.toggle("open", at >= 0);
    panel.replaceChildren(...(at < 0 ? [] : tensorDetail(at)));
  }

  watch((changed) => {
    if (changed.has("q") || changed.has("sort")) list();
    if (changed.has("t") || changed.has("theme")) pick();
  });
  list();
  pick();
  tables.tensors = table;
  return section("", el("div", { class: "headline" }, search, count), body);
}
