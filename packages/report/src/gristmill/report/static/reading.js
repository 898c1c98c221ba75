// Reading: kept and dropped documents beside each other, each with all that was measured; and the ways that lead to
// documents from anywhere on the page.

const GROUPS = { random: "At random", rule: "Dropped by a rule", threshold: "Nearest to a threshold" };

// The documents behind a number or a bar, as a link: `filter` is what the reader is set to. A page that is a file has no
// more than the documents chosen for it, so there only a rule leads anywhere.
function lead(filter, ...content) {
  return leads(filter) ? h("a", linkTo(filter), content) : content;
}

const svgLead = (filter, ...content) => (leads(filter) ? s("a", { ...linkTo(filter), tabindex: "-1" }, content) : content);
const leads = (filter) => isServed() || Boolean(viewOf(filter));
const viewOf = (filter) => (report.samples?.views || []).find((view) => view.group === "rule" && view.name === filter.rule);

function linkTo(filter) {
  const place = isServed() ? "browse" : "samples";
  const go = (event) => {
    event.preventDefault();
    if (isServed()) change("browse", { reader: { ...READER, ...filter } });
    else change("samples", { view: "rule" + filter.rule });
    goTo(place);
  };
  return { class: "lead-to", href: `#${place}`, onclick: go };
}

// As a link does it, so that the way back leads to where the reader came from.
function goTo(id) {
  const place = document.getElementById(id);
  location.hash = id;
  place.scrollIntoView({ block: "start" });
  (place.querySelector("h2") || place).focus({ preventScroll: true });
}

// One document in the reader, by its row.
function leadToDocument(row, ...content) {
  return isServed() ? lead({ open: row }, content) : content;
}

// Text as [piece, numbers of what covers it, whether a search found it]; `titles` says what covers, `made` which of it
// the policy cuts or replaces.
function marked(pieces, titles, made = titles.map(() => true)) {
  return pieces.map(([text, covers, hit]) => {
    if (!covers.length && !hit) return text;
    const cut = covers.some((number) => made[number]);
    const title = covers.map((number) => titles[number]).join("; ") || null;
    const inside = covers.length ? h(cut ? "del" : "mark", { class: cut ? "cut" : "found", title }, text) : text;
    return hit ? h("mark", { class: "hit" }, inside) : inside;
  });
}

function panelSamples(data, state, change) {
  if (!data.views.length) return h("p", { class: "quiet" }, "The run has no documents to show.");
  const view = data.views.find((one) => one.group + one.name === state.view) || data.views[0];
  const options = Object.entries(GROUPS).map(([group, label]) => {
    const views = data.views.filter((one) => one.group === group);
    return views.length > 0 && h("optgroup", { label }, views.map((one) => h("option", { value: one.group + one.name, selected: one === view }, words(one.name))));
  });
  const side = (name, rows) => h("div", { class: `side ${name}` },
    h("h3", {}, name === "kept" ? "Kept" : "Dropped", h("span", { class: "note" }, ` ${rows.length} shown`)),
    rows.length ? rows.map((row) => sample(data.documents[row], view, data.rules, row)) : h("p", { class: "quiet" }, `No ${name} document is on this side.`));
  return [
    h("p", { class: "lead" }, "The numbers above are only as good as the documents behind them. Invisible characters are spelt out in boxes, so that what is shown is what is there; what the policy cuts or replaces is struck through."),
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

function sample(document, view, rules, row) {
  if (!document) return null;
  const cut = document.characters > document.text.length;
  const text = document.pieces ? marked(document.pieces, document.cuts) : document.text;
  return h("article", { class: "sample" },
    h("header", {}, h("b", {}, document.source), h("span", { class: "id" }, leadToDocument(Number(row), document.id)),
      !document.keep && h("span", { class: "reason" }, document.reason ? `dropped by ${words(document.reason)}` : "dropped"),
      known(document.file) && h("span", { class: "note" }, `${document.file}, row ${document.row}`)),
    h("div", { class: "text", dir: "auto", tabindex: "0" }, text, cut && h("span", { class: "note" }, ` … ${count(document.characters)} characters in all`)),
    checkList(document, rules, view.value),
    h("details", { class: "values" }, h("summary", {}, "other measured values"), otherValues(document, rules)));
}

// What each rule asked of a document, the one that dropped it first.
function checkList(document, rules, decides) {
  const asked = askedOf(document, rules);
  const first = asked.filter((rule) => rule.name === document.reason);
  return asked.length > 0 && h("dl", { class: "checks" }, [...first, ...asked.filter((rule) => !first.includes(rule))].map((rule) => check(rule, document, decides)));
}

const askedOf = (document, rules) => rules.filter((rule) => boundsOf(rule, document) || document.outside.includes(rule.name));
const boundsOf = (rule, document) => (Object.hasOwn(rule.sources, document.source ?? "") ? rule.sources[document.source] : null);

function otherValues(document, rules) {
  const asked = new Set(askedOf(document, rules).map((rule) => rule.key)), stages = new Map();
  for (const [key, value] of Object.entries(document.values)) {
    const [, stage, ...rest] = key.split("/"), column = rest.join("/"); // a column may be called anything
    if (!asked.has(key)) stages.set(stage, [...(stages.get(stage) || []), [column, value]]);
  }
  return [...stages].map(([stage, values]) => h("dl", {}, h("div", { class: "stage-name", title: stage }, stage),
    values.map(([column, value]) => h("div", {}, h("dt", {}, words(column)), h("dd", {}, valueText(column, value))))));
}

// A value beside the bound of its source. Only the first rule that a document fails drops it; those after it are not asked.
function check(rule, document, decides) {
  const value = document.values[rule.key], dropped = rule.name === document.reason, outside = document.outside.includes(rule.name) && known(value);
  const bound = rule.keep ? (known(value) && value > 1 ? `of ${count(value)} the ${rule.keep} stays` : "no other like it") : boundsText(boundsOf(rule, document) || {});
  const shown = rule.keep ? "" : known(value) ? valueText(rule.key.split("/").at(-1), value) : "not measured";
  return h("div", { class: [dropped ? "fails" : outside ? "outside" : null, rule.key === decides ? "decides" : null].filter(Boolean).join(" ") || null, title: rule.label },
    h("dt", {}, words(rule.name)), h("dd", {}, (dropped || outside) && h("span", { "aria-hidden": "true" }, "✗ "), shown && h("b", { class: known(value) ? null : "quiet" }, shown), " ", h("span", { class: "asked-for" }, bound),
      dropped ? h("span", { class: "unseen" }, " (dropped by this rule)") : outside && h("span", { class: "unseen" }, " (would fail this rule)")));
}

function valueText(column, value) {
  if (typeof value === "boolean") return value ? "yes" : "no";
  return column === "cluster" && known(value) ? String(value) : decimal(value); // a cluster's number is a name
}
