// Elements and numbers. Text from files goes into the page by textContent, and nowhere else.

const SVG = "http://www.w3.org/2000/svg";

/** An element with a class, text or children: el("td", {class: "num"}, "1.5"). */
function el(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** The same for SVG. */
function svg(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, String(value));
  }
  for (const child of children.flat(2)) {
    if (child === null || child === undefined || child === false) continue;
    node.append(child instanceof Node ? child : document.createTextNode(String(child)));
  }
  return node;
}

function byId(id) {
  return document.getElementById(id);
}

function say(text) {
  byId("status").textContent = text;
}

/** 12,345: digits in groups, whatever the language of the browser. */
function grouped(count) {
  return String(count).replace(/\B(?=(\d{3})+(?!\d))/g, ",");
}

/** 1 checkpoint, 2 checkpoints. */
function counted(count, word) {
  return `${grouped(count)} ${word}${count === 1 ? "" : "s"}`;
}

/** Decimal units and three digits, as the command line has them. */
function sizeText(bytes) {
  let value = bytes;
  let unit = 0;
  const units = ["B", "kB", "MB", "GB", "TB", "PB"];
  while (value >= 999.5 && unit < units.length - 1) {
    value /= 1000;
    unit += 1;
  }
  return unit === 0 ? `${bytes} B` : `${Number(value.toPrecision(3))} ${units[unit]}`;
}

/** 25.6 M: how many parameters. */
function manyText(count) {
  for (const [length, unit] of [
    [1e12, " T"],
    [1e9, " B"],
    [1e6, " M"],
    [1e3, " k"],
  ]) {
    if (count >= length) return `${Number((count / length).toPrecision(3))}${unit}`;
  }
  return String(count);
}

/** A number in few characters: 0.0123, 1.2e-7; a dash for what is not there. */
function numberText(value, digits = 4) {
  if (value === null || value === undefined) return "–";
  if (typeof value === "string") return { nan: "NaN", inf: "∞", "-inf": "−∞" }[value] || value;
  if (value === 0) return "0";
  const size = Math.abs(value);
  const text =
    size >= 1e5 || size < 1e-3
      ? value
          .toExponential(Math.max(digits - 2, 1))
          .replace("e+", "e")
          .replace(/\.0+e/, "e")
      : String(Number(value.toPrecision(digits)));
  return text.replaceAll("-", "−");
}

function percentText(share) {
  if (share === 0) return "–";
  if (share < 0.0005) return "<0.1%";
  return `${(share * 100).toFixed(share > 0.9995 || share === 1 ? 0 : 1)}%`;
}

/** 5 min ago, in the largest unit that fits. */
function ageText(time) {
  const seconds = (Date.now() - Date.parse(time)) / 1000;
  if (seconds < -60) return "in the future";
  for (const [unit, length] of [
    ["d", 86400],
    ["h", 3600],
    ["min", 60],
  ]) {
    if (seconds >= length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return `${Math.max(Math.floor(seconds), 0)} s ago`;
}

function timeText(time) {
  return time.replace("T", " ").replace(/(\.\d+)?\+00:00$/, " UTC");
}

function shapeText(shape) {
  return shape.length ? shape.map(grouped).join(" × ") : "scalar";
}

/** Shows a line beside the pointer. */
function tip(event, lines) {
  const box = byId("tip");
  if (!lines) {
    box.hidden = true;
    return;
  }
  box.replaceChildren(...lines.map((line, at) => el(at ? "span" : "strong", null, line)));
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  const left = Math.min(event.clientX + 14, window.innerWidth - width - 8);
  const top = event.clientY + 18 + height > window.innerHeight ? event.clientY - height - 12 : event.clientY + 18;
  box.style.left = `${Math.max(left, 8)}px`;
  box.style.top = `${Math.max(top, 8)}px`;
}
