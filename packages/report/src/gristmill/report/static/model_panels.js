// Panels about the models: scores and thresholds, oracle and heads, and the comparison of trainings.

function panelScores(data, state, change) {
  const head = data.heads.find((one) => one.head === state.head) || data.heads[0];
  const unit = head.groups[0].tokens && state.scoreUnit === "tokens" ? "tokens" : "documents";
  const source = data.sources.includes(state.scoreSource) ? state.scoreSource : "";
  return [
    h("p", { class: "lead" }, `${count(head.scored)} documents have a ${words(head.head)} score; ${count(head.unscored)} have none: they were dropped before${head.head === "judge" ? ", or exited early" : ""}. `,
      !data.calibrated ? "There is no thresholds/calibration.json, so no thresholds are drawn." : head.taus.length ? `Lines mark each source's ${head.taus.join(" and ")}.` : "No threshold is on this score.",
      data.calibrated && data.judged === 0 && " No document has a judge's score here: without a judge nothing exits early, and tau_drop decides nothing."),
    data.calibrated && thresholdNote(),
    h("div", { class: "choices" },
      h("label", {}, "Score ", h("select", { "aria-label": "Score", onchange: (event) => change({ head: event.target.value }) }, data.heads.map((one) => h("option", { value: one.head, selected: one === head }, words(one.head))))),
      h("label", {}, "Source ", h("select", { "aria-label": "Source", onchange: (event) => change({ scoreSource: event.target.value }) }, [["", "all, side by side"], ...data.sources.map((name) => [name, name])].map(([value, text]) => h("option", { value, selected: value === source }, text)))),
      head.groups[0].tokens && choice("Count", [["documents", "documents"], ["tokens", "tokens"]], unit, (value) => change({ scoreUnit: value }))),
    source ? sourceScores(data, head, source, unit) : sideBySide(data, head, unit, state),
    h("h3", {}, "Probe against judge"),
    answered("probe_judge", { source }, (found) => probeAgainstJudge(found, data.promises[source])),
  ];
}

function sideBySide(data, head, unit, state) {
  const step = (head.high - head.low) / head.groups[0].documents.length, all = head.groups[0];
  const readout = h("output", {}), plots = h("div", { class: "multiples" });
  const redraw = (threshold) => {
    const above = (values) => values ? total(values.filter((_, index) => head.low + index * step >= threshold - step * 1e-6)) : null;
    readout.textContent = whatIf(all, above, threshold);
    plots.replaceChildren(...head.groups.map((group) => scorePlot(head, group, step, unit, threshold, above, data.promises[group.source])));
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
    h("div", { class: "what-if" }, h("label", {}, "What if every source were cut at", slider), readout),
    figure(`Distribution of the ${words(head.head)} score in ${all.documents.length} bins, overall and by source. Bars left of the what-if threshold are orange.${head.beyond ? ` All share one axis; the ${count(head.beyond)} scores beyond it are counted in the outermost bars.` : ""}${head.sources > head.groups.length - 1 ? ` The ${head.groups.length - 1} largest of ${head.sources} sources; choose a source for the others.` : ""}`, plots),
  ];
}

function scorePlot(head, group, step, unit, threshold, above, promise) {
  const values = group[unit], edge = (index) => head.low + index * step;
  const marks = head.taus.filter((key) => known(group[key]));
  return h("div", {},
    h("h4", {}, group.source === null ? "all sources" : group.source, h("span", { class: "note" }, ` n = ${count(total(values))} ${unit}, ${percent(above(values), total(values))} above`)),
    histogramChart({
      bars: values.map((value, index) => ({ from: edge(index), to: edge(index + 1), value, title: `${decimal(edge(index), 3)} to ${decimal(edge(index + 1), 3)}: ${count(value)} ${unit}` })),
      low: head.low, high: head.high, shadeBelow: threshold, xLabel: `${words(head.head)} score`, yLabel: unit, width: 290, height: 190,
      marks: marks.map((key, level) => ({ at: clamp(group[key], head.low, head.high), text: `${key} ${decimal(group[key], 3)}`, class: key, level })),
    }),
    marks.map((key) => h("p", { class: "note" }, promised(key, group[key], promise))));
}

// One source by itself: finely, with the promise at each line. A page that is a file has its coarse bars.
function sourceScores(data, head, source, unit) {
  const promise = data.promises[source], group = head.groups.find((one) => one.source === source);
  const draw = (found) => {
    const values = found[unit] || found.documents;
    if (!values?.length) return h("p", { class: "quiet" }, `No document of ${source} has a ${words(head.head)} score.`);
    const step = (found.high - found.low) / values.length, edge = (index) => found.low + index * step;
    const marks = head.taus.filter((key) => known(found.taus[key]));
    const reached = (key) => found.reaching?.[key] && ` ${count(found.reaching[key][unit])} of ${count(total(values))} ${unit} (${percent(found.reaching[key][unit], total(values))}) reach it.`;
    return [
      figure(`The ${words(head.head)} score of ${source} in ${values.length} bins, n = ${count(found.scored)}${found.of > found.scored ? ` of ${count(found.of)}` : ""} documents${unit === "tokens" ? `, ${count(total(values))} tokens` : ""}${found.quantiles ? `; median ${decimal(found.quantiles[1], 4)}, a tenth below ${decimal(found.quantiles[0], 4)}, a tenth above ${decimal(found.quantiles[2], 4)}` : ""}.${found.beyond ? ` The ${count(found.beyond)} scores beyond the axis are counted in the outermost bars.` : ""}`,
        histogramChart({ bars: values.map((value, index) => ({ from: edge(index), to: edge(index + 1), value, title: `${decimal(edge(index), 4)} to ${decimal(edge(index + 1), 4)}: ${count(value)} ${unit}` })),
          low: found.low, high: found.high, xLabel: `${words(head.head)} score`, yLabel: unit, width: 900, height: 290, shadeBelow: found.taus[marks.at(-1)],
          marks: marks.map((key, level) => ({ at: clamp(found.taus[key], found.low, found.high), text: promised(key, found.taus[key], promise), class: key, level })) })),
      marks.map((key) => h("p", { class: "note" }, h("b", {}, `${key} ${decimal(found.taus[key], 4)}. `), promiseSentence(key, promise), reached(key))),
    ];
  };
  const taus = Object.fromEntries(["tau_drop", "tau_keep"].map((key) => [key, group?.[key]]));
  if (!isServed() && group) return draw({ ...group, low: head.low, high: head.high, scored: total(group.documents), of: total(group.documents), taus });
  return answered("score_histogram", { score: head.head, source }, (found) => draw({ ...found, taus: { ...taus, ...Object.fromEntries(Object.entries(found.reaching || {}).map(([key, one]) => [key, one.tau])) } }));
}

// What a threshold keeps its word on, short enough to stand at its line.
function promised(key, tau, promise) {
  const at = `${key} ${decimal(tau, 3)}`, rate = (value) => percent(value).replace(".0", "");
  if (!promise) return `${at}: no promise for this source`;
  if (key === "tau_keep") return `${at}: keeps ${rate(promise.target)}`;
  if (promise.mode !== "certified") return `${at}: uncertified, ${rate(promise.max_false_drop)} of good lost in expectation`;
  return `${at}: at most ${rate(promise.max_false_drop)} of good lost, ${rate(promise.confidence)} sure${promise.own ? "" : ", pooled"}`;
}

function promiseSentence(key, promise) {
  if (!promise) return "Nothing is promised: calibration never saw this source (it has the tau_keep of all, and no exits), or the thresholds are of none of this run's heads.";
  if (key === "tau_keep") return `Set on ${count(promise.n)} unlabelled documents of this source to keep ${percent(promise.target)} of the ${promise.keep_by}; elsewhere it keeps ${percent(promise.keep_ci95?.[0])} to ${percent(promise.keep_ci95?.[1])} (95 % interval).`;
  const seen = promise.good ? `Of the ${count(promise.good)} graded documents of this source that the oracle would keep ${count(promise.lost)} lie below it: at most ${percent(promise.upper)} do, with ${percent(promise.confidence)} confidence.` : "No graded document of this source was good enough to count false drops.";
  if (promise.mode !== "certified") return `Not certified: ${percent(promise.max_false_drop)} of the good documents are lost in expectation, without a bound${promise.pool ? ` (${count(promise.pool.n_good)} good documents of ${promise.pool.sources.length} sources together)` : ""}. ${seen}`;
  return `Certified: at most ${percent(promise.max_false_drop)} of the good documents are lost with ${percent(promise.confidence)} confidence, ${promise.own ? "by this source's own labels" : `over ${promise.pool?.sources.join(", ")} together (upper bound ${percent(promise.pool?.fd_upper)}, n = ${count(promise.pool?.n_good)}), not for this source alone`}. ${seen}`;
}

function probeAgainstJudge(found, promise) {
  if (!found.judged) return h("p", { class: "lead" }, found.scored ? `None of the ${count(found.scored)} documents with a probe's score has a judge's: these heads have no judge, or all exited early. The probe's score is the quality.` : "No document has a probe's score.");
  const width = 560, height = 420, box = [56, 28, width - 14, height - 42];
  const x = scale(found.x[0], found.x[1], box[0], box[2]), y = scale(found.y[0], found.y[1], box[3], box[1]);
  const stepX = (found.x[1] - found.x[0]) / found.bins, stepY = (found.y[1] - found.y[0]) / found.bins, most = Math.max(...found.cells.map((cell) => cell[2]));
  const drops = found.false_drops;
  const marks = [
    known(found.tau_drop) && [s("line", { class: "mark tau_drop", x1: x(found.tau_drop), x2: x(found.tau_drop), y1: box[1] - 10, y2: box[3] }), s("text", { class: "mark-label", x: x(found.tau_drop) + 4, y: box[1] - 4 }, promised("tau_drop", found.tau_drop, promise))],
    known(found.tau_keep) && [s("line", { class: "mark", x1: box[0], x2: box[2], y1: y(found.tau_keep), y2: y(found.tau_keep) }), s("text", { class: "mark-label", x: box[0] + 4, y: y(found.tau_keep) - 5 }, promised("tau_keep", found.tau_keep, promise))],
  ];
  const quadrants = found.quadrants, side = (name, key, gone) => ({ name, kept: quadrants[`${key}_kept`], not: quadrants[`${key}_not`], gone });
  return [
    h("p", { class: "lead" }, `${count(found.judged)} of ${count(found.scored)} scored documents${found.source ? ` of ${found.source}` : ""} have both scores; Spearman's rank correlation ${decimal(found.spearman, 3)} (n = ${count(found.judged)}). `,
      h("b", {}, `${count(found.exits)} exited early`), `, ${count(found.audited)} of them were judged all the same; ${count(found.unjudged)} have no judge's score.`),
    figure(`Documents by probe's and judge's score, ${found.bins} by ${found.bins} bins, n = ${count(found.judged)}; the stronger the colour, the more (by the logarithm; up to ${count(most)}). ${found.source ? "Lines are this source's thresholds." : "Thresholds are each source's own: choose a source to see them as lines."} The few beyond the axes are in the outermost bins.`,
      svg(width, height, "Judge's score over the probe's",
        axes(box, x, y, ticks(found.x[0], found.x[1], 5), ticks(found.y[0], found.y[1], 5), "probe score", "judge score", (tick) => decimal(tick, 3), (tick) => decimal(tick, 3)),
        found.cells.map(([column, row, n]) => s("rect", { class: "fill-kept", "fill-opacity": (0.12 + 0.88 * (Math.log1p(n) / Math.log1p(most))).toFixed(2), x: x(found.x[0] + column * stepX), y: y(found.y[0] + (row + 1) * stepY), width: x(found.x[0] + stepX) - x(found.x[0]), height: y(found.y[0]) - y(found.y[0] + stepY) },
          tip(`probe ${decimal(found.x[0] + column * stepX, 3)} to ${decimal(found.x[0] + (column + 1) * stepX, 3)}, judge ${decimal(found.y[0] + row * stepY, 3)} to ${decimal(found.y[0] + (row + 1) * stepY, 3)}: ${count(n)} documents`))),
        marks)),
    table("Documents by side of their source's thresholds", [
      { head: "probe", class: "name", cell: (row) => row.name },
      { head: "judge reaches tau_keep", number: true, cell: (row) => count(row.kept), value: (row) => row.kept },
      { head: "judge does not", number: true, cell: (row) => count(row.not), value: (row) => row.not },
      { head: "no judge's score", number: true, cell: (row) => count(row.gone), value: (row) => row.gone },
    ], [side("reaches tau_drop, or there is none", "above", found.unjudged - found.unjudged_below), side("below tau_drop", "below", found.unjudged_below)], { class: "slim" }),
    h("p", { class: "note" }, found.no_threshold > 0 && `${count(found.no_threshold)} documents are of sources without a tau_keep; they count as not reaching it. `,
      drops ? `What exits cost on these documents: of the ${count(found.audited)} exits that the judge saw all the same it would keep ${count(drops.wrong)}; so of all that it would keep ${percent(drops.rate)} exited, at most ${percent(drops.upper)} with 95 % confidence.` : found.exits ? "No exit was audited, so nothing is known of what exits cost on these documents." : ""),
  ];
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
    h("h3", {}, "How far to trust the oracle"),
    data.audit && here(data.audit) ? data.audit.audits.map(auditFigures) : [data.audit && absent(data.audit), h("p", { class: "note" }, "Repeated gradings (", h("code", {}, "--sample.repeats 3"), " of a pipeline) tell how far the oracle agrees with itself; ", h("code", {}, "scorer audit-oracle --labels RUN/labels/graded/labels.parquet --model MODEL --output RUN/audit"), " asks it again, in other orders and under attack, and ", h("code", {}, "--other-model"), " compares it with a second one.")],
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
