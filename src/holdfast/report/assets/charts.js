// Lines over steps, as SVG: linear or logarithmic, with gaps where a value is NaN, and marks for checkpoints.

const CHART = { height: 190, left: 58, right: 14, top: 12, bottom: 26 };

/** Round numbers between two ends, about ``wanted`` of them. */
function ticks(low, high, wanted) {
  const span = high - low || Math.abs(high) || 1;
  const rough = span / wanted;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((one) => one * power).find((one) => one >= rough * 0.75);
  const found = [];
  for (let at = Math.ceil(low / step - 1e-9) * step; at <= high + step * 1e-9; at += step) {
    found.push(Number(at.toPrecision(12)));
  }
  return found;
}

/** Powers of ten between two ends, thinned to a few; where there are fewer than two, 2 and 5 times them as well. */
function logTicks(low, high) {
  const powers = [];
  for (let at = Math.floor(Math.log10(low)); at <= Math.ceil(Math.log10(high)); at += 1) powers.push(10 ** at);
  const inside = powers.filter((one) => one >= low && one <= high);
  if (inside.length >= 2) return inside.filter((_, at) => at % Math.ceil(inside.length / 5) === 0);
  return powers.flatMap((one) => [one, one * 2, one * 5]).filter((one) => one >= low && one <= high);
}

/** From a value to a place, and the values worth a line. */
function scaleOf(values, logarithmic, from, to) {
  let [low, high] = [Math.min(...values), Math.max(...values)];
  const log = logarithmic && low > 0;
  if (low === high) {
    const room = log ? 2 : Math.abs(low) * 0.1 || 1;
    [low, high] = log ? [low / room, high * room] : [low - room, high + room];
  }
  const f = log ? Math.log10 : (value) => value;
  const pad = (f(high) - f(low)) * 0.06;
  const [start, end] = [f(low) - pad, f(high) + pad];
  const place = (value) => from + ((f(value) - start) / (end - start)) * (to - from);
  const marks = log ? logTicks(10 ** start, 10 ** end) : ticks(start, end, 4);
  return { place, marks };
}

/** The path of a line, which stops before what is no number and starts again behind it. */
function linePath(points, x, y) {
  let path = "";
  let open = false;
  for (const [step, value] of points) {
    const shown = typeof value === "number" && Number.isFinite(y(value));
    if (shown) path += `${open ? "L" : "M"}${x(step).toFixed(1)} ${y(value).toFixed(1)}`;
    open = shown;
  }
  return path;
}

const MARKS = {
  checkpoint: (x, y) => `M${x - 3.2} ${y}a3.2 3.2 0 1 0 6.4 0a3.2 3.2 0 1 0 -6.4 0`,
  best: (x, y) => {
    const corners = [...Array(10).keys()].map((at) => {
      const [angle, radius] = [(Math.PI * at) / 5 - Math.PI / 2, at % 2 ? 3.1 : 7.2];
      return `${(x + radius * Math.cos(angle)).toFixed(1)} ${(y + radius * Math.sin(angle)).toFixed(1)}`;
    });
    return `M${corners.join("L")}Z`;
  },
  pin: (x, y) => `M${x} ${y - 6.2}l5.2 6.2l-5.2 6.2l-5.2 -6.2Z`,
};

/**
 * One chart.
 *
 * given.series: [{name, points: [[step, value], ...], dash}]; given.marks: step to "checkpoint", "best" or "pin";
 * given.width: pixels; given.describe(step): the lines of the read-out; given.onHover(step or null).
 */
function lineChart(given) {
  const { width, series, marks = new Map(), log = false, height = CHART.height } = given;
  const numbers = series.flatMap(({ points }) => points.map(([, value]) => value)).filter(Number.isFinite);
  const steps = [...new Set(series.flatMap(({ points }) => points.map(([step]) => step)))].sort((a, b) => a - b);
  if (!numbers.length) return el("p", { class: "note" }, "no finite value");
  const across = steps.length > 1 ? [steps[0], steps[steps.length - 1]] : [steps[0] - 1, steps[0] + 1];
  const [left, right] = [CHART.left, width - CHART.right];
  const x = (step) => left + 6 + ((step - across[0]) / (across[1] - across[0])) * (right - left - 12);
  const scale = scaleOf(numbers, log, height - CHART.bottom, CHART.top);
  const drawn = svg("g", null);
  const root = svg("svg", {
    class: "chart",
    viewBox: `0 0 ${width} ${height}`,
    width,
    height,
    role: "img",
    tabindex: 0,
    "aria-label": given.label,
  });
  drawAxes(drawn, { scale, x, left, right, across, height, width });
  series.forEach(({ points, dash }, number) => {
    drawn.append(
      svg("path", {
        class: "line",
        d: linePath(points, x, scale.place),
        stroke: seriesColour(number),
        "stroke-dasharray": dash,
      }),
    );
    for (const [step, value] of points) {
      if (!Number.isFinite(value)) drawGap(drawn, x(step), height, given.gapText ? given.gapText(step, value) : value);
      else drawMark(drawn, x(step), scale.place(value), marks.get(step), number, points.length < 2);
    }
  });
  const hover = svg("line", { class: "hover", y1: CHART.top, y2: height - CHART.bottom, visibility: "hidden" });
  root.append(drawn, hover);
  listen(root, { steps, x, hover, width, onHover: given.onHover });
  return root;
}

function drawAxes(into, { scale, x, left, right, across, height, width }) {
  const digits = [3, 4, 5, 6].find(
    (one) => new Set(scale.marks.map((mark) => numberText(mark, one))).size === scale.marks.length,
  );
  for (const mark of scale.marks) {
    const y = scale.place(mark);
    into.append(svg("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
    into.append(
      svg("text", { class: "tick", x: left - 8, y: y + 3.5, "text-anchor": "end" }, numberText(mark, digits)),
    );
  }
  const below = height - CHART.bottom;
  into.append(svg("line", { class: "axis", x1: left, x2: right, y1: below, y2: below }));
  for (const mark of ticks(across[0], across[1], Math.max(width / 110, 2)).filter(Number.isInteger)) {
    into.append(svg("text", { class: "tick", x: x(mark), y: below + 16, "text-anchor": "middle" }, grouped(mark)));
  }
}

/** Where a value is NaN or infinite: a cross on the axis. */
function drawGap(into, x, height, value) {
  const y = height - CHART.bottom;
  const cross = svg("path", { class: "gap", d: `M${x - 3.5} ${y - 3.5}l7 7m0 -7l-7 7` });
  cross.append(svg("title", null, String(value)));
  into.append(cross);
}

function drawMark(into, x, y, kind, number, alone) {
  if (kind)
    into.append(
      svg("path", {
        class: `mark ${kind}`,
        d: MARKS[kind](x, y),
        stroke: seriesColour(number),
        fill: kind === "checkpoint" ? "var(--surface)" : seriesColour(number),
      }),
    );
  else if (alone) into.append(svg("circle", { cx: x, cy: y, r: 2.5, fill: seriesColour(number) }));
}

/** The pointer and the arrow keys move the line over a chart. */
function listen(root, { steps, x, hover, width, onHover }) {
  let at = -1;
  const show = (next) => {
    at = next;
    if (at < 0) hover.setAttribute("visibility", "hidden");
    else {
      hover.setAttribute("visibility", "visible");
      hover.setAttribute("x1", x(steps[at]));
      hover.setAttribute("x2", x(steps[at]));
    }
  };
  root.showStep = (step) => show(step === null ? -1 : steps.indexOf(step));
  const tell = (next) => {
    show(next);
    if (onHover) onHover(next < 0 ? null : steps[next]);
  };
  root.addEventListener("pointermove", (event) => {
    const box = root.getBoundingClientRect();
    const place = ((event.clientX - box.left) / box.width) * width;
    let best = 0;
    steps.forEach((step, index) => {
      if (Math.abs(x(step) - place) < Math.abs(x(steps[best]) - place)) best = index;
    });
    tell(best);
  });
  root.addEventListener("pointerleave", () => tell(-1));
  root.addEventListener("blur", () => tell(-1));
  root.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    if (!by) return;
    event.preventDefault();
    tell(Math.min(Math.max(at + by, 0), steps.length - 1));
  });
}

/** Calls ``draw(width)`` now and whenever the element becomes wider or narrower. */
function whenWide(node, draw) {
  let last = 0;
  new ResizeObserver(([entry]) => {
    const width = Math.floor(entry.contentRect.width);
    if (width > 0 && width !== last) {
      last = width;
      draw(width);
    }
  }).observe(node);
}
