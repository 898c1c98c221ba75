// The policy desk: a slider for each threshold of the run's policy, and what the policy would keep where it stands.
// The server decides over stored measurements; here is only which changes are asked for (choices.desk).

// A threshold's slider stops at values of the run; a number beside it may lie between two of them.
const DESK_SIDES = { min: "at least", max: "at most" };
const deskState = () => (choices.desk ||= { changes: {}, at: null, split: {} });

function panelDesk() {
  if (!isServed()) return answered("desk", {}, deskFile);
  // A million documents take a few seconds and some hundred megabytes: only for those who come to look.
  const place = h("p", { class: "quiet" }, "reading …");
  new IntersectionObserver((seen, watch) => {
    if (!seen.some((one) => one.isIntersecting)) return;
    watch.disconnect();
    place.replaceWith(answered("desk", {}, deskLive));
  }, { rootMargin: "300px" }).observe(place);
  return place;
}

const deskLead = (layout) => [
  h("p", { class: "lead" }, "What would other thresholds keep? Every number is decided from what the run measured; nothing is measured again, and nothing is written into the run."),
  layout.otherwise > 0 && h("p", { class: "absent failed" }, `The run's selection is not what its policy decides over the measurements that lie there now: ${count(layout.otherwise)} documents differ. Run the pipeline again.`),
];

// In a file, nobody decides: each threshold is drawn with what it would keep elsewhere, all else as it stands.
function deskFile(layout) {
  const rules = new Map(layout.rules.map((rule) => [rule.name, rule]));
  return [deskLead(layout),
    h("p", { class: "note" }, "In this file each threshold moves alone, at a hundred places; ", h("code", {}, "report open RUN"), " moves them together, and gives the policy as a file."),
    answered("desk_curves", {}, (answer) => figure(
      `What the policy keeps with one threshold elsewhere and all else as it stands: share of all ${count(answer.documents)} documents and of their ${count(answer.tokens)} tokens. Values stand where documents have them, so that the axis is dense where the run is.`,
      legend([["kept", "documents"], ["1", "tokens"]]),
      h("div", { class: "multiples" }, answer.curves.map((curve) => h("div", {}, h("h4", {}, words(curve.rule), h("span", { class: "note" }, ` ${curve.column} ${DESK_SIDES[curve.side]}${curve.source ? ` for ${curve.source}` : ""}`)),
        deskChart(curve, answer, standsAt(rules.get(curve.rule), curve))))))),
  ];
}

const thresholdOf = (rule, at) => (rule?.thresholds || []).find((one) => one.side === at.side && one.source === (at.source ?? null));
const numbersOf = (threshold) => [...new Set(Object.values(threshold?.numbers || {}).filter(known))].sort((a, b) => a - b);

function standsAt(rule, at) {
  const threshold = thresholdOf(rule, at), governed = Object.entries(threshold?.numbers || {});
  return numbersOf(threshold).map((number) => ({ number, name: `the run, ${governed.filter((one) => one[1] === number).map((one) => one[0]).join(", ")}` }));
}

// Where a value lies among the stops: a place that may lie between two.
function placeOf(stops, value) {
  const after = stops.findIndex((stop) => stop >= value);
  if (after < 0) return stops.length - 1;
  if (after === 0 || stops[after] === value) return after;
  return after - 1 + (value - stops[after - 1]) / (stops[after] - stops[after - 1]);
}

// Kept documents and tokens over the stops, which stand at even distances; marks are [{number, name, class}].
function deskChart(curve, whole, marks, width = 300, height = 168) {
  const box = [46, 26, width - 20, height - 30], stops = curve.values, last = Math.max(stops.length - 1, 1);
  const shares = [["kept", "documents"], ["1", "tokens"]].map(([color, unit]) => ({ color, unit, of: whole[unit], at: curve[unit] }));
  const most = Math.max(...shares.flatMap((one) => one.at.map((value) => value / (one.of || 1))), 0.01);
  const x = scale(0, last, box[0], box[2]), y = scale(0, most, box[3], box[1]);
  const line = (one) => one.at.map((value, index) => `${index ? "L" : "M"}${x(index).toFixed(1)} ${y(one.of ? value / one.of : 0).toFixed(1)}`).join("");
  const shown = pick(stops.length, 4);
  return svg(width, height, `kept share by ${curve.rule} ${DESK_SIDES[curve.side]}`,
    axes(box, x, y, shown, ticks(0, most, 4), null, "share kept", (place) => short(stops[place]), (share) => `${decimal(100 * share, 3)}${THIN}%`),
    shares.map((one) => s("path", { class: `line stroke-${one.color}`, d: line(one) }, tip(one.unit))),
    marks.map((mark) => s("line", { class: `mark ${mark.class || ""}`, x1: x(placeOf(stops, mark.number)), x2: x(placeOf(stops, mark.number)), y1: box[1] - 8, y2: box[3] }, tip(`${mark.name}: ${decimal(mark.number)}`))),
    stops.map((stop, index) => s("rect", { class: "hover", x: x(index - 0.5), width: Math.max(x(1) - x(0), 1), y: box[1], height: box[3] - box[1] },
      tip(`${DESK_SIDES[curve.side]} ${decimal(stop, 6)}: ${shares.map((one) => `${count(one.at[index])} ${one.unit} (${percent(one.at[index], one.of)})`).join(", ")}`))));
}

// Live ----------------------------------------------------------------------------------------------------------------

function deskLive(layout) {
  const state = deskState(), rules = new Map(layout.rules.map((rule) => [rule.name, rule]));
  for (const name of Object.keys(state.changes)) if (!rules.has(name)) delete state.changes[name];
  if (state.at && !rules.has(state.at.rule)) state.at = null;
  const parts = Object.fromEntries(["totals", "told", "mix", "near", "curve", "changes", "funnel", "export"].map((name) => [name, h("div", { class: `desk-${name}` })]));
  const dropped = new Map(), rows = h("ol", { class: "desk-rules" });
  const desk = h("div", { class: "desk" }, h("div", { class: "desk-left" }, rows), h("div", { class: "desk-right" }, parts.totals, parts.changes, parts.told, parts.mix, parts.curve, parts.near));
  let asking = false, again = false;

  // One question at a time, and always the latest: a slider moves faster than a server should count.
  async function move() {
    if (asking) { again = true; return; }
    asking = true;
    desk.setAttribute("aria-busy", "true");
    do {
      again = false;
      const answer = await ask("desk_moved", { changes: JSON.stringify(state.changes), ...state.at });
      if (answer && !again) show(answer);
    } while (again);
    asking = false;
    desk.setAttribute("aria-busy", "false");
  }

  function show(answer) {
    if (!here(answer)) { parts.told.replaceChildren(absent(answer)); return; }
    parts.told.replaceChildren(...deskWarnings(answer));
    parts.totals.replaceChildren(...deskTotals(answer));
    parts.mix.replaceChildren(deskMix(layout, answer));
    for (const one of answer.by_rule) dropped.get(one.name)?.replaceChildren(...deskDropped(one));
    parts.changes.replaceChildren(...deskChanges(answer, reset));
    parts.funnel.replaceChildren(deskFunnel(answer));
    parts.export.replaceChildren(...deskExport(layout, answer));
    if (answer.boundary) deskNear(parts.near, rules.get(state.at.rule), answer.boundary); else parts.near.replaceChildren();
    deskCurve(parts.curve, state, rules);
  }

  function reset() {
    Object.assign(state, { changes: {}, split: {}, at: null });
    draw();
    move();
  }

  const set = { rule: (name) => draw(name), move, dropped };
  function draw(only) {
    const focus = document.activeElement?.getAttribute?.("data-control");
    for (const [index, rule] of layout.rules.entries()) {
      if (only && rule.name !== only) continue;
      const row = deskRule(rule, layout, state, set);
      if (rows.children[index]) rows.children[index].replaceWith(row); else rows.append(row);
    }
    if (focus) rows.querySelector(`[data-control="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }

  draw();
  move();
  return [deskLead(layout),
    desk, h("h3", {}, "Take it away"), parts.export, parts.funnel];
}

// A rule: its name, what it reads, a control for each threshold, and how many it drops.
function deskRule(rule, layout, state, set) {
  const change = state.changes[rule.name], place = h("div", { class: "desk-dropped" });
  set.dropped.set(rule.name, place);
  const off = Boolean(change?.off), fixed = rule.name === "no_tokens";
  const switched = (event) => { if (event.target.checked) delete state.changes[rule.name]; else state.changes[rule.name] = { off: true }; set.rule(rule.name); set.move(); };
  const extra = Object.entries(state.split[rule.name] || {}).flatMap(([source, side]) => side.filter((one) => !thresholdOf(rule, { side: one, source })).map((one) => ({ ...thresholdOf(rule, { side: one }), source, added: true })));
  const controls = rule.keep ? h("p", { class: "note" }, `of each cluster of ${rule.column} the ${rule.keep} stays, among those that are left here`)
    : rule.words ? rule.words.map((group) => deskWords(rule, group, state, set))
      : [...(rule.thresholds || []), ...extra].map((one) => deskSlider(rule, one, state, set));
  return h("li", { class: off ? "off" : null, "data-rule": rule.name },
    h("div", { class: "desk-head" },
      h("label", { title: fixed ? "every selection has this rule" : "ask this rule" }, h("input", { type: "checkbox", checked: !off, disabled: fixed, "data-control": `ask ${rule.name}`, onchange: switched }), " ", h("b", {}, words(rule.name))),
      h("span", { class: "note" }, rule.keep ? "" : rule.column, rule.unmeasured > 0 && `, ${count(rule.unmeasured)} without a value: ${rule.missing === "keep" ? "kept" : "dropped"}`, rule.free?.length > 0 && `; not asked in ${rule.free.join(", ")}`, !off && rule.thresholds && deskSplit(rule, state, set)),
      place),
    !off && controls);
}

// What is changed of a rule, for one source or for all.
function changeOf(state, rule, source, make) {
  const change = state.changes[rule] || (make ? (state.changes[rule] = {}) : {});
  if (!source) return change;
  const sources = change.sources || (make ? (change.sources = {}) : {});
  return sources[source] || (make ? (sources[source] = {}) : {});
}

function unchange(state, rule, source, key) {
  const change = state.changes[rule], own = changeOf(state, rule, source);
  delete own[key];
  if (source && change?.sources && !Object.keys(own).length) delete change.sources[source];
  if (change?.sources && !Object.keys(change.sources).length) delete change.sources;
  if (change && !Object.keys(change).length) delete state.changes[rule];
}

function deskSlider(rule, threshold, state, set) {
  const { side, source } = threshold, key = `${rule.name} ${side} ${source || ""}`, stops = rule.stops;
  const written = threshold.added ? [] : numbersOf(threshold), named = typeof threshold.value === "string" ? threshold.value : null;
  const start = numbersOf(threshold), origin = start[Math.floor(start.length / 2)];
  const now = () => changeOf(state, rule.name, source)[side] ?? (threshold.added ? changeOf(state, rule.name)[side] : undefined) ?? origin;
  const label = `${DESK_SIDES[side]}${source ? `, ${source}` : ""}`;
  const range = h("input", { type: "range", min: 0, max: stops.length - 1, step: 1, "data-control": key, "aria-label": `${words(rule.name)} ${label}` });
  const number = h("input", { type: "number", step: "any", "data-control": `${key} number`, "aria-label": `${words(rule.name)} ${label}, as a number` });
  const back = h("button", { type: "button", class: "back", title: "as in the run", "aria-label": `reset ${words(rule.name)} ${label}`, onclick: () => { unchange(state, rule.name, source, side); if (threshold.added) unsplit(); touched(); } }, "↺");
  const told = h("span", { class: "note" });

  const unsplit = () => { const kept = state.split[rule.name]; if (kept) { kept[source] = kept[source].filter((one) => one !== side); if (!kept[source].length) delete kept[source]; } set.rule(rule.name); };
  function touched() { state.at = { rule: rule.name, side, source }; paint(); set.move(); }
  function paint(typing) {
    const value = now(), changed = known(changeOf(state, rule.name, source)[side]);
    range.value = String(Math.round(known(value) ? placeOf(stops, value) : side === "min" ? 0 : stops.length - 1));
    range.setAttribute("aria-valuetext", known(value) ? decimal(value, 6) : "no bound");
    if (!typing) number.value = known(value) ? String(value) : "";
    back.disabled = !changed && !threshold.added;
    told.replaceChildren(...(named ? [`${named}${changed ? " no more" : written.length > 1 ? `: ${decimal(written[0])} to ${decimal(written.at(-1))}, by source` : written.length ? "" : ": none found"}`] : []));
  }
  // Never past the other side: nothing lies between. Back at what the run has, it is no change (and a name stays a name).
  function put(value, typing) {
    const other = side === "min" ? "max" : "min", across = thresholdOf(rule, { side: other, source }) || thresholdOf(rule, { side: other });
    const limit = changeOf(state, rule.name, source)[other] ?? changeOf(state, rule.name)[other] ?? (typeof across?.value === "number" ? across.value : undefined);
    const within = !known(limit) ? value : side === "min" ? Math.min(value, limit) : Math.max(value, limit);
    if (written.length === 1 && within === written[0]) unchange(state, rule.name, source, side); else changeOf(state, rule.name, source, true)[side] = within;
    state.at = { rule: rule.name, side, source };
    paint(typing && within === value);
    set.move();
  }
  range.addEventListener("input", () => put(stops[Number(range.value)]));
  range.addEventListener("focus", () => { if (JSON.stringify(state.at) !== JSON.stringify({ rule: rule.name, side, source })) touched(); });
  number.addEventListener("input", () => { if (number.value !== "" && Number.isFinite(number.valueAsNumber)) put(number.valueAsNumber, true); });
  number.addEventListener("change", () => paint());
  paint();
  const shared = threshold.added || source || !(rule.thresholds || []).some((one) => one.source) ? "" : ` (${threshold.governs.join(", ")})`;
  return h("div", { class: "desk-slider" }, h("span", { class: "desk-side" }, label, h("span", { class: "note" }, shared)), range, number, back, told);
}

// Bounds of its own for a source that shares the rule's.
function deskSplit(rule, state, set) {
  const shared = rule.thresholds.filter((one) => !one.source);
  const sources = [...new Set(shared.flatMap((one) => one.governs))].filter((source) => !(state.split[rule.name] || {})[source]);
  if (!shared.length || sources.length + Object.keys(state.split[rule.name] || {}).length < 2 || !sources.length) return null;
  const split = (event) => { (state.split[rule.name] ||= {})[event.target.value] = shared.map((one) => one.side); set.rule(rule.name); };
  return h("label", { class: "desk-split" }, " · own bound for ", h("select", { "data-control": `split ${rule.name}`, "aria-label": `own bound of ${words(rule.name)} for a source`, onchange: split },
    h("option", { value: "" }, "a source …"), sources.map((source) => h("option", { value: source }, source))));
}

function deskWords(rule, group, state, set) {
  const allowed = () => changeOf(state, rule.name, group.source).allowed || group.allowed;
  function turn(word, box) {
    const next = allowed().includes(word) ? allowed().filter((one) => one !== word) : [...allowed(), word];
    if (!next.length) { box.checked = true; return; } // a rule that allows nothing asks nothing
    if (next.length === group.allowed.length && next.every((one) => group.allowed.includes(one))) unchange(state, rule.name, group.source, "allowed");
    else changeOf(state, rule.name, group.source, true).allowed = next;
    set.move();
  }
  return h("fieldset", { class: "desk-words" }, h("legend", { class: "note" }, `one of, in ${group.governs.join(", ")}`, group.distinct > group.words.length && ` (the ${group.words.length} most frequent of ${count(group.distinct)})`),
    group.words.map((one) => h("label", {}, h("input", { type: "checkbox", checked: allowed().includes(one.word), "data-control": `word ${rule.name} ${group.source || ""} ${one.word}`, onchange: (event) => turn(one.word, event.target) }), " ", one.word || "(empty)", h("span", { class: "note" }, ` ${short(one.documents)}`))));
}

// What it would keep ---------------------------------------------------------------------------------------------------

const deskGain = (pair, unit) => pair.then[unit] - pair.before[unit];
const changeText = (value) => (value ? `${value > 0 ? "+" : "−"}${count(Math.abs(value))}` : "±0");

function deskTotals(answer) {
  return [h("dl", {}, ["documents", "tokens"].map((unit) => h("div", {}, h("dt", {}, `${unit} kept`),
    h("dd", {}, h("span", { class: "big", "data-kept": unit, "data-value": answer.kept.then[unit] }, count(answer.kept.then[unit])),
      h("span", { class: "small" }, `${changeText(deskGain(answer.kept, unit))} against the run; ${percent(answer.kept.then[unit], answer.all[unit])} of ${count(answer.all[unit])}`))))),
    h("p", { class: "note" }, `${count(answer.gained)} documents more, ${count(answer.lost)} fewer than the run kept`, answer.aside.then.documents > 0 && `; ${count(answer.aside.then.documents)} set aside, as a stage could not handle them`, ".")];
}

function deskWarnings(answer) {
  return answer.looked.map((one) => h("p", { class: "absent" }, h("b", {}, one.annotation), ` would be looked for in ${count(one.unseen)} documents that the run did not look at, and not in ${count(one.needless)} that it did: only a run with this policy tells what that changes.`));
}

function deskMix(layout, answer) {
  const sum = (when) => total(answer.by_source.map((one) => (when === "all" ? one.all : one[when]).tokens));
  const whole = { before: sum("before"), then: sum("then") };
  const bar = (when) => {
    let at = 0;
    return s("svg", { class: "chart", width: 360, height: 14, viewBox: "0 0 360 14", preserveAspectRatio: "none", role: "img", "aria-label": `tokens by source, ${when === "then" ? "then" : "in the run"}` }, s("rect", { class: "bar-ground", width: 360, height: 14 }),
      answer.by_source.map((one) => {
        const width = whole[when] ? (one[when].tokens / whole[when]) * 360 : 0, from = at;
        at += width;
        return s("rect", { class: `fill-${sourceColor(layout.sources, one.name)}`, x: from, width: Math.max(width - 0.5, 0), height: 14 }, tip(`${one.name}: ${percent(one[when].tokens, whole[when])} of ${count(whole[when])} tokens`));
      }));
  };
  return h("div", {}, h("h4", {}, "Share of kept tokens by source"), h("div", { class: "desk-bars" }, h("span", { class: "note" }, "run"), bar("before"), h("span", { class: "note" }, "then"), bar("then")),
    h("ul", { class: "desk-sources" }, answer.by_source.map((one) => h("li", { title: `${count(one.then.documents)} documents, ${count(one.then.tokens)} tokens kept then; ${count(one.before.documents)} and ${count(one.before.tokens)} in the run` },
      s("svg", { width: 10, height: 10, "aria-hidden": "true" }, s("rect", { class: `fill-${sourceColor(layout.sources, one.name)}`, width: 10, height: 10, rx: 2 })), ` ${one.name} `,
      h("span", { class: "note" }, `${percent(one.before.tokens, whole.before)} → `, h("b", {}, percent(one.then.tokens, whole.then)))))));
}

function deskDropped(one) {
  const more = deskGain(one, "documents");
  return [h("b", {}, count(one.then.documents)), h("span", { class: "note" }, " dropped "), h("span", { class: more > 0 ? "more" : "fewer" }, more ? changeText(more) : "")];
}

// The curve of the threshold that was moved last, drawn again when something else was changed.
async function deskCurve(place, state, rules) {
  if (!state.at || state.changes[state.at.rule]?.off) { place.replaceChildren(); return; }
  const rule = rules.get(state.at.rule), at = state.at, others = JSON.parse(JSON.stringify(state.changes));
  const value = changeOf(state, at.rule, at.source)[at.side];
  const probe = { changes: others };
  unchange(probe, at.rule, at.source, at.side); // its own place changes nothing of its curve
  const question = { changes: JSON.stringify(others), ...at };
  const key = addressed("desk_curves", question);
  if (place.dataset.asked !== key) {
    place.dataset.asked = key;
    const answer = await ask("desk_curves", question);
    if (!answer || place.dataset.asked !== key) return;
    place.curve = here(answer) ? answer : null;
  }
  if (!place.curve) { place.replaceChildren(); return; }
  const marks = standsAt(rule, at).map((one) => ({ ...one, class: "was" }));
  const moved = changeOf(state, at.rule, at.source)[at.side];
  if (known(moved)) marks.push({ number: moved, name: "moved to" });
  place.replaceChildren(h("h4", {}, words(at.rule), h("span", { class: "note" }, ` ${rule.column} ${DESK_SIDES[at.side]}${at.source ? ` for ${at.source}` : ""}: what is kept at each value`)),
    deskChart(place.curve.curves[0], place.curve, marks, 380, 150), legend([["kept", "documents"], ["1", "tokens"]]), h("p", { class: "note" }, `Share of all ${count(place.curve.documents)} documents and ${count(place.curve.tokens)} tokens. Dashed: the run's bound${marks.length > 1 && known(moved) ? "; solid: where it stands now" : ""}.`));
}

// The nearest on each side of the threshold that was moved last; their texts come after their numbers.
async function deskNear(place, rule, boundary) {
  const rows = [...boundary.dropped, ...boundary.kept].map((one) => one.row).join(",");
  const open = new Set([...place.querySelectorAll("details[open]")].map((one) => one.dataset.row));
  const told = place.texts || {};
  const paint = () => place.replaceChildren(...["dropped", "kept"].map((side) => h("div", { class: `desk-side-of ${side}` },
    h("h4", {}, side === "kept" ? "Just kept" : "Just dropped by it", h("span", { class: "note" }, ` ${boundary[side].length} nearest, ${rule.column}`)),
    boundary[side].length ? boundary[side].map((one) => deskDocument(one, place.texts?.[one.row] || told[one.row], open)) : h("p", { class: "quiet" }, side === "kept" ? "No kept document has a value on this side." : "It drops no document here."))));
  paint();
  if (rows === place.dataset.rows || !rows) return;
  const answer = await ask("desk_documents", { rows });
  if (!answer || !here(answer)) return;
  place.dataset.rows = rows;
  place.texts = answer.documents;
  paint();
}

function deskDocument(one, document, open) {
  const cut = document && document.characters > document.text.length;
  return h("details", { "data-row": one.row, open: open.has(String(one.row)) },
    h("summary", {}, h("b", {}, decimal(one.value, 6)), ` ${one.source} `, one.also.length > 0 && h("span", { class: "note" }, `(also outside ${one.also.map(words).join(", ")}) `), h("span", { class: "excerpt", dir: "auto" }, document ? document.text.slice(0, 140) : "…")),
    document && [h("p", { class: "note" }, h("code", {}, document.id), document.url && ` ${document.url}`), h("div", { class: "text", dir: "auto", tabindex: "0" }, document.text, cut && h("span", { class: "note" }, ` … ${count(document.characters)} characters in all`))]);
}

// What to take away ----------------------------------------------------------------------------------------------------

function deskChanges(answer, reset) {
  if (!answer.changes.length) return [h("p", { class: "note" }, "Nothing is changed: this is the policy of the run.")];
  return [h("p", { class: "note" }, `${count(answer.changes.length)} changed. `, h("button", { type: "button", class: "desk-reset", "data-control": "reset", onclick: reset }, "Reset all")),
    h("ul", { class: "desk-changed" }, answer.changes.map((one) => h("li", {}, h("b", {}, words(one.rule)), one.source && ` for ${one.source}`, one.key === "off" ? " is not asked" : ` ${DESK_SIDES[one.key] || one.key}: ${one.was} → ${one.now}`)))];
}

function deskExport(layout, answer) {
  const name = `${layout.policy.replace(/[^A-Za-z0-9_-]+/g, "-") || "policy"}.toml`;
  return [h("p", {}, h("button", { type: "button", class: "desk-save", onclick: () => download(name, answer.file, "application/toml") }, "Save as a policy file"), " ", h("span", { class: "note" }, `${name}: the whole policy, for `, h("code", {}, "datapipe what-if RUN --policy FILE"), " and for a pipeline.")),
    h("p", { class: "note" }, "The same from a command line: ", h("code", { class: "desk-command" }, answer.command)),
    h("details", { class: "more" }, h("summary", {}, "the policy file"), h("pre", { class: "desk-file", tabindex: "0" }, answer.file))];
}

function deskFunnel(answer) {
  const pair = (unit) => [
    { head: `${unit} dropped in the run`, number: true, cell: (row) => count(row.before[unit]), value: (row) => row.before[unit] },
    { head: "then", number: true, cell: (row) => count(row.then[unit]), value: (row) => row.then[unit] },
    { head: "change", number: true, cell: (row) => changeText(deskGain(row, unit)), value: (row) => deskGain(row, unit) },
  ];
  return figure(`Documents and tokens by the first rule that drops them, in the run and with the policy of the desk; n = ${count(answer.all.documents)} documents.`,
    table("Dropped by rule, in the run and then", [{ head: "rule", class: "name", cell: (row) => words(row.name) }, ...pair("documents"), ...pair("tokens")], answer.by_rule));
}
