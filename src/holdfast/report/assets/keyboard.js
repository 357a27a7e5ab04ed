// Keys for those who leave the mouse alone.

const KEYS = [
  ["1 2 3 …", "the views, from left to right"],
  ["/", "search"],
  ["j k", "next and previous tensor"],
  ["← → ↑ ↓", "along a chart, a table, the areas, or the views"],
  ["Enter", "into an area"],
  ["Esc", "out of an area, a tensor, a search"],
  ["l", "logarithmic scale for metrics"],
  ["t", "light or dark"],
  ["?", "this list"],
];

function showHelp() {
  const dialog = byId("help");
  dialog.replaceChildren(
    el("h2", { id: "help-title" }, "Keys"),
    el(
      "dl",
      { class: "keylist" },
      KEYS.map(([keys, what]) => [
        el(
          "dt",
          null,
          keys.split(" ").map((key) => el("kbd", null, key)),
        ),
        el("dd", null, what),
      ]).flat(),
    ),
    el("form", { method: "dialog" }, el("button", { class: "primary" }, "Close")),
  );
  dialog.querySelector("form").addEventListener("submit", (event) => {
    event.preventDefault();
    dialog.close();
  });
  dialog.showModal();
}

function switchTheme() {
  go({ theme: isDark() ? "light" : "dark" });
}

function typing(event) {
  return /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
}

function onKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey || byId("help").open) return;
  if (event.key === "Escape") leave(event);
  else if (!typing(event)) press(event);
}

function leave(event) {
  if (typing(event)) {
    if (event.target.id === "search" && view.q) go({ q: "" });
    event.target.blur();
    if (tables.tensors && view.tab === "tensors") tables.tensors.node.focus();
  } else if (view.tab === "bytes" && view.zoom) go({ zoom: view.zoom.split(".").slice(0, -1).join(".") });
  else if (view.t) go({ t: "" });
  else if (view.q) go({ q: "" });
}

function press(event) {
  const tabs = tabNames();
  const number = Number(event.key);
  const acts = {
    "?": showHelp,
    t: switchTheme,
    l: () => go({ log: view.log ? "" : "1" }),
    j: () => moveRow(1),
    k: () => moveRow(-1),
    "/": startSearch,
  };
  if (number >= 1 && number <= tabs.length) go({ tab: tabs[number - 1] });
  else if (Object.hasOwn(acts, event.key)) acts[event.key]();
  else return;
  event.preventDefault();
}

function moveRow(by) {
  if (view.tab !== "difference" && tables.tensors === undefined) go({ tab: "tensors" });
  const table = tables[view.tab];
  if (table) table.move(by);
  else if (DATA.tensors) go({ tab: "tensors" });
}

function startSearch() {
  const field = byId("main").querySelector("[role=tabpanel]:not([hidden]) input[type=search]");
  if (field) field.focus();
  else if (DATA.tensors) {
    go({ tab: "tensors" });
    byId("search").focus();
  }
}
