// The heads: agreement with the oracle beside the baselines, the thresholds by source, and what is certified about them.

// The one place that explains the two thresholds; the scores panel shows it too.
function thresholdNote() {
  return h("p", { class: "note terms" }, h("b", {}, "tau_keep"), ": the lowest quality score with which a document of that source is kept, set so that a wanted share of the source passes, its ",
    h("b", {}, "keep rate"), ". ", h("b", {}, "tau_drop"), ": below this probe score the scoring stops early, and the probe's word is final.");
}

function panelHeads(data) {
  return [
    judgeSentence(data.training),
    data.splits.map(splitTable),
    h("h3", {}, "Thresholds by source"),
    data.calibration.groups ? calibrationTable(data.calibration) : absent(data.calibration),
  ];
}

function judgeSentence(training) {
  if (!known(training.judge_shipped)) return null;
  const what = training.judge_shipped ? "The judge was shipped beside the probe" : "The judge was not shipped, so the quality is the probe's score";
  return h("p", { class: "lead" }, what, training.reason ? `: ${training.reason.replace("judge - probe", "judge − probe").replace("= -", "= −").replace(/: probe only$/, "")}.` : ".");
}

function splitTable(split) {
  const measures = [
    ["Spearman", (cell) => [fixed(cell.spearman, 2), cell.ci95 && h("span", { class: "interval-text" }, `${fixed(cell.ci95[0], 2)} to ${fixed(cell.ci95[1], 2)}`)]],
    ["MAE", (cell) => fixed(cell.mae, 3)],
    ["QWK", (cell) => fixed(cell.qwk, 2)],
  ];
  return figure(`Split ${split.name}, ${count(split.documents)} graded documents: rank correlation with the oracle and its 95 % interval, mean absolute error, and quadratic weighted kappa of the rounded grades (0 where all are predicted alike). A head is worth its cost only where it beats the baselines beside it.`,
    table(`Agreement on split ${split.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      ...split.predictors.flatMap((name) => measures.map(([head, show]) => ({ head, number: true, cell: (row) => show(row.cells[name]) }))),
    ], split.rows, { class: "heads", groups: [["", 1], ...split.predictors.map((name) => [name, measures.length])], row: (row) => (row.name === "quality" ? "emphasis" : null) }));
}

function calibrationTable(data) {
  return [
    thresholdNote(),
    table("Thresholds by source", [
      { head: "source", class: "name", cell: (row) => [row.name === "(all)" ? "any other source" : row.name, row.parent && h("span", { class: "note" }, "too few scores of its own: those of all sources")] },
      { head: "scored for this", number: true, cell: (row) => count(row.n) },
      { head: "keep rate, target", number: true, cell: (row) => percent(row.target) },
      { head: "keep rate, reached on these", number: true, cell: (row) => percent(row.keep_rate) },
      { head: "tau_keep", number: true, cell: (row) => fixed(row.tau_keep, 4) },
      { head: "tau_drop", number: true, cell: (row) => fixed(row.tau_drop, 4) },
      { head: "early exits", number: true, cell: (row) => percent(row.exit_rate) },
    ], data.groups),
    h("p", { class: "certificate" }, certificateText(data.certificate)),
  ];
}

function certificateText(it) {
  const rate = (value) => percent(value).replace(".0", "");
  if (!known(it.mode)) return "The calibration does not say what is certified.";
  if (!known(it.tau_drop)) return `No tau_drop could be set for at most ${rate(it.max_false_drop)} false drops: nothing exits early.`;
  const seen = `${count(it.errors)} of ${count(it.n_good)} good documents among ${count(it.n_labelled)} graded ones fell below it`;
  return it.mode === "certified"
    ? `Certified: with ${rate(it.confidence)} confidence tau_drop loses at most ${rate(it.max_false_drop)} of the good documents (${seen}; upper bound ${percent(it.fd_upper)}). The bound holds for the sources as mixed in the graded sample, and against this oracle's grades.`
    : `Not certified (mode ${it.mode}): tau_drop loses ${rate(it.max_false_drop)} of the good documents in expectation only, without a bound (${seen}).`;
}
