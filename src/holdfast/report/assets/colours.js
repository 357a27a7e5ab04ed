// Colours that people with any colour vision can tell apart: Okabe and Ito's palette, and viridis for amounts.

const LIGHT_SERIES = ["#0063a6", "#c4500a", "#00805d", "#a84a83", "#8a6d00", "#2f8fc6", "#6b5fb5", "#7a7a7a"];
const DARK_SERIES = ["#6cb8f0", "#f0954f", "#3fc79f", "#e39ac6", "#e3c64b", "#9ad2f5", "#aaa0ee", "#a8a8a8"];
const AMOUNT = ["#440154", "#46327e", "#365c8d", "#277f8e", "#1fa187", "#4ac16d", "#a0da39", "#fde725"];
const BELOW_ZERO = ["#f4f1ea", "#a9cbe6", "#4f93c8", "#12508f"];
const ABOVE_ZERO = ["#f4f1ea", "#f3c59a", "#d9843b", "#8f4708"];
const DARK_BELOW_ZERO = ["#23272e", "#1f4d78", "#3d8bcb", "#a6d4f7"];
const DARK_ABOVE_ZERO = ["#23272e", "#74420f", "#cf7d2d", "#fbcf9f"];

function isDark() {
  if (printing) return false;
  const chosen = document.documentElement.dataset.theme;
  return chosen ? chosen === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
}

function seriesColour(number) {
  const all = isDark() ? DARK_SERIES : LIGHT_SERIES;
  return all[number % all.length];
}

/** A series colour mixed with the ground, for large areas. */
function softened(number) {
  const [colour, ground] = [channels(seriesColour(number)), channels(isDark() ? "#1b1e23" : "#ffffff")];
  return colour.map((value, at) => Math.round(value * 0.62 + ground[at] * 0.38));
}

/** A colour of the style sheet, for what is drawn on a canvas. */
function themeColour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

function channels(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

/** The colour at a share from 0 to 1 of a list of stops, as [r, g, b]. */
function between(stops, share) {
  const at = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
  const low = Math.min(Math.floor(at), stops.length - 2);
  const [a, b] = [channels(stops[low]), channels(stops[low + 1])];
  return a.map((value, index) => Math.round(value + (b[index] - value) * (at - low)));
}

function amountColour(share) {
  return between(AMOUNT, share);
}

/** Blue below zero, orange above it; ``value`` is between -1 and 1. */
function signedColour(value) {
  if (isDark()) return between(value < 0 ? DARK_BELOW_ZERO : DARK_ABOVE_ZERO, Math.abs(value));
  return between(value < 0 ? BELOW_ZERO : ABOVE_ZERO, Math.abs(value));
}

function cssColour([red, green, blue]) {
  return `rgb(${red} ${green} ${blue})`;
}

/** Black or white, whichever can be read on a colour. */
function inkOn([red, green, blue]) {
  return 0.299 * red + 0.587 * green + 0.114 * blue > 132 ? "#16181c" : "#ffffff";
}

/** A bar of a colour scale with its two ends in words. */
function scaleLegend(colour, low, high) {
  const canvas = el("canvas", { width: 120, height: 10, class: "scale", "aria-hidden": "true" });
  const pen = canvas.getContext("2d");
  for (let x = 0; x < 120; x += 1) {
    pen.fillStyle = cssColour(colour(x / 119));
    pen.fillRect(x, 0, 1, 10);
  }
  return el("span", { class: "legend" }, low, canvas, high);
}
