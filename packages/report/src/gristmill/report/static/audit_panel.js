// How far an oracle's grades are to be trusted, as an audit found it. An estimate is {value, ci95}.

const valued = (found, digits = 2) => (found && known(found.value) ? [fixed(found.value, digits), found.ci95 && h("span", { class: "interval-text" }, `${fixed(found.ci95[0], digits)} to ${fixed(found.ci95[1], digits)}`)] : "–");
const ofAudit = (head, get, digits) => ({ head, number: true, cell: (row) => valued(get(row), digits), value: (row) => get(row)?.value });
const entries = (found) => Object.entries(found || {}).map(([name, values]) => ({ name, ...values }));

function auditFigures(audit) {
  return audit.rubrics.map((rubric) => {
    const told = [
      rubric.a && [`Rubric ${rubric.name}, from `, h("code", {}, audit.place), `: ${count(rubric.a.documents)} documents graded by ${rubric.a.engine}, ${count(rubric.a.failed)} of them with a failure.`, rubric.b && ` B is ${rubric.b.engine}. `, " Intervals are 95 %, by bootstrap over the documents audited."],
    ];
    const absentPart = (name, what) => !rubric[name] && h("p", { class: "note" }, `${what} was not asked for: `, h("code", {}, "scorer audit-oracle"), name === "agreement" ? " with --against or --other-model compares two oracles." : " with --model does it.");
    return [
      h("p", { class: "lead" }, told),
      rubric.a && gradesTable(rubric),
      rubric.agreement ? agreementTable(rubric) : absentPart("agreement", "Agreement of two oracles"),
      rubric.retest || rubric.stored_repeats ? repeatsTable(rubric) : absentPart("retest", "Agreement with itself"),
      rubric.order ? orderTable(rubric) : absentPart("order", "The order of anchors"),
      rubric.injections ? injectionFigure(rubric) : absentPart("injections", "Injection"),
    ];
  });
}

function gradesTable(rubric) {
  const rows = ["a", "b"].filter((side) => rubric[side]).flatMap((side) => entries(rubric[side].spread).map((row) => ({ ...row, side: side.toUpperCase() })));
  return figure("How each oracle uses its scale. Where nearly all documents get one level there is nothing for heads to learn.",
    table(`Grades, rubric ${rubric.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      { head: "oracle", cell: (row) => row.side },
      { head: "n", number: true, cell: (row) => count(row.n), value: (row) => row.n },
      { head: "mean", number: true, cell: (row) => fixed(row.mean, 2), value: (row) => row.mean },
      { head: "standard deviation", number: true, cell: (row) => fixed(row.sd, 2), value: (row) => row.sd },
      { head: "documents by level", cell: (row) => Object.entries(row.levels).map(([level, n]) => `${level}: ${count(n)}`).join(" · ") },
      { head: "on the commonest", number: true, cell: (row) => percent(row.commonest), value: (row) => row.commonest },
    ], rows, { class: "measures" }));
}

function agreementTable(rubric) {
  return figure(`Two oracles on the same ${count(rubric.agreement.documents)} documents, by levels; quality counts in tenths. Kappa is quadratically weighted, alpha is Krippendorff's; the shift is how much higher B grades.`,
    table(`Agreement of two oracles, rubric ${rubric.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      { head: "n", number: true, cell: (row) => count(row.n), value: (row) => row.n },
      ofAudit("weighted kappa", (row) => row.qwk), ofAudit("alpha", (row) => row.alpha), ofAudit("Spearman", (row) => row.spearman), ofAudit("shift, B − A", (row) => row.shift),
      ofAudit("same level", (row) => row.exact), ofAudit("within one level", (row) => row.within_one),
    ], entries(rubric.agreement.dimensions), { class: "measures" }));
}

function repeatsTable(rubric) {
  const { retest, stored_repeats: stored } = rubric;
  return figure(`The oracle against itself: ${retest ? `${retest.times} gradings by the same requests, at temperature ${decimal(retest.temperature)}` : "documents that were graded more than once for the labels"}. r is the reliability of one grade; the ceiling is the correlation that a perfect head would have with single grades.`,
    table(`Reliability of the oracle, rubric ${rubric.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      { head: "n", number: true, cell: (row) => count(row.n), value: (row) => row.n },
      ofAudit("r of one grade", (row) => row.r),
      { head: "r of the mean of 3", number: true, cell: (row) => fixed(row.r_k?.["3"], 2), value: (row) => row.r_k?.["3"] },
      { head: "ceiling of a head", number: true, cell: (row) => fixed(row.ceiling, 2), value: (row) => row.ceiling },
      { head: "spread of one document", number: true, cell: (row) => fixed(row.spread, 2), value: (row) => row.spread },
    ], entries((retest || stored).dimensions), { class: "measures" }));
}

function orderTable(rubric) {
  const { order } = rubric;
  return figure(`What should not matter, in levels, on ${count(order.documents)} documents: ${order.permutations ? `${order.permutations} other orders of the anchors, and ` : ""}the scale turned upside down.`,
    table(`Order of the anchors, rubric ${rubric.name}`, [
      { head: "dimension", class: "name", cell: (row) => words(row.name) },
      ofAudit("other order, mean |shift|", (row) => order.permuted?.[row.name]), ofAudit("scale turned, mean |shift|", (row) => row.absolute), ofAudit("scale turned, mean shift", (row) => row.shift),
    ], entries(order.turned), { class: "measures" }));
}

function injectionFigure(rubric) {
  const found = rubric.injections, attacks = [...found.attacks].sort((a, b) => (b.shift.value ?? -99) - (a.shift.value ?? -99));
  const drawn = attacks.filter((one) => known(one.shift.value)), [low, high] = drawn.length ? [Math.min(0, ...drawn.map((one) => one.shift.ci95?.[0] ?? one.shift.value)), Math.max(0, ...drawn.map((one) => one.shift.ci95?.[1] ?? one.shift.value))] : [0, 1];
  const x = scale(low, high, 8, 232), most = (one) => Object.entries(one.dimensions).filter(([, shift]) => known(shift.value)).sort((a, b) => b[1].value - a[1].value)[0];
  return figure(`How far each attack moves the grades of ${count(found.documents)} documents, in levels towards the better end (the dot, with its 95 % interval where there are ten documents; the line is no shift). Controls are harmless words at the same place. The eye for such text flags ${percent(found.flagged_attacks)} of the attacked documents and ${percent(found.flagged_clean)} of the same without attack.`,
    table(`Injection shifts, rubric ${rubric.name}`, [
      { head: "attack", class: "name", cell: (row) => [row.name, h("span", { class: "note" }, row.family)] },
      { head: "n", number: true, cell: (row) => count(row.n), value: (row) => row.n },
      { head: "shift in levels", class: "bar", value: (row) => row.shift.value, cell: (row) => !known(row.shift.value) ? "not graded" : svg(240, 20, `shift ${fixed(row.shift.value, 2)}`, s("line", { class: "axis", x1: x(0), x2: x(0), y1: 1, y2: 19 }),
        s("g", { class: row.family === "control" ? "kept" : "dropped" }, row.shift.ci95 && s("line", { class: "interval", x1: x(row.shift.ci95[0]), x2: x(row.shift.ci95[1]), y1: 10, y2: 10 }), s("circle", { class: "middle", cx: x(row.shift.value), cy: 10, r: 4 }, tip(`${row.name}: ${fixed(row.shift.value, 3)} levels, n = ${row.n}`)))) },
      ofAudit("mean", (row) => row.shift), ofAudit("beyond control", (row) => row.beyond_control),
      { head: "moved a level", number: true, cell: (row) => percent(row.moved?.value), value: (row) => row.moved?.value },
      { head: "most on", cell: (row) => { const one = most(row); return one ? `${words(one[0])} ${signed(one[1].value, 2)}` : "–"; } },
      { head: "flagged", number: true, cell: (row) => percent(row.flagged), value: (row) => row.flagged },
      { head: "cut", number: true, cell: (row) => percent(row.cut), value: (row) => row.cut },
    ], attacks, { class: "measures", at_once: 20 }));
}
