// From tensors to areas and their colours. The areas are squarified after Bruls, Huizing and van Wijk, "Squarified
// Treemaps", 2000.

const COLOURINGS = ["dtype", "part", "std", "largest magnitude", "share of zeros"];

/** The tree of names: {name, path, bytes, below: Map, tensor}. */
function byteTree() {
  const root = { name: "all", path: "", bytes: 0, below: new Map(), tensor: -1 };
  DATA.tensors.names.forEach((name, at) => {
    const bytes = DATA.tensors.bytes[at];
    let node = root;
    node.bytes += bytes;
    let path = "";
    for (const part of name.split(".")) {
      path = path ? `${path}.${part}` : part;
      if (!node.below.has(part)) node.below.set(part, { name: part, path, bytes: 0, below: new Map(), tensor: -1 });
      node = node.below.get(part);
      node.bytes += bytes;
    }
    node.tensor = at;
  });
  return root;
}

/** A node below which there is only one is that one, with both names. */
function shortened(node) {
  let [at, name] = [node, node.name];
  while (at.below.size === 1 && at.tensor < 0) {
    at = at.below.values().next().value;
    name = `${name}.${at.name}`;
  }
  return { ...at, name };
}

/** Rectangles for nodes in a box: rows are filled while their shapes get squarer. */
function squarified(nodes, box) {
  const found = [];
  const sorted = nodes.filter((node) => node.bytes > 0).sort((a, b) => b.bytes - a.bytes);
  let { x, y, w, h } = box;
  let total = sorted.reduce((sum, node) => sum + node.bytes, 0);
  let at = 0;
  while (at < sorted.length && w > 0.5 && h > 0.5) {
    const side = Math.min(w, h);
    const scale = (w * h) / total;
    let [sum, best, count] = [0, Infinity, 0];
    for (let next = at; next < sorted.length; next += 1) {
      const grown = sum + sorted[next].bytes;
      const thick = (grown * scale) / side;
      const worst = Math.max(
        thick / ((sorted[next].bytes * scale) / thick),
        (sorted[at].bytes * scale) / thick / thick,
      );
      if (worst > best) break;
      [sum, best, count] = [grown, worst, count + 1];
    }
    const thick = (sum * scale) / side;
    let along = 0;
    for (const node of sorted.slice(at, at + count)) {
      const length = (node.bytes * scale) / thick;
      found.push(
        w >= h ? { node, x, y: y + along, w: thick, h: length } : { node, x: x + along, y, w: length, h: thick },
      );
      along += length;
    }
    if (w >= h) [x, w] = [x + thick, w - thick];
    else [y, h] = [y + thick, h - thick];
    total -= sum;
    at += count;
  }
  return found;
}

/** What colours a tensor, and the words beside the scale. */
function colouring(name) {
  const { dtype, dtypes, stats, names, bytes } = DATA.tensors;
  if (name === "dtype" || name === "part") {
    const keys = name === "dtype" ? dtypes : [...new Set(names.map((one) => one.split(".")[0]))];
    const numbers = new Map(keys.map((key, number) => [key, number]));
    const of = (at) => (name === "dtype" ? dtype[at] : numbers.get(names[at].split(".")[0]));
    return {
      colour: (at) => softened(of(at)),
      legend: keys.slice(0, 8).map((key, number) => [key, cssColour(softened(number))]),
    };
  }
  const value = (row) => {
    if (name === "share of zeros") return stats.count[row] ? stats.zeros[row] / stats.count[row] : null;
    return name === "std" ? stats.std[row] : Math.max(Math.abs(stats.min[row]), Math.abs(stats.max[row]));
  };
  const log = name !== "share of zeros";
  const raw = stats.of.map((_, row) => value(row)).filter((one) => one !== null && (!log || one > 0));
  const [low, high] = log ? middleOf(stats.of.map((at, row) => [value(row), bytes[at]])) : [0, 1];
  const f = log ? Math.log10 : (one) => one;
  const share = (one) => (high > low ? (f(one) - f(low)) / (f(high) - f(low)) : 0.5);
  const grey = channels(isDark() ? "#3a3f47" : "#d8d5ce");
  const colour = (at) => {
    const row = statsRow(at);
    const one = row < 0 ? null : value(row);
    return one === null || (log && !(one > 0)) ? grey : amountColour(share(one));
  };
  return { colour, scale: raw.length ? [numberText(low, 2), numberText(high, 2)] : null };
}

/** The ends of a scale: one part in fifty of the bytes lies outside at either end, so that few tensors don't set it. */
function middleOf(weighted) {
  const sorted = weighted.filter(([value]) => value > 0).sort((a, b) => a[0] - b[0]);
  const total = sorted.reduce((sum, [, weight]) => sum + weight, 0);
  let below = 0;
  let [low, high] = [null, null];
  for (const [value, weight] of sorted) {
    below += weight;
    if (low === null && below >= total * 0.02) low = value;
    if (high === null && below >= total * 0.98) high = value;
  }
  return [low, high];
}
