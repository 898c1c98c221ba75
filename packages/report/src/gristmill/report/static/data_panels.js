// Panels about the documents: what each rule dropped, what was measured, duplicates, quarantine.

const sourceColor = (sources, name) => Math.max(sources.indexOf(name), 0) % 8;

// The funnel as it is drawn: groups (sources or languages), and per rule what is left of each and what was dropped.
function funnelBySource(data, unit) {
  const first = data.rules[0];
  const groups = [...data.sources].sort((a, b) => first.by_source[b][unit] - first.by_source[a][unit]);
  return { groups, colors: groups.map((name) => sourceColor(data.sources, name)), filter: (name) => ({ source: name }), rows: data.rules.map((row, index) => ({
    rule: row.rule, left: groups.map((name) => row.by_source[name][unit]),
    dropped: groups.map((name) => (index ? data.rules[index - 1] : row).by_source[name][unit] - row.by_source[name][unit]),
  })) };
}

function funnelByLanguage(data, unit) {
  return { groups: data.groups, colors: data.groups.map((_, index) => index % 8), filter: (name) => (name === "(others)" ? null : { language: name }),
    rows: data.rules.map((row) => ({ rule: row.rule, left: row[unit] || row.documents, dropped: row[`dropped_${unit}`] || row.dropped_documents })) };
}

function panelFunnel(data, state, change) {
  const unit = state.unit || "documents", by = state.funnel_by || "source", dropped = `dropped_${unit}`;
  const first = data.rules[0], last = data.rules.at(-1);
  const sources = [...data.sources].sort((a, b) => first.by_source[b][unit] - first.by_source[a][unit]);
  const most = data.rules.slice(1).filter((row) => row.rule !== "quarantined").reduce((a, b) => (b[dropped] > (a?.[dropped] ?? 0) ? b : a), null);
  const policy = new Map((data.policy?.rules || []).map((rule) => [rule.name, rule]));
  return [
    h("p", { class: "lead" }, `Of ${count(first[unit])} ${unit} the policy ${data.policy?.name ? `“${data.policy.name}” ` : ""}keeps ${count(last[unit])} (${percent(last[unit], first[unit])}). `,
      most && ["The rule that drops most is ", lead({ rule: most.rule }, words(most.rule)), `: ${count(most[dropped])} ${unit}, ${percent(most[dropped], first[unit])} of the input.`]),
    h("div", { class: "choices" },
      choice("Count", [["documents", "documents"], ["tokens", "tokens"]], unit, (value) => change({ unit: value })),
      choice("By", [["source", "source"], ["language", "language"]], by, (value) => change({ funnel_by: value }))),
    by === "source" ? funnelFigures(funnelBySource(data, unit), by, unit, policy) : answered("funnel_by_language", {}, (found) => funnelFigures(funnelByLanguage(found, unit), by, unit, policy)),
    figure("Each source before and after the policy.",
      table("Sources before and after", [
        { head: "source", class: "name", cell: (name) => lead({ source: name }, name), value: (name) => name },
        { head: "kept share of its tokens", class: "bar", cell: (name) => shareBar(last.by_source[name].tokens, first.by_source[name].tokens, sourceColor(data.sources, name)) },
        ...["documents", "tokens"].flatMap((one) => [
          { head: `${one} in`, number: true, cell: (name) => lead({ source: name }, count(first.by_source[name][one])), value: (name) => first.by_source[name][one] },
          { head: `${one} kept`, number: true, cell: (name) => lead({ source: name, outcome: "kept" }, count(last.by_source[name][one])), value: (name) => last.by_source[name][one] },
          { head: `share of ${one} kept`, number: true, cell: (name) => percent(last.by_source[name][one], first.by_source[name][one]) },
        ]),
        { head: "share of mixture, before → after", number: true, cell: (name) => `${percent(first.by_source[name].tokens, first.tokens)} → ${percent(last.by_source[name].tokens, last.tokens)}`, value: (name) => last.by_source[name].tokens / last.tokens },
      ], sources)),
  ];
}

function funnelFigures(funnel, by, unit, policy) {
  const { groups, rows } = funnel, all = total(rows[0].left);
  const legendItems = groups.slice(0, 12).map((name, index) => [funnel.colors[index], name]);
  const dropping = rows.slice(1).filter((row) => total(row.dropped) > 0);
  const shown = groups.slice(0, 12);
  const cell = (row, index) => (row.dropped[index] ? groupLead(funnel, groups[index], { rule: row.rule }, count(row.dropped[index])) : "0");
  return [
    figure(`What is left after each rule, in the order in which the policy asks. Full width is the input, ${count(all)} ${unit}; the hatched part was dropped by that rule. Colours are ${by}s. Each bar and number leads to its documents.`,
      legend([...legendItems, ["hatch", "dropped by the rule"]]),
      table("Funnel by rule", [
        { head: "rule", class: "name", cell: (row) => row.rule === "(all)" ? "all documents" : [words(row.rule), row.rule === "quarantined" ? h("span", { class: "note" }, "a stage could not handle them") : ruleNote(policy.get(row.rule))], value: (row) => row.rule },
        { head: "share of the input", class: "bar", cell: (row) => funnelBar(row, all, funnel, unit) },
        { head: `${unit} left`, number: true, cell: (row) => lead(leftOf(row), count(total(row.left))), value: (row) => total(row.left) },
        { head: "dropped here", number: true, cell: (row) => (row === rows[0] ? "" : total(row.dropped) ? lead({ rule: row.rule }, "−" + count(total(row.dropped))) : "0"), value: (row) => total(row.dropped) },
        { head: "of previous", number: true, cell: (row) => (row === rows[0] ? "" : percent(total(row.dropped), total(row.left) + total(row.dropped))) },
        { head: "of input", number: true, cell: (row) => (row === rows[0] ? "" : percent(total(row.dropped), all)) },
      ], rows, { class: "funnel" })),
    dropping.length > 0 && h("details", { class: "more" }, h("summary", {}, `What each rule dropped, by ${by}, in ${unit}`),
      table(`Dropped ${unit} by rule and ${by}`, [
        { head: "rule", class: "name", cell: (row) => words(row.rule), value: (row) => row.rule },
        ...shown.map((name, index) => ({ head: name, number: true, cell: (row) => cell(row, index), value: (row) => row.dropped[index] })),
        { head: "in all", number: true, cell: (row) => lead({ rule: row.rule }, count(total(row.dropped))), value: (row) => total(row.dropped) },
      ], dropping, { class: "slim" })),
  ];
}

const leftOf = (row) => (row.rule === "(all)" ? {} : { rule: row.rule, how: "left" });

function groupLead(funnel, name, filter, ...content) {
  const own = funnel.filter(name);
  return own ? lead({ ...filter, ...own }, content) : content;
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

function funnelBar(row, whole, funnel, unit) {
  const width = 270, gone = total(row.dropped), left = total(row.left);
  const x = (value) => (whole ? (value / whole) * width : 0);
  let at = 0;
  return s("svg", { class: "chart", width, height: 20, viewBox: `0 0 ${width} 20`, role: "img", "aria-label": `${percent(left, whole)} left` },
    s("rect", { class: "bar-ground", width, height: 20 }),
    funnel.groups.map((name, index) => {
      const value = row.left[index], own = funnel.filter(name);
      const bar = s("rect", { class: `fill-${funnel.colors[index]}`, x: x(at), y: 2, width: Math.max(x(value) - 0.5, 0), height: 16 }, tip(`${name}: ${count(value)} ${unit} left`));
      at += value;
      return own ? svgLead({ ...leftOf(row), ...own }, bar) : bar;
    }),
    gone > 0 && svgLead({ rule: row.rule }, s("rect", { class: "fill-hatch", x: x(at), y: 2, width: x(gone), height: 16 }, tip(`dropped here: ${count(gone)} ${unit}`))));
}

function shareBar(part, whole, color) {
  const share = whole ? part / whole : 0;
  return s("svg", { class: "chart", width: 150, height: 16, viewBox: "0 0 150 16", role: "img", "aria-label": percent(part, whole) },
    s("rect", { class: "bar-ground", width: 150, height: 16 }), s("rect", { class: `fill-${color}`, y: 2, width: share * 150, height: 12 }, tip(percent(part, whole))));
}

function panelMeasures(data, state, change, all) {
  const sides = data.columns.some((column) => "kept" in column) ? [["kept", "kept"], ["dropped", "dropped"]] : [["all", "kept"]];
  const first = (row) => data.columns.find((other) => other.stage === row.stage) === row;
  return [
    data.columns.length > 0 && figure(`Per measured value: the median as a dot, the 10th to 90th percentile as a line, each row on its own scale; n = ${count(all.overview.documents)} documents, of which “measured” is the share that has the value.`,
      legend(sides.map(([name, color]) => [color, name])),
      table("Measured values", [
        { head: "stage", class: "name", cell: (row) => (first(row) ? h("b", {}, row.stage) : h("span", { class: "unseen" }, row.stage)) },
        { head: "value", class: "name", cell: (row) => [lead({ sort: `${row.stage}.${row.column}`, order: "falling" }, words(row.column)), row.flag && ", share of yes"], value: (row) => row.column },
        { head: "range", class: "bar", cell: (row) => rangePlot(sides.map(([name, color]) => ({ name, class: color, range: row[name] }))) },
        ...sides.map(([name]) => ({ head: `median ${name}`, number: true, cell: (row) => decimal(row[name]?.[1]) })),
        { head: "measured", number: true, cell: (row) => percent(row.measured) },
      ], data.columns, { row: (row) => (first(row) ? "group" : null) })),
    data.labels.map((label) => figure(`Labels of ${label.column}, the ${label.values.length} most frequent of ${count(label.distinct)}.`,
      table(label.column, [
        { head: "label", class: "name", cell: (row) => row.name },
        { head: "documents", number: true, cell: (row) => labelLead(label, row, {}, count(row.documents)), value: (row) => row.documents },
        { head: "kept", number: true, cell: (row) => (known(row.kept) ? labelLead(label, row, { outcome: "kept" }, count(row.kept)) : "–"), value: (row) => row.kept },
        { head: "share of the label kept", class: "bar", cell: (row) => (known(row.kept) ? shareBar(row.kept, row.documents, "kept") : "–") },
        { head: "share", number: true, cell: (row) => (known(row.kept) ? percent(row.kept, row.documents) : "–") },
      ], label.values, { class: "slim" }))),
  ];
}

// Of labels the reader can filter by the language alone.
const labelLead = (label, row, filter, ...content) => (label.column === "language.label" ? lead({ ...filter, language: row.name }, content) : content);

function panelQuarantine(data) {
  if (!data.total) return h("p", { class: "lead" }, "Every input could be read; nothing was set aside.");
  return [
    h("p", { class: "lead" }, `${count(data.total - (data.unhandled || 0))} inputs could not be read${known(data.documents) ? `, beside ${count(data.documents)} documents that could` : ""}.`,
      data.unhandled > 0 && [` Of these, stages could not handle ${count(data.unhandled)}, each counted where it happened; the policy neither keeps nor drops `, lead({ outcome: "quarantined" }, "these documents"), "."]),
    table("Quarantined inputs by reason", [
      { head: "reason", class: "name", cell: (row) => row.reason },
      { head: data.unhandled ? "inputs or documents" : "inputs", number: true, cell: (row) => count(row.count) },
      { head: "share", number: true, cell: (row) => percent(row.count, data.total) },
      { head: "examples: file, row, and how the input begins", class: "examples", cell: (row) => row.examples.map((one) =>
        h("div", { class: "member" }, h("span", { class: "note" }, `${one.file}${known(one.row) ? `, row ${one.row}` : ""}${one.rows > 1 ? `, ${count(one.rows)} rows` : ""}${one.detail ? `: ${one.detail}` : ""}`), known(one.sample) && h("code", {}, one.sample.slice(0, 160)))) },
    ], data.reasons, { class: "tall" }),
  ];
}
