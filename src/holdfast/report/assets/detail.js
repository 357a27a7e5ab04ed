// One tensor: its numbers, its histogram, its picture, and its way through the checkpoints.

function tensorDetail(at) {
  const { names, dtypes, dtype, bytes, stats } = DATA.tensors;
  const row = statsRow(at);
  const close = el(
    "button",
    { type: "button", class: "quiet close", "aria-label": "Close", title: "Close (Esc)", onclick: () => go({ t: "" }) },
    "×",
  );
  const head = [
    close,
    el(
      "h3",
      { class: "path" },
      names[at].split(/(?<=\.)/).map((part) => [part, el("wbr")]),
    ),
    el(
      "p",
      { class: "facts" },
      [dtypes[dtype[at]], shapeText(shapeOf(at)), sizeText(bytes[at])].map((text) => el("span", null, text)),
    ),
  ];
  const others = sharedWith(at);
  if (others.length)
    head.push(
      el(
        "p",
        { class: "muted" },
        "shares its memory with ",
        others
          .slice(0, 5)
          .map((one) => names[one])
          .join(", "),
        others.length > 5 ? ` and ${others.length - 5} more` : "",
      ),
    );
  if (at in stats.note) head.push(el("p", { class: "note" }, stats.note[at]));
  if (row < 0)
    return [...head, el("p", { class: "note" }, DATA.tensors.without || "Nothing was counted of this tensor.")];
  return [...head, figures(at, row), ...pictures(at, row), ...wayThrough(at)];
}

function figures(at, row) {
  const stats = DATA.tensors.stats;
  const count = stats.count[row];
  const share = (value) => (value ? `${grouped(value)} (${percentText(value / count)})` : "0");
  const lines = [
    ["min", numberText(stats.min[row], 5)],
    ["max", numberText(stats.max[row], 5)],
    ["mean", numberText(stats.mean[row], 5)],
    ["std", numberText(stats.std[row], 5)],
    ["norm", numberText(stats.norm[row], 5)],
    ["zeros", share(stats.zeros[row])],
    ["NaN", share(stats.nan[row])],
    ["infinite", share(stats.inf[row])],
  ];
  const wrong = { NaN: stats.nan[row] > 0, infinite: stats.inf[row] > 0 };
  const dead = stats.dead[at];
  return el(
    "div",
    null,
    dead ? el("p", null, el("span", { class: "chip warn" }, dead)) : null,
    el(
      "dl",
      { class: "figures" },
      lines.map(([name, value]) =>
        el("div", { class: wrong[name] ? "bad" : "" }, el("dt", null, name), el("dd", null, value)),
      ),
    ),
  );
}

const PANEL = 320;

function pictures(at, row) {
  const stats = DATA.tensors.stats;
  const found = [];
  if (at in stats.histogram) {
    found.push(
      el(
        "figure",
        null,
        fullHistogram(stats.histogram[at], stats.zeros[row], PANEL),
        el("figcaption", null, "Magnitudes: each bin is twice as far from zero as the one before it."),
      ),
    );
  }
  const [rows, columns, top] = stats.thumbnail[at] || [0, 0, 0];
  if (top > 0) {
    const whole = shapeOf(at)[0] <= rows && elementsOf(at) / shapeOf(at)[0] <= columns;
    found.push(
      el(
        "figure",
        null,
        thumbnailCanvas(stats.thumbnail[at], PANEL),
        el(
          "figcaption",
          null,
          whole ? "Every value. " : "Means of blocks of values. ",
          scaleLegend((share) => signedColour(share * 2 - 1), `−${numberText(top, 2)}`, numberText(top, 2)),
        ),
      ),
    );
  }
  return found;
}

/** The norm and the change of a tensor over the checkpoints of the run. */
function wayThrough(at) {
  const changes = DATA.changes;
  const row = changes ? changes.of.indexOf(at) : -1;
  if (row < 0) return [];
  const steps = changes.steps;
  const norms = steps.map((step, index) => [step, changes.norm[row][index]]);
  const moved = steps
    .slice(1)
    .map((step, index) => [step, relativeChange(changes.change[row][index], changes.norm[row][index])]);
  return [
    el(
      "figure",
      null,
      lineChart({
        width: PANEL,
        height: 120,
        series: [{ name: "norm", points: norms }],
        label: "Norm over the checkpoints",
      }),
      el("figcaption", null, "Norm at each checkpoint."),
    ),
    el(
      "figure",
      null,
      lineChart({
        width: PANEL,
        height: 120,
        series: [{ name: "change", points: moved }],
        log: true,
        label: "Change since the checkpoint before",
      }),
      el("figcaption", null, "Norm of the change since the checkpoint before, relative to its norm."),
    ),
  ];
}

function relativeChange(change, norm) {
  if (change === null || norm === null) return "unknown";
  return norm > 0 ? change / norm : change > 0 ? "from zero" : 0;
}
