// Curves that can be zoomed by dragging or by two numbers, read by a crosshair, and that grow while a run goes on.

const X_LABELS = { tokens: "tokens seen", steps: "step", hours: "hours since the first step" };
const MARKS = { alarm: "alarm", roll_back: "rolled back", resumed: "resumed", pause: "pause", checkpoint: "checkpoint" };

// Whatever asks again each time the page has looked for news. A place that was drawn anew leaves.
const followers = new Map(); // element -> what it does then
document.addEventListener("followed", () => {
  for (const [element, again] of followers) element.isConnected ? again() : followers.delete(element);
});

// Charts that share one x axis, its window and its crosshair.
function crosshair(zoom) {
  const charts = new Set();
  return {
    charts,
    zoom,
    show(at) { for (const chart of charts) chart.isConnected ? chart.hover(at) : charts.delete(chart); },
  };
}

// series: [{name, color, x, y, faint: {x, y}, band: {low, high}, dots, dashed}]; marks: [{x, kind, text, step}].
function curveChart({ series, marks = [], width = 440, height = 240, xLabel, yLabel, log = false, all = false, together, from, to }) {
  const box = [58, 26, width - 14, height - 42];
  const drawn = series.filter((one) => one.x.length);
  const xs = drawn.flatMap((one) => [one.x[0], one.x.at(-1)]);
  const lowX = from ?? (xs.length ? Math.min(...xs) : 0), highX = Math.max(to ?? (xs.length ? Math.max(...xs) : 1), lowX + 1e-9);
  const [lowY, highY] = heights(drawn, log, all);
  const x = scale(lowX, highX, box[0], box[2]);
  const y = log ? (value) => scale(Math.log10(lowY), Math.log10(highY), box[3], box[1])(Math.log10(Math.max(value, 1e-300))) : scale(lowY, highY, box[3], box[1]);
  const inside = (value) => clamp(y(value), box[1], box[3]);
  const line = (points) => points.x.map((at, index) => `${index ? "L" : "M"}${x(at).toFixed(1)} ${inside(points.y[index]).toFixed(1)}`).join("");
  const beyond = drawn.flatMap((one) => [one.faint, one].filter(Boolean).flatMap((points) => points.x.flatMap((at, index) =>
    points.y[index] > highY || points.y[index] < lowY ? [{ at, value: points.y[index], one }] : [])));
  const pointer = s("g", { class: "pointer" }), chosen = s("rect", { class: "chosen", y: box[1], height: box[3] - box[1], width: 0 });
  const catcher = s("rect", { class: "catcher", x: box[0], y: box[1], width: Math.max(box[2] - box[0], 0), height: Math.max(box[3] - box[1], 0) });
  const readout = h("p", { class: "readout" });
  const chart = svg(width, height, `${yLabel} over ${xLabel}`,
    axes(box, x, y, ticks(lowX, highX, width > 600 ? 8 : 4), log ? powers(lowY, highY) : ticks(lowY, highY, 5), xLabel, yLabel, short, (tick) => decimal(tick, 3)),
    marks.filter((mark) => mark.x >= lowX && mark.x <= highX).map((mark) =>
      s("line", { class: `event ${mark.kind}`, x1: x(mark.x), x2: x(mark.x), y1: mark.kind === "checkpoint" ? box[3] - 6 : box[1], y2: box[3] }, tip(markText(mark)))),
    drawn.map((one) => [
      one.band && s("path", { class: `band fill-${one.color}`, d: `${line({ x: one.x, y: one.band.high })}${line({ x: [...one.x].reverse(), y: [...one.band.low].reverse() }).replace("M", "L")}Z` }),
      one.faint && s("path", { class: `line faint stroke-${one.color}`, d: line(one.faint) }),
      s("path", { class: `line stroke-${one.color}${one.dashed ? " dashed" : ""}${one.x.length > 120 && !one.faint ? " dense" : ""}`, d: line(one), "data-points": one.x.length }, tip(one.name)),
      one.dots && one.x.length < 80 && one.x.map((at, index) => s("circle", { class: `fill-${one.color}`, cx: x(at), cy: inside(one.y[index]), r: 2.6 })),
    ]),
    beyond.slice(0, 60).map(({ at, value, one }) => s("path", { class: `beyond fill-${one.color}`, d: value > highY ? `M${x(at) - 4} ${box[1] + 7}h8l-4 -7z` : `M${x(at) - 4} ${box[3] - 7}h8l-4 7z` },
      tip(`${one.name}: ${decimal(value)} at ${short(at)}, beyond this axis`))),
    chosen, pointer, catcher);
  const place = h("div", { class: "curve" }, chart, readout);
  const placed = (at) => (highX - lowX < 100 ? decimal(at) : Math.round(at).toLocaleString("en-US"));
  const valueAt = (event) => { const area = chart.getBoundingClientRect(); return clamp(lowX + (((event.clientX - area.left) * width) / area.width - box[0]) / (box[2] - box[0]) * (highX - lowX), lowX, highX); };
  place.hover = (at) => {
    if (at === null || at < lowX || at > highX) { pointer.replaceChildren(); readout.textContent = ""; return; }
    const near = drawn.map((one) => ({ one, index: nearest(one.x, at) })).filter(({ one, index }) => index >= 0 && Math.abs(x(one.x[index]) - x(at)) < 40);
    pointer.replaceChildren(s("line", { x1: x(at), x2: x(at), y1: box[1], y2: box[3] }),
      ...near.map(({ one, index }) => s("circle", { class: `fill-${one.color}`, cx: x(one.x[index]), cy: inside(one.y[index]), r: 3.5 })));
    const seen = near.length ? near[0].one.x[near[0].index] : at;
    readout.replaceChildren(visible(xLabel === "step" ? `step ${placed(seen)}:` : `${placed(seen)} ${xLabel}:`), ...near.map(({ one, index }) => {
      const raw = one.faint ? nearest(one.faint.x, at) : -1;
      return h("span", { class: "reading" }, s("svg", { width: 9, height: 9, "aria-hidden": "true" }, s("rect", { class: `fill-${one.color}`, width: 9, height: 9 })), ` ${one.name} ${decimal(one.y[index])}`, raw >= 0 && ` (${decimal(one.faint.y[raw])} at ${placed(one.faint.x[raw])})`);
    }));
  };
  if (!together) return chart;
  together.charts.add(place);
  let began = null;
  const select = (end) => { const [low, high] = [began, end].sort((a, b) => a - b); chosen.setAttribute("x", x(low)); chosen.setAttribute("width", x(high) - x(low)); };
  catcher.addEventListener("pointerdown", (event) => { if (!together.zoom) return; began = valueAt(event); together.dragging = true; catcher.setPointerCapture(event.pointerId); });
  catcher.addEventListener("pointermove", (event) => { together.show(valueAt(event)); if (began !== null) select(valueAt(event)); });
  catcher.addEventListener("pointerleave", () => { if (began === null) together.show(null); });
  const end = (event) => {
    if (began === null) return;
    const [low, high] = [began, valueAt(event)].sort((a, b) => a - b);
    began = null;
    together.dragging = false;
    chosen.setAttribute("width", 0);
    if (event.type === "pointerup" && x(high) - x(low) > 5) together.zoom(low, high);
  };
  catcher.addEventListener("pointerup", end);
  catcher.addEventListener("pointercancel", end);
  catcher.addEventListener("dblclick", () => together.zoom?.(null, null));
  return place;
}

const markText = (mark) => `${MARKS[mark.kind]} at step ${count(mark.step)}${mark.name ? `, ${words(mark.name)}` : ""}${mark.text ? `: ${mark.text}` : ""}`;

// What is usual fills the height; what lies beyond is marked at the edge. `all`: everything fits.
function heights(series, log, all) {
  const told = series.flatMap((one) => [...one.y, ...(one.faint?.y || []), ...(one.band ? [...one.band.low, ...one.band.high] : [])]).filter((value) => known(value) && (!log || value > 0));
  if (!told.length) return log ? [0.1, 1] : [0, 1];
  const ordered = told.sort((a, b) => a - b), part = all ? 0 : 0.01;
  const low = ordered[Math.floor((ordered.length - 1) * part)], high = ordered[Math.ceil((ordered.length - 1) * (1 - part))];
  if (log) return [low / 1.05, Math.max(high * 1.05, low * 1.2)];
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low >= 0 ? Math.max(low - margin, 0) : low - margin, high + margin];
}

function powers(low, high) {
  const out = [];
  for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power += 1) for (const factor of [1, 2, 5]) out.push(factor * 10 ** power);
  const found = out.filter((tick) => tick >= low && tick <= high);
  return found.length > 1 ? found.filter((tick, index) => found.length < 9 || index % 3 === 0) : ticks(low, high, 4);
}

function nearest(sorted, at) {
  let low = 0, high = sorted.length - 1;
  while (low < high) { const middle = (low + high) >> 1; if (sorted[middle] < at) low = middle + 1; else high = middle; }
  return low > 0 && at - sorted[low - 1] < sorted[low] - at ? low - 1 : low < sorted.length ? low : -1;
}

// A colour for each run; seeds of one arm (NAME-seed0, NAME-seed1) share theirs.
function colorsOf(names) {
  const arm = (name) => name.replace(/-seed\d+$/, ""), arms = [...new Set(names.map(arm))];
  return (name) => Math.max(arms.indexOf(arm(name)), 0) % 8;
}

// Which of several are drawn, each in its colour.
function toggles(label, names, colors, shown, flip) {
  return h("div", { class: "choice toggles", role: "group", "aria-label": label }, h("span", { class: "choice-label" }, label),
    names.map((name) => h("button", { type: "button", "aria-pressed": String(shown.has(name)), onclick: () => flip(name) },
      s("svg", { width: 11, height: 11, "aria-hidden": "true" }, s("rect", { class: `fill-${colors(name)}`, width: 11, height: 11, rx: 2 })), " ", name)));
}

// A grid of cells coloured by their multiple of the even share, in a few paths; what is under the pointer is told below.
// value(row, column) -> multiple, or undefined where there is no cell.
function heatGrid({ rows, columns, value, rowName, columnName, told, xLabel, yLabel, label, width = 440, tall }) {
  const box = [52, 26, width - 8];
  const wide = (box[2] - box[0]) / Math.max(columns, 1), high = tall || clamp(wide, 7, 20), bottom = box[1] + high * rows;
  const gapX = wide > 6 ? 1 : 0, gapY = high > 6 ? 1 : 0, levels = new Map();
  for (let row = 0; row < rows; row += 1) for (let column = 0; column < columns; column += 1) {
    const multiple = value(row, column);
    if (!known(multiple)) continue;
    const level = Math.round(clamp(Math.log2(Math.max(multiple, 1e-6)), -2, 2) * 8) / 8;
    levels.set(level, (levels.get(level) || "") + `M${(box[0] + wide * column).toFixed(2)} ${(box[1] + high * row).toFixed(2)}h${(wide - gapX).toFixed(2)}v${(high - gapY).toFixed(2)}h${(gapX - wide).toFixed(2)}z`);
  }
  const readout = h("p", { class: "readout" }), everyX = Math.ceil(40 / wide), everyY = Math.ceil(13 / high);
  const ring = s("rect", { class: "ring", width: 0, height: 0 });
  const catcher = s("rect", { class: "catcher", x: box[0], y: box[1], width: wide * columns, height: high * rows });
  const drawn = svg(width, bottom + 40, label,
    s("text", { class: "label", x: 4, y: 15 }, yLabel),
    Array.from({ length: rows }, (_, row) => row % everyY === 0 && s("text", { class: "tick", x: box[0] - 6, y: box[1] + high * (row + 0.5) + 4, "text-anchor": "end" }, rowName(row))),
    [...levels].map(([level, path]) => s("path", { fill: heat(2 ** level), d: path })),
    Array.from({ length: columns }, (_, column) => column % everyX === 0 && s("text", { class: "tick", x: box[0] + wide * (column + 0.5), y: bottom + 14, "text-anchor": "middle" }, columnName(column))),
    s("text", { class: "label", x: (box[0] + box[2]) / 2, y: bottom + 32, "text-anchor": "middle" }, xLabel), ring, catcher);
  catcher.addEventListener("pointermove", (event) => {
    const area = drawn.getBoundingClientRect(), zoom = width / area.width;
    const column = clamp(Math.floor(((event.clientX - area.left) * zoom - box[0]) / wide), 0, columns - 1), row = clamp(Math.floor(((event.clientY - area.top) * zoom - box[1]) / high), 0, rows - 1);
    const text = known(value(row, column)) ? told(row, column) : "";
    readout.textContent = text;
    for (const [name, at] of Object.entries({ x: box[0] + wide * column, y: box[1] + high * row, width: text ? wide - gapX : 0, height: text ? high - gapY : 0 })) ring.setAttribute(name, at);
  });
  catcher.addEventListener("pointerleave", () => { readout.textContent = ""; ring.setAttribute("width", 0); });
  return h("div", { class: "curve" }, drawn, readout);
}
