// Bytes by the names in the tree: what is drawn, and how one goes into it and out again.

const MAP_HEIGHT = 560;

function bytesTab() {
  const root = byteTree();
  const crumbs = el("nav", { class: "crumbs", "aria-label": "Where in the tree" });
  const choose = el(
    "select",
    {
      "aria-label": "Colour by",
      onchange: (event) => go({ colour: event.target.value === "dtype" ? "" : event.target.value }),
    },
    COLOURINGS.filter((_, at) => at < 2 || DATA.tensors.stats.of.length).map((name) =>
      el("option", { value: name }, name),
    ),
  );
  const legend = el("span", { class: "legend" });
  const canvas = el("canvas", {
    class: "map",
    tabindex: 0,
    role: "application",
    "aria-label": "Bytes by name as areas. Arrow keys move, Enter goes in, Escape goes out.",
  });
  const holder = el("div", { class: "mapbox" }, canvas);
  let boxes = [];
  let [width, chosen] = [0, 0];

  function zoomed() {
    let node = root;
    for (const part of view.zoom ? view.zoom.split(".") : []) {
      if (!node.below.has(part)) return root;
      node = node.below.get(part);
    }
    return node;
  }

  function draw() {
    if (!width) return;
    const ratio = window.devicePixelRatio || 1;
    [canvas.width, canvas.height] = [width * ratio, MAP_HEIGHT * ratio];
    canvas.style.width = `${width}px`;
    canvas.style.height = `${MAP_HEIGHT}px`;
    const pen = canvas.getContext("2d");
    pen.scale(ratio, ratio);
    const paint = {
      pen,
      how: colouring(view.colour || "dtype"),
      line: themeColour("surface"),
      ink: themeColour("ink"),
      under: themeColour("sunken"),
    };
    pen.clearRect(0, 0, width, MAP_HEIGHT);
    const node = zoomed();
    boxes = node.below.size
      ? squarified([...node.below.values()].map(shortened), { x: 0, y: 0, w: width, h: MAP_HEIGHT })
      : [{ node, x: 0, y: 0, w: width, h: MAP_HEIGHT }];
    for (const box of boxes) drawBox(paint, box, 0);
    if (document.activeElement === canvas && boxes[chosen]) {
      const box = boxes[chosen];
      pen.strokeStyle = themeColour("focus");
      pen.lineWidth = 3;
      pen.strokeRect(box.x + 2, box.y + 2, box.w - 4, box.h - 4);
    }
    crumbs.replaceChildren(...crumbTrail());
    choose.value = view.colour || "dtype";
    legend.replaceChildren(...legendOf(paint.how));
  }

  function crumbTrail() {
    const parts = view.zoom ? view.zoom.split(".") : [];
    const node = zoomed();
    const trail = [el("button", { type: "button", class: "link", onclick: () => go({ zoom: "" }) }, "all")];
    parts.forEach((part, at) =>
      trail.push(
        " › ",
        el(
          "button",
          { type: "button", class: "link", onclick: () => go({ zoom: parts.slice(0, at + 1).join(".") }) },
          part,
        ),
      ),
    );
    return [...trail, el("span", { class: "muted" }, `  ${sizeText(node.bytes)}`)];
  }

  function open(box) {
    if (!box) return;
    if (box.node.below.size) go({ zoom: box.node.path });
    else go({ tab: "tensors", q: "", t: DATA.tensors.names[box.node.tensor] });
  }

  const under = (event) => {
    const edge = canvas.getBoundingClientRect();
    const [x, y] = [event.clientX - edge.left, event.clientY - edge.top];
    return boxes.find((box) => x >= box.x && x < box.x + box.w && y >= box.y && y < box.y + box.h);
  };
  canvas.addEventListener("click", (event) => open(under(event)));
  canvas.addEventListener("pointermove", (event) => {
    const box = under(event);
    const count =
      box && box.node.below.size
        ? "click to go in"
        : box && box.node.tensor >= 0
          ? `${shapeText(shapeOf(box.node.tensor))} ${DATA.tensors.dtypes[DATA.tensors.dtype[box.node.tensor]]}`
          : "";
    tip(
      event,
      box
        ? [
            box.node.path,
            `${sizeText(box.node.bytes)}, ${percentText(box.node.bytes / (root.bytes || 1))} of all`,
            count,
          ]
        : null,
    );
  });
  canvas.addEventListener("pointerleave", () => tip(null, null));
  canvas.addEventListener("focus", draw);
  canvas.addEventListener("blur", draw);
  canvas.addEventListener("keydown", (event) => {
    const by = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (by) chosen = Math.min(Math.max(chosen + by, 0), boxes.length - 1);
    else if (event.key === "Enter") open(boxes[chosen]);
    else if ((event.key === "Escape" || event.key === "Backspace") && view.zoom) {
      event.stopPropagation();
      go({ zoom: view.zoom.split(".").slice(0, -1).join(".") });
    } else return;
    event.preventDefault();
    if (boxes[chosen]) say(`${boxes[chosen].node.path}, ${sizeText(boxes[chosen].node.bytes)}`);
    draw();
  });
  watch((changed) => {
    if (changed.has("zoom")) chosen = 0;
    if (["zoom", "colour", "theme"].some((name) => changed.has(name))) draw();
  });
  whenWide(holder, (wide) => {
    width = wide;
    draw();
  });
  return section(
    "",
    el("div", { class: "headline" }, crumbs, el("label", { class: "choice" }, "colour by ", choose), legend),
    holder,
    el(
      "p",
      { class: "muted" },
      "Each area is as large as its bytes. Tensors that share memory are drawn each in full.",
    ),
  );
}

function legendOf(how) {
  if (how.scale) return [scaleLegend(amountColour, how.scale[0], how.scale[1])];
  return (how.legend || []).map(([name, colour]) => {
    const dot = el("i", { class: "dot" });
    dot.style.background = colour;
    return el("span", { class: "series" }, dot, name);
  });
}

/** A node: its own tensors, or its parts in a frame with its name. */
function drawBox(paint, { node, x, y, w, h }, depth) {
  const { pen, how, line, ink, under } = paint;
  if (w < 0.7 || h < 0.7) return;
  if (node.tensor >= 0 && !node.below.size) {
    const colour = how.colour(node.tensor);
    pen.fillStyle = cssColour(colour);
    pen.fillRect(x, y, w, h);
    if (w > 3 && h > 3) {
      pen.strokeStyle = line;
      pen.lineWidth = 1;
      pen.strokeRect(x + 0.5, y + 0.5, w - 1, h - 1);
    }
    drawName(pen, node, { x, y, w, h }, inkOn(colour));
    return;
  }
  const framed = w > 46 && h > 34 && depth < 4;
  pen.fillStyle = under;
  pen.fillRect(x, y, w, h);
  const head = framed ? 19 : 0;
  const edge = framed ? 3 : Math.min(w, h) > 8 ? 1 : 0;
  if (framed) drawName(pen, node, { x, y, w, h: head }, ink);
  const inner = { x: x + edge, y: y + (head || edge), w: w - 2 * edge, h: h - (head || edge) - edge };
  if (inner.w * inner.h < 30) {
    const first = firstTensor(node);
    pen.fillStyle = first < 0 ? under : cssColour(how.colour(first));
    pen.fillRect(x, y, w, h);
    return;
  }
  for (const box of squarified([...node.below.values()].map(shortened), inner)) drawBox(paint, box, depth + 1);
  if (depth === 0) {
    pen.strokeStyle = line;
    pen.lineWidth = 2;
    pen.strokeRect(x, y, w, h);
  }
}

function firstTensor(node) {
  let at = node;
  while (at.tensor < 0 && at.below.size) at = at.below.values().next().value;
  return at.tensor;
}

function drawName(pen, node, { x, y, w, h }, colour) {
  if (w < 34 || h < 15) return;
  pen.font = '500 11.5px ui-sans-serif, system-ui, "Segoe UI", Roboto, "DejaVu Sans", sans-serif';
  pen.fillStyle = colour;
  pen.textBaseline = "top";
  let text = node.name;
  const room = w - 10;
  if (pen.measureText(text).width > room) {
    while (text.length > 1 && pen.measureText(`${text}…`).width > room)
      text = text.slice(0, Math.max(text.length - Math.ceil(text.length / 12), 1));
    if (text.length < 2) return;
    text += "…";
  }
  pen.fillText(text, x + 5, y + 4);
  if (h > 36 && pen.measureText(sizeText(node.bytes)).width < room) {
    pen.globalAlpha = 0.75;
    pen.fillText(sizeText(node.bytes), x + 5, y + 19);
    pen.globalAlpha = 1;
  }
}
