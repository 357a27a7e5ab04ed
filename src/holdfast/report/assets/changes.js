// What changed between checkpoints: a row for each layer, a column for each step from one checkpoint to the next.

const CELL = { height: 20, label: 260, head: 46 };
const MOST_LAYERS = 240;

/** Layers: the tensors under one name, with the depth at which there are not too many of them. */
function layersOf() {
  const names = DATA.changes.of.map((at) => DATA.tensors.names[at]);
  const depth = Math.max(...names.map((name) => name.split(".").length - 1), 1);
  for (let cut = depth; cut >= 1; cut -= 1) {
    const groups = new Map();
    names.forEach((name, row) => {
      const parts = name.split(".");
      const key = parts.slice(0, Math.max(Math.min(parts.length - 1, cut), 1)).join(".");
      if (!groups.has(key)) groups.set(key, []);
      groups.get(key).push(row);
    });
    if (groups.size <= MOST_LAYERS || cut === 1) return [...groups].slice(0, MOST_LAYERS);
  }
  return [];
}

/** The norm of a layer's change over its norm before; null where it is not known. */
function layerChange(rows, column) {
  const { change, norm } = DATA.changes;
  let [moved, before] = [0, 0];
  for (const row of rows) {
    if (change[row][column] === null || norm[row][column] === null) return null;
    moved += change[row][column] ** 2;
    before += norm[row][column] ** 2;
  }
  if (before === 0) return moved > 0 ? Infinity : 0;
  return Math.sqrt(moved / before);
}

function changesTab() {
  const { steps, note } = DATA.changes;
  const layers = layersOf().map(([name, rows]) => ({
    name,
    values: steps.slice(1).map((_, column) => layerChange(rows, column)),
  }));
  const finite = layers.flatMap(({ values }) => values).filter((value) => value > 0 && Number.isFinite(value));
  const range = finite.length ? [Math.log10(Math.min(...finite)), Math.log10(Math.max(...finite))] : [0, 1];
  const canvas = el("canvas", {
    class: "heat",
    role: "img",
    tabindex: 0,
    "aria-label": "Relative change of each layer between checkpoints",
  });
  const holder = el("div", { class: "heatbox" }, canvas);
  const place = { layers, range, width: 0 };
  const draw = (wide = place.width) => {
    place.width = wide;
    if (wide) drawChanges(canvas, place);
  };
  canvas.addEventListener("pointermove", (event) => tip(event, changeTip(canvas, place, event)));
  canvas.addEventListener("pointerleave", () => tip(null, null));
  canvas.addEventListener("click", (event) => {
    const cell = cellUnder(canvas, place, event);
    if (cell) go({ tab: "tensors", q: cell.layer.name, sort: "" });
  });
  watch((changed) => {
    if (changed.has("theme")) draw();
  });
  whenWide(holder, draw);
  const legend = !finite.length
    ? null
    : el(
        "span",
        { class: "legend" },
        scaleLegend(amountColour, numberText(10 ** range[0], 2), numberText(10 ** range[1], 2)),
        el("span", { class: "key" }, el("i", { class: "dot none" }), "the same to the bit"),
      );
  return section(
    "What changed between checkpoints",
    el(
      "div",
      { class: "headline" },
      el(
        "p",
        { class: "muted" },
        "The norm of each layer's change over its norm before, on a logarithmic scale. Click a layer for its tensors.",
      ),
      legend,
    ),
    note ? el("p", { class: "note" }, note) : null,
    holder,
  );
}

function cellSize(place) {
  const columns = DATA.changes.steps.length - 1;
  const label = Math.min(CELL.label, place.width * 0.4);
  return { columns, label, wide: Math.min((place.width - label) / columns, 120) };
}

function drawChanges(canvas, place) {
  const { columns, label, wide } = cellSize(place);
  const ratio = window.devicePixelRatio || 1;
  const height = CELL.head + place.layers.length * CELL.height;
  [canvas.width, canvas.height] = [place.width * ratio, height * ratio];
  canvas.style.width = `${place.width}px`;
  canvas.style.height = `${height}px`;
  const pen = canvas.getContext("2d");
  pen.scale(ratio, ratio);
  pen.clearRect(0, 0, place.width, height);
  pen.font = '11.5px ui-sans-serif, system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  pen.textBaseline = "middle";
  const [muted, ink, none] = ["muted", "ink", "sunken"].map(themeColour);
  drawSteps(pen, { columns, label, wide, muted });
  place.layers.forEach(({ name, values }, row) => {
    const y = CELL.head + row * CELL.height;
    pen.fillStyle = ink;
    pen.fillText(fitted(pen, name, label - 12), 0, y + CELL.height / 2);
    values.forEach((value, column) => {
      pen.fillStyle = changeColour(value, place.range, none);
      pen.fillRect(label + column * wide, y, Math.max(wide - (wide > 6 ? 1 : 0), 1), CELL.height - 1);
      if (value === null) {
        pen.strokeStyle = muted;
        pen.beginPath();
        pen.moveTo(label + column * wide + 3, y + CELL.height - 4);
        pen.lineTo(label + column * wide + wide - 4, y + 3);
        pen.stroke();
      }
    });
  });
}

function drawSteps(pen, { columns, label, wide, muted }) {
  pen.fillStyle = muted;
  pen.textAlign = "left";
  const every = Math.ceil(52 / wide);
  for (let column = 0; column < columns; column += every) {
    pen.fillText(`→ ${grouped(DATA.changes.steps[column + 1])}`, label + column * wide + 2, CELL.head - 14);
  }
  pen.fillText("to step", 0, CELL.head - 14);
}

/** A long name without its middle. */
function fitted(pen, name, room) {
  if (pen.measureText(name).width <= room) return name;
  let keep = name.length - 1;
  while (
    keep > 3 &&
    pen.measureText(`${name.slice(0, Math.ceil(keep / 2))}…${name.slice(-Math.floor(keep / 2))}`).width > room
  )
    keep -= 1;
  return `${name.slice(0, Math.ceil(keep / 2))}…${name.slice(-Math.floor(keep / 2))}`;
}

function changeColour(value, [low, high], none) {
  if (value === null || value === 0) return none;
  if (!Number.isFinite(value)) return cssColour(amountColour(1));
  return cssColour(amountColour(high > low ? (Math.log10(value) - low) / (high - low) : 0.5));
}

function cellUnder(canvas, place, event) {
  const { columns, label, wide } = cellSize(place);
  const box = canvas.getBoundingClientRect();
  const row = Math.floor((event.clientY - box.top - CELL.head) / CELL.height);
  const column = Math.floor((event.clientX - box.left - label) / wide);
  const layer = place.layers[row];
  return layer && column < columns ? { layer, column: Math.max(column, -1) } : null;
}

function changeTip(canvas, place, event) {
  const cell = cellUnder(canvas, place, event);
  if (!cell) return null;
  if (cell.column < 0) return [cell.layer.name];
  const [from, to] = DATA.changes.steps.slice(cell.column, cell.column + 2);
  const value = cell.layer.values[cell.column];
  const text =
    value === null
      ? "not known"
      : value === 0
        ? "the same to the bit"
        : value === Infinity
          ? "from all zero"
          : `relative change ${numberText(value, 3)}`;
  return [cell.layer.name, `step ${grouped(from)} → ${grouped(to)}: ${text}`];
}
