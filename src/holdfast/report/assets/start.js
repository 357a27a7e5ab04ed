// Puts the page together. Each view is made when it is first looked at.

const DATA = JSON.parse(byId("data").textContent);
const tables = {};
const VIEWS = [
  ["difference", "Difference", () => DATA.difference, () => differenceTab()],
  ["overview", "Overview", () => true, () => overviewTab()],
  ["changes", "Changes", () => DATA.changes, () => changesTab()],
  ["bytes", "Bytes", () => DATA.tensors && DATA.tensors.names.length, () => bytesTab()],
  ["tensors", "Tensors", () => DATA.tensors && DATA.tensors.names.length, () => tensorsTab()],
  ["record", "Record", () => DATA.records && DATA.records.keys.length, () => recordTab()],
];
const made = new Map();

function shownViews() {
  return VIEWS.filter(([, , there]) => there());
}

function tabNames() {
  return shownViews().map(([name]) => name);
}

function makeTabs() {
  const bar = byId("tabs");
  for (const [name, title, , make] of shownViews()) {
    const tab = el(
      "button",
      {
        type: "button",
        role: "tab",
        id: `tab-${name}`,
        "aria-controls": `view-${name}`,
        onclick: () => go({ tab: name }),
      },
      title,
    );
    const panel = el("div", { role: "tabpanel", id: `view-${name}`, "aria-labelledby": `tab-${name}`, hidden: true });
    made.set(name, { tab, panel, make, done: false });
    bar.append(tab);
    byId("main").append(panel);
  }
  bar.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    const names = tabNames();
    const next = names[(names.indexOf(view.tab) + by + names.length) % names.length];
    go({ tab: next });
    made.get(next).tab.focus();
    event.preventDefault();
    event.stopPropagation();
  });
}

function showTab() {
  if (!made.has(view.tab)) view.tab = tabNames()[0];
  for (const [name, { tab, panel }] of made) {
    const on = name === view.tab;
    tab.setAttribute("aria-selected", on ? "true" : "false");
    tab.tabIndex = on ? 0 : -1;
    panel.hidden = !on;
  }
  const shown = made.get(view.tab);
  if (!shown.done) {
    shown.done = true;
    shown.panel.append(shown.make());
  }
  tip(null, null);
}

function applyTheme() {
  if (view.theme) document.documentElement.dataset.theme = view.theme;
  else delete document.documentElement.dataset.theme;
  byId("theme").textContent = isDark() ? "☀" : "☾";
}

function makeHeader() {
  byId("kind").textContent = DATA.kind;
  byId("title").textContent = DATA.title;
  byId("facts").replaceChildren(...DATA.facts.map((text) => el("span", null, text)));
  byId("foot").textContent = DATA.made;
  byId("theme").addEventListener("click", switchTheme);
  byId("ask").addEventListener("click", showHelp);
}

function redrawForPrint(on) {
  printing = on;
  for (const table of Object.values(tables)) table.redraw();
  tellTheme();
}

/** What is drawn in colours of its own is drawn again. */
function tellTheme() {
  for (const watcher of watchers) watcher(new Set(["theme"]));
}

readAddress();
applyTheme();
makeHeader();
makeTabs();
watch((changed) => {
  if (changed.has("theme")) applyTheme();
  if (changed.has("tab")) showTab();
});
showTab();
addEventListener("hashchange", followAddress);
addEventListener("popstate", followAddress);
addEventListener("keydown", onKey);
addEventListener("beforeprint", () => redrawForPrint(true));
addEventListener("afterprint", () => redrawForPrint(false));
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", tellTheme);
