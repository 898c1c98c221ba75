// Panels about the models: scores and thresholds, oracle and heads, and the comparison of trainings.

function panelScores(data, state, change) {
  const head = data.heads.find((one) => one.head === state.head) || data.heads[0];
  const unit = state.scoreUnit || "documents";
  const usable = head.groups.some((group) => group.tokens) ? unit : "documents";
  const step = (head.high - head.low) / head.groups[0].documents.length;
  const all = head.groups[0];
  const readout = h("output", {}), plots = h("div", { class: "multiples" });
  const redraw = (threshold) => {
    const above = (values) => values ? total(values.filter((_, index) => head.low + index * step >= threshold - step * 1e-6)) : null;
    readout.textContent = whatIf(all, above, threshold);
    plots.replaceChildren(...head.groups.map((group) => scorePlot(head, group, step, usable, threshold, above)));
  };
  const slider = h("input", { type: "range", min: 0, max: all.documents.length, step: 1, "aria-label": "threshold", // drawn in place, so that dragging goes on
    oninput: (event) => {
      state.tau = { ...state.tau, [head.head]: head.low + event.target.value * step };
      redraw(state.tau[head.head]);
    } });
  const start = state.tau?.[head.head] ?? suggested(head, step);
  slider.value = Math.round((start - head.low) / step);
  redraw(start);
  return [
    h("p", { class: "lead" }, `${count(head.scored)} documents have a ${head.head} score${head.unscored ? `; ${count(head.unscored)} were dropped or left before it was asked for` : ""}. `,
      data.calibrated ? `Lines mark each source's calibrated ${head.taus.join(" and ")}.` : "There is no thresholds/calibration.json, so no calibrated thresholds are drawn."),
    data.calibrated && thresholdNote(),
    h("div", { class: "choices" },
      choice("Score", data.heads.map((one) => [one.head, one.head]), head.head, (value) => change({ head: value })),
      all.tokens && choice("Count", [["documents", "documents"], ["tokens", "tokens"]], usable, (value) => change({ scoreUnit: value }))),
    h("div", { class: "what-if" }, h("label", {}, "What if every source were cut at", slider), readout),
    figure(`Distribution of the ${head.head} score in ${all.documents.length} bins, overall and by source. Bars left of the what-if threshold are orange.${head.beyond ? ` All share one axis; the ${count(head.beyond)} scores beyond it are counted in the outermost bars.` : ""}`, plots),
  ];
}

function scorePlot(head, group, step, unit, threshold, above) {
  const values = group[unit], edge = (index) => head.low + index * step;
  const marks = head.taus.filter((key) => known(group[key]));
  return h("div", {},
    h("h4", {}, group.source === null ? "all sources" : group.source, h("span", { class: "note" }, ` ${count(total(values))} ${unit}, ${percent(above(values), total(values))} above`)),
    histogramChart({
      bars: values.map((value, index) => ({ from: edge(index), to: edge(index + 1), value, title: `${decimal(edge(index), 3)} to ${decimal(edge(index + 1), 3)}: ${count(value)} ${unit}` })),
      low: head.low, high: head.high, shadeBelow: threshold, xLabel: `${head.head} score`, yLabel: unit, width: 290, height: 190,
      marks: marks.map((key, level) => ({ at: clamp(group[key], head.low, head.high), text: `${key} ${decimal(group[key], 3)}`, class: key, level })),
    }));
}

// Where the slider starts: the median of the sources' own thresholds.
function suggested(head, step) {
  const set = head.groups.map((group) => group[head.taus.at(-1)]).filter(known).sort((a, b) => a - b);
  const at = set.length ? set[Math.floor(set.length / 2)] : head.low;
  return head.low + Math.round((at - head.low) / step) * step;
}

function whatIf(group, above, threshold) {
  const tokens = group.tokens ? `, ${count(above(group.tokens))} tokens (${percent(above(group.tokens), total(group.tokens))})` : "";
  return `${decimal(threshold, 3)} → ${count(above(group.documents))} documents (${percent(above(group.documents), total(group.documents))})${tokens} of those scored`;
}

function panelOracle(data) {
  const counted = (counts) => Object.entries(counts || {}).map(([name, value]) => `${count(value)} ${words(name)}`).join(", ");
  return [
    h("p", { class: "lead" }, `${count(data.graded)} documents were sent to the oracle`, data.status && `: ${counted(data.status)}`, ". ",
      Object.keys(data.splits || {}).length > 0 && `Splits: ${counted(data.splits)}. `, data.engine && `Engine: ${Object.keys(data.engine).join(", ")}.`),
    figure("Grades given by the oracle, per rubric dimension.",
      h("div", { class: "multiples narrow" }, data.dimensions.map((dimension) => h("div", {},
        h("h4", {}, words(dimension.name), h("span", { class: "note" }, ` mean ${decimal(dimension.mean, 3)}, n = ${count(dimension.graded)}`)),
        columnChart({ bars: dimension.bars.map((bar) => ({ name: decimal(bar.from, 2), value: bar.count, title: `${bar.from === bar.to ? decimal(bar.from, 3) : decimal(bar.from, 3) + " to " + decimal(bar.to, 3)}: ${count(bar.count)} documents` })), width: 212, height: 150, xLabel: dimension.bars.some((bar) => bar.from !== bar.to) ? "grade (bin from)" : "grade", yLabel: "documents" }))))),
    data.agreement && agreementFigure(data.agreement),
  ];
}

function agreementFigure(data) {
  const width = 440, height = 300, box = [52, 28, width - 14, height - 42];
  const xs = data.points.map((point) => point[0]), ys = data.points.map((point) => point[1]);
  const [lowX, highX] = [Math.min(...xs), Math.max(...xs)], [lowY, highY] = [Math.min(...ys), Math.max(...ys)];
  const x = scale(lowX, highX, box[0], box[2]), y = scale(lowY, highY, box[3], box[1]);
  const low = Math.max(lowX, lowY), high = Math.min(highX, highY);
  return figure(`The ${data.head} score against the oracle's quality, on ${count(data.documents)} graded documents that the heads were not fitted on. Spearman's rank correlation ${decimal(data.spearman, 3)}. Circles are means of equal groups; on the dashed line the score equals the grade.`,
    svg(width, height, "Score against oracle quality",
      axes(box, x, y, ticks(lowX, highX, 5), ticks(lowY, highY, 5), `${data.head} score`, "oracle's quality", (tick) => decimal(tick, 3), (tick) => decimal(tick, 3)),
      high > low && s("line", { class: "diagonal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
      data.points.map((point) => s("circle", { class: "point", cx: x(point[0]), cy: y(point[1]), r: 2 })),
      s("path", { class: "line stroke-dropped", d: data.bins.map((bin, index) => `${index ? "L" : "M"}${x(bin.score)} ${y(bin.oracle)}`).join("") }),
      data.bins.map((bin) => s("circle", { class: "fill-dropped", cx: x(bin.score), cy: y(bin.oracle), r: 4.5 }, tip(`mean score ${decimal(bin.score, 3)}, mean grade ${decimal(bin.oracle, 3)}, n = ${bin.n}`)))));
}

const outcome = (winner) => (winner === null ? "no clear difference" : `${winner} better`);
const setName = (name) => (name === "all" ? "all held-out documents" : words(name));

function panelComparison(data, state, change, all) {
  const told = all.overview.verdict;
  const undecided = (row) => (row.clear ? "too few documents" : "no clear difference");
  return [
    told && h("p", { class: "lead" }, h("b", {}, `On ${setName(told.first.name)}: ${outcome(told.first.winner)}. `), told.others.map((one) => `${outcome(one.winner)} on ${one.sets.map(words).join(", ")}`).join("; "), told.others.length > 0 && "."),
    h("p", { class: "lead" }, `${known(data.budget_tokens) ? `Both models saw ${count(data.budget_tokens)} tokens` : "The models saw different numbers of tokens"} and were measured on the same documents; fewer bits per byte is better.`),
    figure(`Difference in bits per byte, ${data.a} minus ${data.b}, with 95 % confidence intervals from a paired bootstrap over documents. An interval that crosses zero shows no difference.`,
      intervalChart({ rows: data.sets.map((row) => ({ name: setName(row.name), low: row.ci95[0], middle: row.difference, high: row.ci95[1],
        class: row.winner === null ? "undecided" : row.winner === data.a ? "won-a" : "won-b",
        note: row.winner === null ? undecided(row) : outcome(row.winner),
        text: `${row.name}: ${signed(row.difference)} bits per byte, 95 % interval ${signed(row.ci95[0])} to ${signed(row.ci95[1])}` })),
        xLabel: `bits per byte, ${data.a} − ${data.b}`, left: `${data.a} better`, right: `${data.b} better` })),
    table("Comparison by evaluation set", [
      { head: "evaluation set", class: "name", cell: (row) => setName(row.name) },
      { head: "documents", number: true, cell: (row) => count(row.documents) },
      { head: `${data.a}, bits/byte`, number: true, cell: (row) => decimal(row.a_bits_per_byte) },
      { head: `${data.b}, bits/byte`, number: true, cell: (row) => decimal(row.b_bits_per_byte) },
      { head: "difference", number: true, cell: (row) => signed(row.difference) },
      { head: "in percent", number: true, cell: (row) => signed((100 * row.difference) / row.b_bits_per_byte, 2) + THIN + "%" },
      { head: "95 % interval", number: true, cell: (row) => `${signed(row.ci95[0])} to ${signed(row.ci95[1])}` },
      { head: "verdict", cell: (row) => (row.winner === null ? undecided(row) : outcome(row.winner)) },
    ], data.sets),
    data.note && h("p", { class: "note" }, data.note),
  ];
}
