// A table of any length: only the rows that can be seen are in the page.

const ROW = 32;
const EXTRA = 8;

/**
 * given.columns: [{key, title, class, sortable}]; given.cells(number): an array of cells; given.label: for readers;
 * given.onSelect(number), given.onSort(key).
 *
 * Returns {node, show(numbers), select(number), move(by), sorted(text), redraw()}.
 */
function longTable(given) {
  let order = [];
  let selected = -1;
  const head = el("div", { class: "row head", role: "row" });
  const space = el("div", { class: "space", role: "rowgroup" });
  const scroller = el(
    "div",
    {
      class: `scroller ${given.class || ""}`,
      role: "grid",
      tabindex: 0,
      "aria-label": given.label,
      "aria-readonly": "true",
    },
    el("div", { class: "sticky", role: "rowgroup" }, head),
    space,
  );
  const live = new Map();

  function draw() {
    const all = printing ? Math.min(order.length, 200) : order.length;
    space.style.height = `${all * ROW}px`;
    const first = printing ? 0 : Math.max(Math.floor(scroller.scrollTop / ROW) - EXTRA, 0);
    const last = printing ? all : Math.min(first + Math.ceil((scroller.clientHeight || 600) / ROW) + 2 * EXTRA, all);
    for (const [at, row] of live) {
      if (at < first || at >= last) {
        row.remove();
        live.delete(at);
      }
    }
    for (let at = first; at < last; at += 1) if (!live.has(at)) add(at);
  }

  function rowId(number) {
    return `${given.label.replaceAll(" ", "-")}-${number}`;
  }

  function add(at) {
    const number = order[at];
    const row = el(
      "div",
      {
        class: number === selected ? "row selected" : "row",
        role: "row",
        id: rowId(number),
        "aria-rowindex": at + 2,
        "aria-selected": number === selected ? "true" : "false",
      },
      given
        .cells(number)
        .map((content, column) => el("div", { class: given.columns[column].class || "", role: "gridcell" }, content)),
    );
    row.style.top = `${at * ROW}px`;
    row.addEventListener("click", () => select(number));
    live.set(at, row);
    space.append(row);
  }

  function redraw() {
    for (const row of live.values()) row.remove();
    live.clear();
    draw();
  }

  function show(numbers) {
    order = numbers;
    scroller.style.maxHeight = `${Math.max(numbers.length, 4) * ROW + 40}px`;
    scroller.setAttribute("aria-rowcount", String(numbers.length + 1));
    scroller.scrollTop = 0;
    redraw();
    reveal();
  }

  function reveal() {
    const at = order.indexOf(selected);
    if (at < 0) return;
    const [top, room] = [at * ROW, scroller.clientHeight - ROW];
    if (top < scroller.scrollTop) scroller.scrollTop = top;
    else if (room > 0 && top + ROW > scroller.scrollTop + room) scroller.scrollTop = top + ROW - room;
  }

  function select(number, quiet) {
    selected = number;
    reveal();
    redraw();
    if (live.has(order.indexOf(number))) scroller.setAttribute("aria-activedescendant", rowId(number));
    else scroller.removeAttribute("aria-activedescendant");
    if (!quiet && given.onSelect) given.onSelect(number);
  }

  function move(by) {
    if (!order.length) return;
    const at = order.indexOf(selected);
    select(order[Math.min(Math.max(at < 0 ? 0 : at + by, 0), order.length - 1)]);
  }

  function sorted(text) {
    head.replaceChildren(...given.columns.map((column) => headCell(column, text)));
  }

  function headCell({ key, title, class: kind, sortable }, text) {
    const down = text === `-${key}`;
    const on = down || text === key;
    const sort = on ? (down ? "descending" : "ascending") : "none";
    const next = nextSort(key, text);
    const inside = sortable
      ? el(
          "button",
          { type: "button", onclick: () => given.onSort(next) },
          title,
          on ? el("span", { class: "arrow", "aria-hidden": "true" }, down ? "↓" : "↑") : null,
        )
      : title;
    return el("div", { class: kind || "", role: "columnheader", "aria-sort": sort }, inside);
  }

  scroller.addEventListener("scroll", draw, { passive: true });
  scroller.addEventListener("keydown", (event) => {
    const page = Math.max(Math.floor(scroller.clientHeight / ROW) - 2, 1);
    const by = { ArrowDown: 1, ArrowUp: -1, PageDown: page, PageUp: -page, Home: -order.length, End: order.length }[
      event.key
    ];
    if (by === undefined) return;
    event.preventDefault();
    move(by);
  });
  let seen = false;
  new ResizeObserver(() => {
    if (!seen && scroller.clientHeight) {
      seen = true;
      reveal();
    }
    draw();
  }).observe(scroller);
  sorted("");
  return { node: scroller, show, select, move, sorted, redraw };
}

/** What a click on a column's head sorts by: names upwards first, numbers downwards, and the third click by neither. */
function nextSort(key, text) {
  const both = key === "name" ? [key, `-${key}`] : [`-${key}`, key];
  return text === both[0] ? both[1] : text === both[1] ? "" : both[0];
}
