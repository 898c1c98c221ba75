// The heads: how they agree with the oracle beside the baselines, whether predictions mean what they say, what exits spare, and the thresholds.

// The one place that explains the two thresholds; the scores panel shows it too.
function thresholdNote() {
  return h("p", { class: "note terms" }, h("b", {}, "tau_keep"), ": the lowest quality score with which a document of that source is kept, set so that a wanted share of the source passes, its ",
    h("b", {}, "keep rate"), ". ", h("b", {}, "tau_drop"), ": below this probe score the scoring stops early, and the probe's word is final.");
}

function panelHeads(data, state, change) {
  const bundle = data.bundles.find((one) => one.name === state.bundle) || data.bundles[0];
  const split = bundle.splits.find((one) => one.name === state.split) || bundle.splits[0];
  return [
    h("div", { class: "choices" },
      data.bundles.length > 1 && choice("Rubric", data.bundles.map((one) => [one.name, one.name]), bundle.name, (value) => change({ bundle: value })),
      bundle.splits.length > 1 && choice("Split", bundle.splits.map((one) => [one.name, one.name]), split.name, (value) => change({ split: value }))),
    judgeSentence(bundle.training),
    split && splitFigures(split),
    bundle.exits && exitsFigure(bundle.exits, split?.name, bundle.calibration),
    h("h3", {}, "Thresholds by source"),
    bundle.calibration.groups ? calibrationTable(bundle.calibration, bundle.training.judge_shipped) : absent(bundle.calibration),
    h("h3", {}, "Drift"),
    data.drift.sources ? driftTable(data.drift.sources.filter((row) => row.rubric === bundle.name)) : absent(data.drift),
    h("h3", {}, "The card"),
    bundle.card ? headsCard(bundle, split) : absent({ missing: `heads/${bundle.name}/scorer.json`, made_by: "scorer train-heads" }),
  ];
}

function judgeSentence(training) {
  if (!known(training.judge_shipped)) return null;
  const what = training.judge_shipped ? "The judge was shipped beside the probe" : "The judge was not shipped, so the quality is the probe's score";
  return h("p", { class: "lead" }, what, training.reason ? `: ${training.reason.replace("- probe", "− probe").replace("= -", "= −").replace(/: probe only$/, "")}.` : ".");
}

// A value with its 95 % interval below it.
const estimate = (row, name, digits) => [fixed(row[name], digits), row[`${name}_ci95`] && h("span", { class: "interval-text" }, `${fixed(row[`${name}_ci95`][0], digits)} to ${fixed(row[`${name}_ci95`][1], digits)}`)];
const estimated = (head, name, digits) => ({ head, number: true, cell: (row) => estimate(row, name, digits) });

function splitFigures(split) {
  return [
    h("p", { class: "lead" }, verdictSentence(split)),
    figure(`Split ${split.name}, ${count(split.documents)} graded documents on which nothing was fitted: agreement with the oracle's quality, and the decision to keep the best of each source. Below each number its 95 % interval, by bootstrap over hosts or documents. A head is worth its cost only where it beats the baselines below it.`,
      table(`Predictors on split ${split.name}`, [
        { head: "predictor", class: "name", cell: (row) => row.name },
        estimated("Spearman", "spearman", 2),
        { head: "within sources, mean / worst", number: true, cell: (row) => { const [mean, range] = estimate(row.within, "mean", 2); return [`${mean} / ${fixed(row.within.worst, 2)}`, range]; } },
        estimated("mean absolute error", "mae", 3),
        estimated("bias", "bias", 3),
        estimated("keep: area under ROC", "auroc", 2),
        estimated("precision", "precision", 2),
        estimated("lift", "lift", 2),
      ], split.predictors, { class: "measures", row: (row) => (row.head ? "own" : null) })),
    figure(`The ${split.head} by dimension of the rubric. Kappa is of the rounded grades, quadratically weighted.${split.dimensions.some((row) => known(row.ceiling)) ? " The ceiling is what a perfect head could reach, as the oracle agrees with itself no better." : ""}`,
      table(`The ${split.head} by dimension`, [
        { head: "dimension", class: "name", cell: (row) => words(row.name) },
        { head: "n", number: true, cell: (row) => count(row.n) },
        estimated("Spearman", "spearman", 2),
        split.dimensions.some((row) => known(row.ceiling)) && { head: "of the ceiling", number: true, cell: (row) => (known(row.ceiling) && row.ceiling > 0 ? percent(row.spearman, row.ceiling) : "–") },
        estimated("weighted kappa", "qwk", 2),
        estimated("mean absolute error", "mae", 2),
        estimated("bias", "bias", 2),
      ].filter(Boolean), split.dimensions, { class: "measures" })),
    reliabilityFigures(split),
    figure(`The ${split.head} by source, language and length: agreement, and what it keeps where each source keeps its share.`,
      table(`The ${split.head} by slice`, [
        { head: "by", class: "name", cell: (row) => [row.value || "(none)", h("span", { class: "note" }, row.by)] },
        { head: "n", number: true, cell: (row) => count(row.n) },
        estimated("Spearman", "spearman", 2),
        { head: "mean absolute error", number: true, cell: (row) => fixed(row.mae, 3) },
        { head: "bias", number: true, cell: (row) => fixed(row.bias, 3) },
        { head: "documents kept", number: true, cell: (row) => percent(row.keep_rate) },
        { head: "tokens kept", number: true, cell: (row) => percent(row.kept_tokens) },
      ], split.slices, { class: "measures" })),
  ];
}

function verdictSentence(split) {
  const told = split.against.filter((one) => known(one.difference)).map((one) => {
    const clear = one.difference_ci95 && (one.difference_ci95[0] > 0 || one.difference_ci95[1] < 0);
    const range = one.difference_ci95 ? ` (${signed(one.difference_ci95[0], 2)} to ${signed(one.difference_ci95[1], 2)})` : "";
    return [h("b", {}, !clear ? "does not clearly differ from " : one.difference > 0 ? "beats " : "loses to "), `${one.name} by ${signed(one.difference, 2)}${range}`];
  });
  if (!told.length) return `There is no baseline on split ${split.name} to compare the ${split.head} with.`;
  return [`In Spearman's rank correlation the ${split.head} `, told.map((one, index) => [index ? (index === told.length - 1 ? ", and " : ", ") : "", one]), "."];
}

function reliabilityFigures(split) {
  const drawn = split.reliability.filter((one) => one.bins.length > 1);
  return h("div", { class: "columns" },
    drawn.length > 0 && figure(`Reliability of the predicted quality: means of equal groups, with intervals of the grade; on the dashed line the prediction is what the oracle gave. Expected calibration error: ${drawn.map((one) => `${one.head} ${fixed(one.ece, 3)}${one.ece_ci95 ? ` (${fixed(one.ece_ci95[0], 3)} to ${fixed(one.ece_ci95[1], 3)})` : ""}`).join(", ")}.`,
      drawn.length > 1 && legend(drawn.map((one, index) => [index, one.head])),
      reliabilityChart(drawn.map((one, color) => ({ name: one.head, color, bins: one.bins })), "predicted quality", "oracle's quality")),
    drawn.length > 0 && reliabilityTable(split, drawn),
    split.chances.length > 0 && figure(`Reliability of the chance that a grade reaches a level, ${split.head}, after an isotonic map fitted on other documents; one line per level, points of at least ${FEW} documents, mean Brier score ${fixed(meanOf(split.chances, "brier"), 3)} against ${fixed(meanOf(split.chances, "base"), 3)} for saying each level's frequency.`,
      legend(split.chances[0].levels.map((level, index) => [index % 8, `at least ${level.level}`])),
      h("div", { class: "multiples narrow" }, split.chances.map((one) => h("div", {}, h("h4", {}, words(one.dimension)),
        reliabilityChart(one.levels.map((level, index) => ({ name: `at least ${level.level}`, color: index % 8, bins: level.bins.filter((bin) => bin.n >= FEW), bare: true })), "chance", "frequency", [0, 1], 208, 190))))));
}

// The bins of the chart as they are, with what each counts.
function reliabilityTable(split, drawn) {
  return table(`Reliability of the predicted quality on split ${split.name}`, [
    { head: "head", class: "name", cell: (row) => row.head },
    { head: "n", number: true, cell: (row) => count(row.n), value: (row) => row.n },
    { head: "predicted, mean", number: true, cell: (row) => fixed(row.predicted, 3), value: (row) => row.predicted },
    { ...estimated("graded, mean", "observed", 3), value: (row) => row.observed },
    { head: "graded − predicted", number: true, cell: (row) => signed(row.observed - row.predicted, 3), value: (row) => row.observed - row.predicted },
  ], drawn.flatMap((one) => one.bins.map((bin) => ({ ...bin, head: one.head }))), { class: "measures" });
}

const FEW = 10;
const meanOf = (chances, name) => {
  const values = chances.flatMap((one) => one.levels.map((level) => level[name])).filter(known);
  return values.length ? total(values) / values.length : null;
};

// series: [{name, color, bins: [{predicted, observed, observed_ci95, n}], bare: without intervals}].
function reliabilityChart(series, xLabel, yLabel, range, width = 440, height = 300) {
  const box = [46, 28, width - 12, height - 42];
  const bins = series.flatMap((one) => one.bins);
  const [low, high] = range || padded(bins.flatMap((bin) => [bin.predicted, bin.observed, ...(bin.observed_ci95 || [])]));
  const x = scale(low, high, box[0], box[2]), y = scale(low, high, box[3], box[1]);
  const at = (bin) => `${x(bin.predicted).toFixed(1)} ${y(bin.observed).toFixed(1)}`;
  const marks = ticks(low, high, width < 300 ? 3 : 5);
  return svg(width, height, `${yLabel} over ${xLabel}`,
    axes(box, x, y, marks, marks, xLabel, yLabel, (tick) => decimal(tick, 3), (tick) => decimal(tick, 3)),
    s("line", { class: "diagonal", x1: x(low), y1: y(low), x2: x(high), y2: y(high) }),
    series.map((one) => [
      s("path", { class: `line stroke-${one.color}`, d: one.bins.map((bin, index) => `${index ? "L" : "M"}${at(bin)}`).join("") }, tip(one.name)),
      one.bins.map((bin) => [
        !one.bare && bin.observed_ci95 && s("line", { class: `line stroke-${one.color}`, x1: x(bin.predicted), x2: x(bin.predicted), y1: clamp(y(bin.observed_ci95[0]), box[1], box[3]), y2: clamp(y(bin.observed_ci95[1]), box[1], box[3]) }),
        s("circle", { class: `fill-${one.color}`, cx: x(bin.predicted), cy: y(bin.observed), r: one.bare ? 2.5 : 4 },
          tip(`${one.name}: predicted ${decimal(bin.predicted, 3)}, observed ${decimal(bin.observed, 3)}, n = ${count(bin.n)}`)),
      ]),
    ]));
}

// Compute saved over the share of good documents lost; far right nobody would go, so the axis ends at 30 %.
function exitsFigure(exits, wanted, calibration) {
  const { certificate } = calibration, all = calibration.groups?.find((group) => group.name === "(all)");
  const split = exits.splits.find((one) => one.name === wanted) || exits.splits[0];
  if (exits.probe === exits.judge) return h("p", { class: "lead" }, `Without a judge nothing exits early: every document is read up to block ${exits.probe} of ${exits.layers}.`);
  // Where the calibration stands: what exits at the thresholds that were set, and what that was seen to lose.
  const now = known(all?.exit_rate) && all.oracle?.n > 0 && { lost: all.oracle.rate, upper: all.oracle.upper, exits: all.exit_rate, saved: all.exit_rate * (1 - exits.probe / exits.judge), saved_full: 1 - (exits.probe + (1 - all.exit_rate) * (exits.judge - exits.probe)) / exits.layers };
  const most = Math.max(0.3, now ? Math.min(now.upper * 1.05, 1) : 0);
  const kinds = [["against the oracle", "false_drop", 0], ["its 95 % upper bound", "false_drop_upper", 1], ["against the judge", "false_drop_judge", 2]].filter(([, key]) => split[key]);
  const chart = (saving, yLabel) => {
    const width = 440, height = 280, box = [52, 28, width - 14, height - 42];
    const inside = kinds.flatMap(([, key]) => split[saving].filter((_, index) => split[key][index] <= most));
    const [low, high] = [Math.min(...inside, split[saving][0]), Math.max(...inside, split[saving][0] + 0.01, now ? now[saving] : 0)];
    const x = scale(0, most, box[0], box[2]), y = scale(low, high, box[3], box[1]);
    return svg(width, height, `${yLabel} over false drops`,
      axes(box, x, y, ticks(0, most, 6), ticks(low, high, 5), "good documents that exit", yLabel, percent, percent),
      known(certificate?.max_false_drop) && certificate.max_false_drop <= most && [
        s("line", { class: "mark tau_drop", x1: x(certificate.max_false_drop), x2: x(certificate.max_false_drop), y1: box[1] - 8, y2: box[3] }),
        s("text", { class: "mark-label", x: x(certificate.max_false_drop) + 4, y: box[1] }, `bound ${percent(certificate.max_false_drop)}`),
      ],
      kinds.map(([name, key, color]) => {
        const points = split[key].map((lost, index) => ({ lost, saved: split[saving][index], exits: split.exit_rate[index] })).filter((point) => point.lost <= most);
        return [
          s("path", { class: `line stroke-${color}${color === 1 ? " dashed" : ""}`, d: points.map((point, index) => `${index ? "L" : "M"}${x(point.lost).toFixed(1)} ${y(point.saved).toFixed(1)}`).join("") }, tip(name)),
          points.map((point) => s("circle", { class: "hover", cx: x(point.lost), cy: y(point.saved), r: 6 }, tip(`${name}: ${percent(point.lost)} lost, ${percent(point.exits)} exit, ${percent(point.saved)} saved`))),
        ];
      }),
      now && s("g", { class: "operating" }, tip(operatingText(now, all)),
        s("line", { class: "interval", x1: x(now.lost), x2: x(now.upper), y1: y(now[saving]), y2: y(now[saving]) }),
        s("line", { class: "interval", x1: x(now.upper), x2: x(now.upper), y1: y(now[saving]) - 5, y2: y(now[saving]) + 5 }),
        s("circle", { class: "point-now", cx: x(now.lost), cy: y(now[saving]), r: 5.5 }),
        s("text", { class: "mark-label", x: x(now.upper) + 6, y: y(now[saving]) + 4, "text-anchor": x(now.upper) > width - 90 ? "end" : "start", dy: x(now.upper) > width - 90 ? -10 : 0 }, "as calibrated")));
  };
  return figure(`${now ? `As calibrated: ${operatingText(now, all)} ` : ""}What early exits spare over what they lose, on split ${split.name} (${count(split.n_good)} good documents): probe after block ${exits.probe}, judge after block ${exits.judge} of ${exits.layers}. Left: of running every document to the judge. Right: of the full backbone, whose last blocks nobody runs. Exits are by rank within each source.`,
    legend(kinds.map(([name, , color]) => [color, name])),
    h("div", { class: "columns" }, chart("saved", "compute saved, of running all to the judge"), chart("saved_full", "compute saved, of the full backbone")));
}

const operatingText = (now, all) => `${percent(now.exits)} of ${count(all.n)} unlabelled documents exit early, which saves ${percent(now.saved)} of running all to the judge; ${count(all.oracle.errors)} of ${count(all.oracle.n)} good documents of split certify were lost (${percent(now.lost)}, at most ${percent(now.upper)}).`;

function calibrationTable(data, judged) {
  const drops = (found) => (found && found.n ? [percent(found.errors, found.n), h("span", { class: "interval-text" }, `${count(found.errors)} of ${count(found.n)}, at most ${percent(found.upper)}`)] : "–");
  return [
    thresholdNote(),
    table("Thresholds by source", [
      { head: "source", class: "name", cell: (row) => [row.name === "(all)" ? "any other source" : row.name, row.parent && h("span", { class: "note" }, "too few scores of its own: those of all sources")] },
      { head: "scored for this", number: true, cell: (row) => count(row.n) },
      { head: "keep rate, target", number: true, cell: (row) => percent(row.target) },
      { head: "reached on these", number: true, cell: (row) => [percent(row.keep_rate), row.keep_ci95 && h("span", { class: "interval-text" }, `elsewhere ${percent(row.keep_ci95[0])} to ${percent(row.keep_ci95[1])}`)] },
      { head: "tau_keep", number: true, cell: (row) => fixed(row.tau_keep, 4) },
      { head: "tau_drop", number: true, cell: (row) => [fixed(row.tau_drop, 4), row.name !== "(all)" && h("span", { class: "interval-text" }, row.graded === 0 ? "no labels, no exits" : row.drop_parent ? "by the common rank" : "by its own labels")] },
      { head: "early exits", number: true, cell: (row) => percent(row.exit_rate) },
      { head: "false drops, oracle", number: true, cell: (row) => drops(row.oracle) },
      { head: "false drops, judge", number: true, cell: (row) => drops(row.judge) },
    ], data.groups, { class: "measures" }),
    h("p", { class: "certificate" }, judged === false && h("b", {}, "These heads have no judge, so nothing exits early and tau_drop is not used. "), certificateText(data.certificate)),
  ];
}

function certificateText(it) {
  const rate = (value) => percent(value).replace(".0", "");
  if (!known(it.mode)) return "The calibration does not say what is certified.";
  if (it.exit_rate === 0) return `No tau_drop could be set for at most ${rate(it.max_false_drop)} false drops: nothing exits early.`;
  const seen = `${count(it.n_good)} good documents among ${count(it.n_labelled)} graded ones`;
  const together = it.bounds === "bonferroni" ? "All bounds hold at once." : "Each source's bound holds for itself, not all at once.";
  return it.mode === "certified"
    ? `Certified: with ${rate(it.confidence)} confidence tau_drop loses at most ${rate(it.max_false_drop)} of the good documents. Sources with enough good labels have a certificate of their own; ${it.pool ? `the others (${it.pool.sources.join(", ")}) share a rank, whose bound holds for them together, not for any one` : "there are no others"}. The greatest upper bound is ${percent(it.fd_upper)}, the poorest certificate has ${seen}. ${together} Good is what this oracle would keep.`
    : `Not certified (mode ${it.mode}): tau_drop loses ${rate(it.max_false_drop)} of the good documents in expectation only, without a bound (${seen}).`;
}

function driftTable(rows) {
  if (!rows.length) return h("p", { class: "note" }, "No source was compared.");
  const moved = rows.filter((row) => row.drifted);
  return [
    h("p", { class: "lead" }, moved.length ? [h("b", {}, `${count(moved.length)} of ${count(rows.length)} sources ${moved.length === 1 ? "has" : "have"} drifted: `), "scores are not distributed as when thresholds were set; calibrate again."] : "No source's scores have moved away from those that its thresholds were set on."),
    table("Drift by source", [
      { head: "source", class: "name", cell: (row) => [row.source || "(none)", row.reason && h("span", { class: "note" }, `not compared: ${row.reason}`)] },
      { head: "scored", number: true, cell: (row) => count(row.n) },
      { head: "stability index", number: true, cell: (row) => fixed(row.psi, 3) },
      { head: "its limit", number: true, cell: (row) => fixed(row.psi_limit, 2) },
      { head: "kept", number: true, cell: (row) => percent(row.keep_rate) },
      { head: "expected", number: true, cell: (row) => (row.keep_range ? `${percent(row.keep_range[0])} to ${percent(row.keep_range[1])}` : "–") },
      { head: "", cell: (row) => (row.drifted ? h("span", { class: "state failed" }, "drifted") : "") },
    ], rows, { class: "measures" }),
  ];
}

// What the heads are and on what they stand; what they are not is said as plainly.
function headsCard(bundle, split) {
  const { backbone, taps, windows, rubric, taught, versions, ...card } = bundle.card;
  const facts = [
    ["rubric", rubric.name], ["backbone", backbone && `${backbone.name}${backbone.revision ? ` @ ${backbone.revision}` : ""}`], ["architecture", backbone && `${backbone.architecture}, ${backbone.layers} blocks, width ${backbone.width}`],
    ["probe reads after block", taps?.probe], ["judge", card.judge ? `${card.judge}, after block ${taps?.judge}` : "none: the probe's score is the quality"],
    ["reads at most", windows && `${windows.most} windows of ${count(windows.tokens)} tokens`], ["trained on", known(taught.fit) && `${count(taught.fit)} graded documents${known(taught.windows) ? `, ${count(taught.windows)} windows` : ""}`], ["chosen on", known(taught.select) && `${count(taught.select)} graded documents`],
    ["heads' weights", known(card.bytes) && `${count(card.bytes)} bytes`], ["seed", card.seed], ["versions", Object.entries(versions || {}).map(([name, value]) => `${name} ${value}`).join(", ")],
    ["backbone's fingerprint", backbone?.fingerprint], ["labels, sha256", card.labels_sha], ["rubric, sha256", card.rubric_sha],
  ];
  const best = split && split.predictors.find((row) => row.name === split.head);
  return [
    h("dl", { class: "facts card" }, facts.filter(([, value]) => known(value) && value !== "" && value !== false).map(([name, value]) => h("div", { class: /sha256$|fingerprint$/.test(name) ? "long" : null }, h("dt", {}, name), h("dd", {}, String(value))))),
    table(`The rubric ${rubric.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      { head: "asked", cell: (row) => row.question },
      { head: "scale", cell: (row) => `${row.min} to ${row.max}${row.direction === "lower" ? ", lower is better" : ""}` },
      { head: "weight", number: true, cell: (row) => decimal(row.weight), value: (row) => row.weight },
    ], rubric.dimensions, { class: "tall" }),
    h("p", { class: "note" }, h("b", {}, "Limits. "), best && `On split ${split.name} (n = ${count(split.documents)}) the ${split.head}'s Spearman is ${fixed(best.spearman, 2)}${best.spearman_ci95 ? ` (${fixed(best.spearman_ci95[0], 2)} to ${fixed(best.spearman_ci95[1], 2)})` : ""}; by source it stands above. `,
      "Numbers describe the label sample as it is mixed. The grades are one oracle's: nothing here says what that oracle misses, nor what text does for training. A score compares documents of one source; a source that calibration never saw has no exits."),
  ];
}
