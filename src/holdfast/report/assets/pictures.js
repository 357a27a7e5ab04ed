// Small pictures of one tensor: the histogram of its magnitudes, and its values as a grid of cells.

/** Bins from the most negative to the most positive magnitude: {label, count, sign}. */
function bins(histogram, zeros) {
  const [first, negative, positive] = histogram;
  const named = (counts, sign) => counts.map((count, at) => ({ count, sign, exponent: first + at }));
  return [...named(negative, -1).reverse(), { count: zeros, sign: 0, exponent: null }, ...named(positive, 1)];
}

function binText({ sign, exponent, count }) {
  if (sign === 0) return `zero: ${grouped(count)}`;
  const [low, high] = [2 ** exponent, 2 ** (exponent + 1)].map((one) => numberText(one, 3));
  const range = sign < 0 ? `−${high} to −${low}` : `${low} to ${high}`;
  return `${range}: ${grouped(count)}`;
}

/** The histogram as bars, for a row of the table: no axis, no words. */
function tinyHistogram(histogram, zeros) {
  const shown = bins(histogram, zeros);
  const top = Math.max(...shown.map((one) => one.count));
  const wide = 88 / shown.length;
  const bars = { "-1": "", 0: "", 1: "" };
  shown.forEach(({ count, sign }, at) => {
    const high = count ? Math.max((count / top) * 20, 0.8) : 0;
    if (high)
      bars[sign] +=
        `M${(at * wide).toFixed(2)} 21v${(-high).toFixed(2)}h${(wide * 0.82).toFixed(2)}v${high.toFixed(2)}Z`;
  });
  return svg(
    "svg",
    { class: "tiny", viewBox: "0 0 88 22", width: 88, height: 22, "aria-hidden": "true" },
    svg("path", { d: bars[-1], class: "below" }),
    svg("path", { d: bars[0], class: "zero" }),
    svg("path", { d: bars[1], class: "above" }),
  );
}

/** The histogram with its axis: magnitudes grow to both sides of zero. */
function fullHistogram(histogram, zeros, width) {
  const shown = bins(histogram, zeros);
  const [height, low] = [150, 20];
  const top = Math.max(...shown.map((one) => one.count));
  const wide = width / shown.length;
  const root = svg("svg", {
    class: "histogram",
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    "aria-label": "Histogram of magnitudes, one bin an octave",
  });
  shown.forEach((bin, at) => {
    const high = bin.count ? Math.max((bin.count / top) * (height - low - 8), 1) : 0;
    const bar = svg("rect", {
      x: at * wide + wide * 0.08,
      y: height - low - high,
      width: wide * 0.84,
      height: high,
      class: bin.sign < 0 ? "below" : bin.sign ? "above" : "zero",
    });
    const column = svg("rect", { class: "catch", x: at * wide, y: 0, width: wide, height: height - low });
    column.addEventListener("pointermove", (event) => tip(event, [binText(bin)]));
    column.addEventListener("pointerleave", () => tip(null, null));
    root.append(bar, column);
  });
  root.append(svg("line", { class: "axis", x1: 0, x2: width, y1: height - low, y2: height - low }));
  const last = shown.length - 1;
  const words = [
    [0, "start", shown[0]],
    [Math.floor(last / 2), "middle", shown[Math.floor(last / 2)]],
    [last, "end", shown[last]],
  ];
  for (const [at, anchor, bin] of words) {
    const x = anchor === "start" ? 0 : anchor === "end" ? width : (at + 0.5) * wide;
    const text = bin.sign ? `${bin.sign < 0 ? "−" : ""}${numberText(2 ** (bin.exponent + 1), 2)}` : "0";
    root.append(svg("text", { class: "tick", x, y: height - 4, "text-anchor": anchor }, text));
  }
  return root;
}

/** A tensor's cells as a canvas; blue is below zero, orange above, hatched where values are not finite. */
function thumbnailCanvas([rows, columns, top, packed], width) {
  const cells = Uint8Array.from(atob(packed), (char) => char.charCodeAt(0));
  const side = Math.max(Math.floor(Math.min(width / columns, 280 / rows)), 1);
  const canvas = el("canvas", {
    width: columns * side,
    height: rows * side,
    class: "cells",
    role: "img",
    "aria-label": `The values as ${rows} by ${columns} cells`,
  });
  const pen = canvas.getContext("2d");
  cells.forEach((cell, at) => {
    const [x, y] = [(at % columns) * side, Math.floor(at / columns) * side];
    pen.fillStyle = cell === 255 ? themeColour("bad") : cssColour(signedColour((cell - 127) / 127));
    pen.fillRect(x, y, side, side);
  });
  canvas.addEventListener("pointermove", (event) => {
    const box = canvas.getBoundingClientRect();
    const column = Math.min(Math.floor(((event.clientX - box.left) / box.width) * columns), columns - 1);
    const row = Math.min(Math.floor(((event.clientY - box.top) / box.height) * rows), rows - 1);
    const cell = cells[row * columns + column];
    tip(event, [
      cell === 255 ? "NaN or infinite" : numberText(((cell - 127) / 127) * top, 3),
      `row ${row}, column ${column} of the picture`,
    ]);
  });
  canvas.addEventListener("pointerleave", () => tip(null, null));
  return canvas;
}
