// Reading: kept and dropped documents beside each other, each with all that was measured.

const GROUPS = { random: "At random", rule: "Dropped by a rule", threshold: "Nearest to a threshold" };

function panelSamples(data, state, change) {
  if (!data.views.length) return h("p", { class: "quiet" }, "The run has no documents to show.");
  const view = data.views.find((one) => one.group + one.name === state.view) || data.views[0];
  const options = Object.entries(GROUPS).map(([group, label]) => {
    const views = data.views.filter((one) => one.group === group);
    return views.length > 0 && h("optgroup", { label }, views.map((one) => h("option", { value: one.group + one.name, selected: one === view }, words(one.name))));
  });
  const side = (name, rows) => h("div", { class: `side ${name}` },
    h("h3", {}, name === "kept" ? "Kept" : "Dropped", h("span", { class: "note" }, ` ${rows.length} shown`)),
    rows.length ? rows.map((row) => sample(data.documents[row], view, data.rules)) : h("p", { class: "quiet" }, `No ${name} document is on this side.`));
  return [
    h("p", { class: "lead" }, "The numbers above are only as good as the documents behind them. Invisible characters are spelt out in boxes, so that what is shown is what is there."),
    h("div", { class: "choices" }, h("label", {}, "Show ", h("select", { onchange: (event) => change({ view: event.target.value }) }, options))),
    h("p", { class: "note" }, view.about, view.bound && ` Bound: ${boundText(view.bound)}.`),
    h("div", { class: "sides" }, side("kept", view.kept), side("dropped", view.dropped)),
  ];
}

function boundText(bound) {
  const sign = bound.side === "min" ? "at least" : "at most";
  const own = Object.entries(bound.sources).filter(([, value]) => known(value)).map(([name, value]) => `${name} ${decimal(value, 3)}`);
  return `${bound.label} ${sign} ${[known(bound.default) && decimal(bound.default, 3), ...own].filter(Boolean).join("; ")}`;
}

function sample(document, view, rules) {
  if (!document) return null;
  const cut = document.characters > document.text.length;
  const asked = rules.filter((rule) => rule.sources[document.source] || document.outside.includes(rule.name));
  const first = asked.filter((rule) => rule.name === document.reason);
  const stages = {};
  for (const [key, value] of Object.entries(document.values)) {
    const [stage, column] = key.split("/").slice(-2);
    if (!asked.some((rule) => rule.key === key)) (stages[stage] ||= []).push([column, value]);
  }
  return h("article", { class: "sample" },
    h("header", {}, h("b", {}, document.source), h("span", { class: "id" }, document.id),
      !document.keep && h("span", { class: "reason" }, document.reason ? `dropped by ${words(document.reason)}` : "dropped"),
      known(document.file) && h("span", { class: "note" }, `${document.file}, row ${document.row}`)),
    h("div", { class: "text", dir: "auto", tabindex: "0" }, document.text, cut && h("span", { class: "note" }, ` … ${count(document.characters)} characters in all`)),
    asked.length > 0 && h("dl", { class: "checks" }, [...first, ...asked.filter((rule) => !first.includes(rule))].map((rule) => check(rule, document, view))),
    h("details", { class: "values" }, h("summary", {}, "other measured values"), Object.entries(stages).map(([stage, values]) => h("dl", {}, h("div", { class: "stage-name" }, stage),
      values.map(([column, value]) => h("div", {}, h("dt", {}, words(column)), h("dd", {}, valueText(column, value))))))));
}

// A value beside the bound of its source. Only the first rule that a document fails drops it; those after it are not asked.
function check(rule, document, view) {
  const value = document.values[rule.key], dropped = rule.name === document.reason, outside = document.outside.includes(rule.name) && known(value);
  const bound = rule.keep ? (known(value) && value > 1 ? `of ${count(value)} the ${rule.keep} stays` : "no other like it") : boundsText(rule.sources[document.source] || {});
  const shown = rule.keep ? "" : known(value) ? valueText(rule.key.split("/").at(-1), value) : "not measured";
  return h("div", { class: [dropped ? "fails" : outside ? "outside" : null, rule.key === view.value ? "decides" : null].filter(Boolean).join(" ") || null, title: rule.label },
    h("dt", {}, words(rule.name)), h("dd", {}, dropped && h("span", { "aria-hidden": "true" }, "✗ "), shown && h("b", { class: known(value) ? null : "quiet" }, shown), " ", h("span", { class: "bound" }, bound), dropped && h("span", { class: "unseen" }, " (dropped by this rule)")));
}

function valueText(column, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  return column === "cluster" && known(value) ? String(value) : decimal(value); // a cluster's number is a name
}
