// Where the reader is: the tab, the search, what is selected. All of it stands in the address, so a link keeps it.

const view = { tab: "", q: "", sort: "", t: "", step: "", with: "", log: "", zoom: "", colour: "", theme: "" };
const watchers = [];
let printing = false;

/** Calls ``watcher(changed)`` with the set of names that changed, after each change. */
function watch(watcher) {
  watchers.push(watcher);
}

/** Changes where the reader is. Only another tab makes a step for the browser's back button. */
function go(changes) {
  const changed = new Set(Object.keys(changes).filter((name) => view[name] !== changes[name]));
  if (!changed.size) return;
  Object.assign(view, changes);
  const address = addressOf(view) || "#";
  if (changed.has("tab")) history.pushState(null, "", address);
  else history.replaceState(null, "", address);
  for (const watcher of watchers) watcher(changed);
}

function addressOf(place) {
  const parts = Object.entries(place).filter(([, value]) => value !== "");
  return parts.length ? `#${parts.map(([name, value]) => `${name}=${encodeURIComponent(value)}`).join("&")}` : "";
}

/** Reads the address; what it does not say is as at the start. */
function readAddress() {
  const found = Object.fromEntries(Object.keys(view).map((name) => [name, ""]));
  for (const part of location.hash.slice(1).split("&")) {
    const [name, ...rest] = part.split("=");
    if (!Object.hasOwn(found, name)) continue;
    try {
      found[name] = decodeURIComponent(rest.join("="));
    } catch {
      found[name] = "";
    }
  }
  const changed = new Set(Object.keys(found).filter((name) => view[name] !== found[name]));
  Object.assign(view, found);
  return changed;
}

function followAddress() {
  const changed = readAddress();
  if (changed.size) for (const watcher of watchers) watcher(changed);
}
