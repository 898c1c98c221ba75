// Charts as SVG, drawn by hand: every axis says its unit, every mark says its value in a <title>.

function ticks(low, high, wanted = 5) {
  if (!(high > low)) return [low];
  const raw = (high - low) / wanted;
  const power = 10 ** Math.floor(Math.log10(raw));
  const step = [1, 2, 2.5, 5, 10].map((factor) => factor * power).find((value) => value >= raw * 0.999);
  const out = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + step * 1e-6; tick += step) out.push(Math.abs(tick) < step * 1e-9 ? 0 : tick);
  return out;
}

const scale = (low, high, from, to) => (value) => from + ((value - low) / (high - low || 1)) * (to - from);
const tip = (text) => s("title", {}, text);

function svg(width, height, label, ...children) {
  return s("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": label, class: "chart" }, children);
}

// Horizontal grid, both axes with ticks and labels, inside the box [left, top, right, bottom].
function axes(box, x, y, xTicks, yTicks, xLabel, yLabel, formatX = short, formatY = short) {
  const [left, top, right, bottom] = box;
  return [
    yTicks.map((tick) => [
      s("line", { class: "grid", x1: left, x2: right, y1: y(tick), y2: y(tick) }),
      s("text", { class: "tick", x: left - 6, y: y(tick) + 4, "text-anchor": "end" }, formatY(tick)),
    ]),
    xTicks.map((tick) => [
      s("line", { class: "axis", x1: x(tick), x2: x(tick), y1: bottom, y2: bottom + 4 }),
      s("text", { class: "tick", x: x(tick), y: bottom + 17, "text-anchor": "middle" }, formatX(tick)),
    ]),
    s("line", { class: "axis", x1: left, x2: right, y1: bottom, y2: bottom }),
    xLabel && s("text", { class: "label", x: (left + right) / 2, y: bottom + 34, "text-anchor": "middle" }, xLabel),
    yLabel && s("text", { class: "label", x: 2, y: 11 }, yLabel),
  ];
}

const clamp = (value, low, high) => Math.min(Math.max(value, low), high);
const pick = (length, wanted) => Array.from({ length: Math.min(length, wanted) }, (_, index) => Math.round((index * (length - 1)) / Math.max(Math.min(length, wanted) - 1, 1)));

function padded(values) {
  if (!values.length) return [0, 1];
  const ordered = [...values].sort((a, b) => a - b);
  const low = ordered[Math.ceil((ordered.length - 1) * 0.005)];
  const high = ordered[Math.floor((ordered.length - 1) * 0.995)]; // the first steps' losses would flatten the rest
  const margin = (high - low) * 0.06 || Math.abs(high) * 0.05 || 1;
  return [low - margin, high + margin];
}

// bars: [{from, to, value, title, color}] on a numeric axis; marks: [{at, text, class}].
function histogramChart({ bars, low, high, marks = [], width = 280, height = 170, xLabel, yLabel, shadeBelow }) {
  const box = [46, 44, width - 10, height - 40];
  const most = Math.max(...bars.map((bar) => bar.value), 1);
  const x = scale(low, high, box[0], box[2]);
  const y = scale(0, most, box[3], box[1]);
  return svg(width, height, `${yLabel} by ${xLabel}`,
    axes(box, x, y, ticks(low, high, 4), ticks(0, most, 4), xLabel, yLabel, (tick) => decimal(tick, 3)),
    bars.map((bar) => {
      const width = Math.max(x(bar.to) - x(bar.from) - 1, 0.75);
      const below = known(shadeBelow) && (bar.from + bar.to) / 2 < shadeBelow;
      return s("rect", { class: below ? "fill-dropped" : "fill-kept", x: x(bar.from) + 0.5, y: y(bar.value), width, height: Math.max(box[3] - y(bar.value), bar.value ? 0.75 : 0) }, tip(bar.title));
    }),
    marks.map((mark) => {
      const at = x(mark.at);
      const turned = at > (box[0] + box[2]) / 2;
      return [
        s("line", { class: `mark ${mark.class}`, x1: at, x2: at, y1: 16 + 13 * mark.level, y2: box[3] }),
        s("text", { class: "mark-label", x: turned ? at - 4 : at + 4, y: 25 + 13 * mark.level, "text-anchor": turned ? "end" : "start" }, mark.text),
      ];
    }));
}

// bars: [{name, value, title}] for few, named values.
function columnChart({ bars, width = 200, height = 150, xLabel, yLabel }) {
  const box = [42, 26, width - 6, height - 38];
  const most = Math.max(...bars.map((bar) => bar.value), 1);
  const y = scale(0, most, box[3], box[1]);
  const slot = (box[2] - box[0]) / bars.length;
  const every = Math.ceil((bars.length * 26) / (box[2] - box[0]));
  return svg(width, height, `${yLabel} by ${xLabel}`,
    axes(box, null, y, [], ticks(0, most, 4), xLabel, yLabel),
    bars.map((bar, index) => [
      s("rect", { class: "fill-kept", x: box[0] + slot * index + slot * 0.12, width: slot * 0.76, y: y(bar.value), height: Math.max(box[3] - y(bar.value), bar.value ? 0.75 : 0) }, tip(bar.title)),
      index % every === 0 && s("text", { class: "tick", x: box[0] + slot * (index + 0.5), y: box[3] + 15, "text-anchor": "middle" }, bar.name),
    ]));
}

// rows: [{name, low, middle, high, class, text}] as intervals around zero.
function intervalChart({ rows, xLabel, left, right, width = 880 }) {
  const gutter = 190, side = 178, step = 34;
  const height = 40 + step * rows.length + 44;
  const reach = Math.max(...rows.flatMap((row) => [Math.abs(row.low), Math.abs(row.high)]), 1e-9) * 1.12;
  const box = [gutter, 34, width - side, height - 44];
  const x = scale(-reach, reach, box[0], box[2]);
  return svg(width, height, xLabel,
    s("rect", { class: "half-a", x: box[0], y: box[1], width: x(0) - box[0], height: box[3] - box[1] }),
    s("text", { class: "label", x: box[0] + 4, y: box[1] - 9 }, "← " + left),
    s("text", { class: "label", x: box[2] - 4, y: box[1] - 9, "text-anchor": "end" }, right + " →"),
    ticks(-reach, reach, 8).map((tick) => [
      s("line", { class: "grid", x1: x(tick), x2: x(tick), y1: box[1], y2: box[3] }),
      s("text", { class: "tick", x: x(tick), y: box[3] + 17, "text-anchor": "middle" }, signed(tick)),
    ]),
    s("line", { class: "zero", x1: x(0), x2: x(0), y1: box[1] - 4, y2: box[3] + 4 }),
    s("text", { class: "label", x: (box[0] + box[2]) / 2, y: box[3] + 36, "text-anchor": "middle" }, xLabel),
    rows.map((row, index) => {
      const y = box[1] + step * (index + 0.5);
      return s("g", { class: row.class }, tip(row.text),
        s("text", { class: "row-name", x: gutter - 10, y: y + 4, "text-anchor": "end" }, row.name),
        s("line", { class: "interval", x1: x(row.low), x2: x(row.high), y1: y, y2: y }),
        s("line", { class: "interval", x1: x(row.low), x2: x(row.low), y1: y - 5, y2: y + 5 }),
        s("line", { class: "interval", x1: x(row.high), x2: x(row.high), y1: y - 5, y2: y + 5 }),
        s("circle", { class: "middle", cx: x(row.middle), cy: y, r: 4.5 }),
        s("text", { class: "row-text", x: width - side + 12, y: y + 4 }, row.note));
    }));
}

// Diverging and colour-blind safe: blue starved, balanced like the page, orange overloaded; by log2 of the multiple, from 1/4 to 4.
function heat(multiple) {
  const at = clamp(Math.log2(Math.max(multiple, 1e-6)) / 2, -1, 1);
  return `color-mix(in srgb, var(${at < 0 ? "--low" : "--high"}) ${(100 * Math.abs(at) ** 0.8).toFixed(1)}%, var(--even))`;
}

function heatLegend() {
  const stops = [0.25, 0.35, 0.5, 0.71, 1, 1.41, 2, 2.83, 4];
  return h("p", { class: "legend" }, h("span", {}, "load, × the even share: ¼ or less"),
    s("svg", { width: stops.length * 18, height: 12, role: "img", "aria-label": "from blue (a quarter or less) over the page's colour (even) to orange (four times or more)" },
      stops.map((stop, index) => s("rect", { x: index * 18, y: 0, width: 17, height: 12, fill: heat(stop) }, tip(`${stop} ×`)))),
    h("span", {}, "4 or more"));
}

// A line of p10 to p90 with the median as a dot, kept above dropped, on the column's own scale.
function rangePlot(groups, width = 240) {
  const values = groups.flatMap((group) => group.range || []);
  if (!values.length) return h("span", { class: "quiet" }, "not measured");
  const low = Math.min(...values), high = Math.max(...values);
  const x = scale(low, high, 6, width - 6);
  return svg(width, 22, groups.map((group) => group.name).join(" and "),
    groups.map((group, index) => group.range && s("g", { class: group.class },
      tip(`${group.name}: median ${decimal(group.range[1])}, 10th to 90th percentile ${decimal(group.range[0])} to ${decimal(group.range[2])}`),
      s("line", { class: "interval", x1: x(group.range[0]), x2: Math.max(x(group.range[2]), x(group.range[0]) + 1), y1: 6 + 10 * index, y2: 6 + 10 * index }),
      s("circle", { class: "middle", cx: x(group.range[1]), cy: 6 + 10 * index, r: 3.5 }))));
}

function legend(items) {
  return h("p", { class: "legend" }, items.map(([color, name]) =>
    h("span", {}, s("svg", { width: 11, height: 11, "aria-hidden": "true" }, s("rect", { class: `fill-${color}`, width: 11, height: 11, rx: 2 })), name)));
}
