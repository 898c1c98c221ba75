// Panels about the documents: what each rule dropped, what was measured, duplicates, quarantine.

const sourceColor = (sources, name) => Math.max(sources.indexOf(name), 0) % 8;

function panelFunnel(data, state, change) {
  const unit = state.unit || "documents", dropped = `dropped_${unit}`;
  const first = data.rules[0], last = data.rules.at(-1);
  const sources = [...data.sources].sort((a, b) => first.by_source[b][unit] - first.by_source[a][unit]);
  const policy = new Map((data.policy?.rules || []).map((rule) => [rule.name, rule]));
  const most = data.rules.slice(1).filter((row) => row.rule !== "quarantined").reduce((a, b) => (b[dropped] > (a?.[dropped] ?? 0) ? b : a), null);
  return [
    h("p", { class: "lead" }, `Of ${count(first[unit])} ${unit} the policy ${data.policy?.name ? `“${data.policy.name}” ` : ""}keeps ${count(last[unit])} (${percent(last[unit], first[unit])}). `,
      most && `The rule that drops most is ${words(most.rule)}: ${count(most[dropped])} ${unit}, ${percent(most[dropped], first[unit])} of the input.`),
    choice("Count", [["documents", "documents"], ["tokens", "tokens"]], unit, (value) => change({ unit: value })),
    figure(`What is left after each rule, in the order in which the policy asks. Full width is the input, ${count(first[unit])} ${unit}; the hatched part was dropped by that rule.`,
      legend([...sources.map((name) => [sourceColor(data.sources, name), name]), ["hatch", "dropped by the rule"]]),
      table("Funnel by rule", [
        { head: "rule", class: "name", cell: (row) => row.rule === "(all)" ? "all documents" : [words(row.rule), row.rule === "quarantined" ? h("span", { class: "note" }, "a stage could not handle them") : ruleNote(policy.get(row.rule))] },
        { head: "share of the input", class: "bar", cell: (row) => funnelBar(row, first[unit], data.sources, sources, unit) },
        { head: `${unit} left`, number: true, cell: (row) => count(row[unit]) },
        { head: "dropped here", number: true, cell: (row) => (row === first ? "" : row[dropped] ? "−" + count(row[dropped]) : "0") },
        { head: "of previous", number: true, cell: (row) => (row === first ? "" : percent(row[dropped], row[unit] + row[dropped])) },
        { head: "of input", number: true, cell: (row) => (row === first ? "" : percent(row[dropped], first[unit])) },
      ], data.rules, { class: "funnel" })),
    figure("Each source before and after the policy.",
      table("Sources before and after", [
        { head: "source", class: "name", cell: (name) => name },
        { head: "kept share of its tokens", class: "bar", cell: (name) => shareBar(last.by_source[name].tokens, first.by_source[name].tokens, sourceColor(data.sources, name)) },
        ...["documents", "tokens"].flatMap((one) => [
          { head: `${one} in`, number: true, cell: (name) => count(first.by_source[name][one]) },
          { head: "kept", number: true, cell: (name) => count(last.by_source[name][one]) },
          { head: "share kept", number: true, cell: (name) => percent(last.by_source[name][one], first.by_source[name][one]) },
        ]),
        { head: "share of mixture, before → after", number: true, cell: (name) => `${percent(first.by_source[name].tokens, first.tokens)} → ${percent(last.by_source[name].tokens, last.tokens)}` },
      ], sources)),
  ];
}

function ruleNote(rule) {
  if (!rule) return null;
  if (rule.keep) return h("span", { class: "note" }, `of each cluster the ${rule.keep} stays`);
  const own = Object.entries(rule.sources || {}).map(([name, one]) => [name, boundsText(one)]);
  const groups = new Map();
  for (const [name, text] of own.filter((one) => one[1])) groups.set(text, [...(groups.get(text) || []), name]);
  const shared = boundsText(rule);
  const title = own.map(([name, text]) => `${name}: ${text || "not asked"}`).join("; ");
  const everyone = groups.size === 1 && groups.values().next().value.length === own.length;
  const parts = everyone ? [...groups.keys()] : groups.size > 3 ? ["own bound for each source"] : [...groups].map(([text, names]) => `${text} (${names.join(", ")})`);
  return h("span", { class: "note", title }, rule.column, " ", [shared, ...parts].filter(Boolean).join("; "));
}

// ≥ 0.4; 20 to 100,000; one of en, fr. Empty where nothing is asked.
function boundsText(one) {
  const labels = (one.allowed || []).length ? `one of ${one.allowed.join(", ")}` : "";
  const range = known(one.min) && known(one.max) ? `${decimal(one.min)} to ${decimal(one.max)}` : known(one.min) ? `≥ ${decimal(one.min)}` : known(one.max) ? `≤ ${decimal(one.max)}` : "";
  return [range, labels].filter(Boolean).join(", ");
}

function funnelBar(row, whole, sources, order, unit) {
  const width = 270;
  const x = (value) => (whole ? (value / whole) * width : 0);
  let at = 0;
  return s("svg", { class: "chart", width, height: 20, viewBox: `0 0 ${width} 20`, role: "img", "aria-label": `${percent(row[unit], whole)} left` },
    s("rect", { class: "bar-ground", width, height: 20 }),
    order.map((name) => {
      const value = row.by_source[name][unit];
      const bar = s("rect", { class: `fill-${sourceColor(sources, name)}`, x: x(at), y: 2, width: Math.max(x(value) - 0.5, 0), height: 16 }, tip(`${name}: ${count(value)} ${unit} left`));
      at += value;
      return bar;
    }),
    s("rect", { class: "fill-hatch", x: x(at), y: 2, width: x(row[`dropped_${unit}`]), height: 16 }, tip(`dropped here: ${count(row[`dropped_${unit}`])} ${unit}`)));
}

function shareBar(part, whole, color) {
  const share = whole ? part / whole : 0;
  return s("svg", { class: "chart", width: 150, height: 16, viewBox: "0 0 150 16", role: "img", "aria-label": percent(part, whole) },
    s("rect", { class: "bar-ground", width: 150, height: 16 }), s("rect", { class: `fill-${color}`, y: 2, width: share * 150, height: 12 }, tip(percent(part, whole))));
}

function panelMeasures(data) {
  const sides = data.columns.some((column) => "kept" in column) ? [["kept", "kept"], ["dropped", "dropped"]] : [["all", "kept"]];
  const first = (row) => data.columns.find((other) => other.stage === row.stage) === row;
  return [
    data.columns.length > 0 && figure("Per measured value: the median as a dot, the 10th to 90th percentile as a line, each row on its own scale.",
      legend(sides.map(([name, color]) => [color, name])),
      table("Measured values", [
        { head: "stage", class: "name", cell: (row) => (first(row) ? h("b", {}, row.stage) : h("span", { class: "unseen" }, row.stage)) },
        { head: "value", class: "name", cell: (row) => words(row.column) + (row.flag ? ", share of yes" : "") },
        { head: "range", class: "bar", cell: (row) => rangePlot(sides.map(([name, color]) => ({ name, class: color, range: row[name] }))) },
        ...sides.map(([name]) => ({ head: `median ${name}`, number: true, cell: (row) => decimal(row[name]?.[1]) })),
        { head: "measured", number: true, cell: (row) => percent(row.measured) },
      ], data.columns, { row: (row) => (first(row) ? "group" : null) })),
    data.labels.map((label) => figure(`Labels of ${label.column}, the ${label.values.length} most frequent of ${count(label.distinct)}.`,
      table(label.column, [
        { head: "label", class: "name", cell: (row) => row.name },
        { head: "documents", number: true, cell: (row) => count(row.documents) },
        { head: "kept", number: true, cell: (row) => count(row.kept) },
        { head: "share of the label kept", class: "bar", cell: (row) => (known(row.kept) ? shareBar(row.kept, row.documents, "kept") : "–") },
        { head: "share", number: true, cell: (row) => (known(row.kept) ? percent(row.kept, row.documents) : "–") },
      ], label.values, { class: "slim" }))),
  ];
}

function panelQuarantine(data) {
  if (!data.total) return h("p", { class: "lead" }, "Every input could be read; nothing was set aside.");
  return [
    h("p", { class: "lead" }, `${count(data.total - (data.unhandled || 0))} inputs could not be read${known(data.documents) ? `, beside ${count(data.documents)} documents that could` : ""}.`,
      data.unhandled > 0 && ` Of these, stages could not handle ${count(data.unhandled)}, each counted where it happened; the policy neither keeps nor drops them.`),
    table("Quarantined inputs by reason", [
      { head: "reason", class: "name", cell: (row) => row.reason },
      { head: data.unhandled ? "inputs or documents" : "inputs", number: true, cell: (row) => count(row.count) },
      { head: "share", number: true, cell: (row) => percent(row.count, data.total) },
      { head: "examples: file, row, and how the input begins", class: "examples", cell: (row) => row.examples.map((one) =>
        h("div", { class: "member" }, h("span", { class: "note" }, `${one.file}${known(one.row) ? `, row ${one.row}` : ""}${one.rows > 1 ? `, ${count(one.rows)} rows` : ""}${one.detail ? `: ${one.detail}` : ""}`), known(one.sample) && h("code", {}, one.sample.slice(0, 160)))) },
    ], data.reasons, { class: "tall" }),
  ];
}
