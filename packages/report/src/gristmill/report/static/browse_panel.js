// The reader: documents by outcome, rule, source and language, found by id or text, sorted by what was measured; and one
// of them whole, part after part. All of it is asked of the server, a page at a time.

const READER = { outcome: "all", rule: "", how: "first", source: "", language: "", id: "", exact: "no", text: "", fold: "yes", sort: "", order: "rising", at: 0, trail: [], open: null, part: null, seen: null };

function panelBrowse(data, state, change) {
  const reader = { ...READER, ...state.reader };
  const set = (chosen) => change({ reader: { ...reader, ...chosen } });
  if (!isServed()) return absent({ unserved: true });
  return [
    h("p", { class: "lead" }, "Every document of the run, with all that was measured of it. The counts of documents on this page lead here."),
    answered("choices", {}, (all) => readerForm(all, reader, set)),
    answered("documents", documentsQuestion(reader), (page) => documentList(page, reader, set), "documents"),
  ];
}

function documentsQuestion(reader) {
  const { outcome, rule, how, source, language, id, exact, text, fold, sort, order, at } = reader;
  return { outcome, rule, how, source, language, id, exact, text, fold, sort, order, at };
}

const openQuestion = (reader) => ({ row: reader.open, at: reader.part, find: reader.text, fold: reader.fold });

function readerForm(all, reader, set) {
  const option = (chosen) => ([value, text]) => h("option", { value, selected: value === chosen }, text);
  const select = (name, label, options) => h("label", {}, h("span", {}, label), h("select", { name }, options.map(option(reader[name]))));
  const named = (list, none) => [["", none], ...list.map((one) => [one.name, `${one.name} (${count(one.documents)})`])];
  const dropped = new Map(all.reasons.map((one) => [one.name, one.documents]));
  const rules = [...new Set([...all.rules.map((rule) => rule.name), ...all.reasons.map((one) => one.name)])].filter((name) => name !== "(none)");
  const bounded = all.columns.find((column) => column.label === reader.sort)?.bounded;
  const apply = (form) => {
    const now = Object.fromEntries(new FormData(form));
    set({ ...now, exact: now.exact || "no", fold: now.fold ? "no" : "yes", order: now.order === "nearest" && now.sort !== reader.sort ? "rising" : now.order || "rising", at: 0, trail: [], open: null, part: null });
  };
  return h("form", { class: "reader-form", role: "search", "aria-label": "Find documents", onsubmit: (event) => { event.preventDefault(); apply(event.currentTarget); }, onchange: (event) => event.target.matches("select, [type=checkbox]") && apply(event.currentTarget) },
    h("div", { class: "reader-words" },
      h("label", {}, h("span", {}, "text"), h("input", { type: "search", name: "text", value: reader.text, maxlength: 2000, placeholder: "words that stand in the text", autocomplete: "off", spellcheck: "false" })),
      h("label", { class: "tick" }, h("input", { type: "checkbox", name: "fold", checked: reader.fold === "no" }), "match case"),
      h("label", {}, h("span", {}, "id"), h("input", { type: "text", name: "id", value: reader.id, maxlength: 2000, placeholder: "an id, or how it begins", autocomplete: "off", spellcheck: "false" })),
      h("label", { class: "tick" }, h("input", { type: "checkbox", name: "exact", value: "yes", checked: reader.exact === "yes" }), "whole id"),
      h("button", {}, "Search")),
    h("div", { class: "reader-filters" },
      select("outcome", "outcome", all.outcomes.map((one) => [one.name, `${one.name} (${count(one.documents)})`])),
      rules.length > 0 && select("rule", "rule", [["", "any or none"], ...rules.map((name) => [name, `${words(name)} (${count(dropped.get(name) || 0)})`])]),
      reader.rule && select("how", "where it", [["first", "dropped them"], ["any", "is not met by them"], ["left", "left them"]]),
      select("source", "source", named(all.sources, "all")),
      all.languages.length > 0 && select("language", "language", named(all.languages, "all")),
      select("sort", "sorted by", [["", "their order in the run"], ...all.columns.map((column) => [column.label, column.label + (column.bounded ? " *" : "")])]),
      reader.sort && select("order", "from", [["rising", "the lowest"], ["falling", "the highest"], ...(bounded ? [["nearest", "nearest to its threshold"]] : [])]),
      h("button", { type: "button", onclick: () => set(READER) }, "Clear")),
    (reader.text || reader.id) && reader.sort && h("p", { class: "note" }, "A search goes through the documents in their order in the run; it is not sorted."),
    !reader.text && !reader.id && h("p", { class: "note" }, "* bounded by the policy or a calibrated threshold. Behind a rule stands how many documents it was the first to drop."));
}

function documentList(page, reader, set) {
  const searched = reader.text || reader.id, { documents } = page;
  const first = reader.at + 1;
  const said = searched
    ? `${count(documents.length)} found here; looked at ${count(page.looked)} of ${count(page.of)} documents${known(page.next) ? `, as far as row ${count(page.next)} of the run` : reader.at ? ", to the end of the run" : ", all of them"}.`
    : documents.length ? `Documents ${count(first)} to ${count(first + documents.length - 1)} of ${count(page.of)}.` : "There is no such document.";
  const turn = (chosen) => { set(chosen); toHead("documents"); };
  const onward = known(page.next) && h("button", { type: "button", onclick: () => turn({ at: page.next, trail: [...reader.trail, reader.at] }) }, searched ? "Go on" : "Next");
  const back = reader.trail.length > 0 && h("button", { type: "button", onclick: () => turn({ at: reader.trail.at(-1), trail: reader.trail.slice(0, -1) }) }, "Back");
  const pager = () => h("p", { class: "pager" }, h("span", { role: "status" }, said), back, onward);
  const inside = documents.some((one) => one.row === reader.open);
  const view = () => answered("document", openQuestion(reader), (found) => documentView(found, reader, set, inside), `document ${reader.open}`);
  const choose = (row) => {
    set({ open: reader.open === row ? null : row, part: null, seen: null });
    const chosen = document.querySelector("#browse .found .open");
    chosen?.scrollIntoView({ block: "start" });
    chosen?.querySelector("button").focus({ preventScroll: true });
  };
  return [
    known(reader.open) && !inside && view(),
    pager(),
    documents.length > 0 && h("ol", { class: "found" }, documents.map((one) => documentLine(one, one.row === reader.open && view, () => choose(one.row), reader.sort))),
    documents.length > 5 && pager(),
  ];
}

function documentLine(one, open, choose, sort) {
  return h("li", { class: [outcomeClass(one), open ? "open" : null].filter(Boolean).join(" ") },
    h("div", { class: "line-head" }, h("button", { type: "button", "aria-expanded": String(Boolean(open)), onclick: choose }, open ? "Close" : "Read"), h("b", {}, one.source ?? "no source"), h("span", { class: "id" }, one.id),
      h("span", { class: "note" }, [one.language, known(one.tokens) && `${count(one.tokens)} tokens`, sort && `${sort} ${known(one.value) ? decimal(one.value) : "not measured"}`].filter(Boolean).join(" · ")),
      h("span", { class: "outcome" }, outcomeText(one))),
    open ? open() : h("div", { class: "excerpt", dir: "auto" }, one.before && "… ", marked(one.pieces.map(([text, covers, hit]) => [text.replace(/\s+/g, " "), covers, hit]), []), one.after && " …"));
}

const outcomeClass = (one) => (one.keep ? "kept" : one.reason === "quarantined" ? "aside" : one.keep === false ? "dropped" : null);
const outcomeText = (one) => (one.keep ? "kept" : one.reason === "quarantined" ? "set aside: a stage could not handle it" : one.keep === false ? `dropped by ${words(one.reason ?? "no rule")}` : "not decided yet");

function documentView(found, reader, set, inside) {
  const { text } = found;
  const titles = found.spans.map((one) => one.title), made = found.spans.map((one) => one.made);
  const off = new Set(reader.seen || titles.filter((_, number) => !made[number]));
  const visibleCovers = text.pieces.map(([piece, covers, hit]) => [piece, covers.filter((number) => !off.has(titles[number])), hit]);
  const toggle = (title) => { const next = new Set(off); if (!next.delete(title)) next.add(title); set({ seen: [...next] }); };
  const goPart = (at) => () => set({ part: at });
  const place = (number) => Math.min(Math.ceil(number * PART_BYTES), Math.max(text.bytes - 1, 0));
  return h("article", { class: `document ${outcomeClass(found) || ""}`, "aria-label": "The document" },
    !inside && h("header", {}, h("b", {}, found.source ?? "no source"), h("span", { class: "id" }, found.id), h("span", { class: "outcome" }, outcomeText(found)),
      h("button", { type: "button", onclick: () => set({ open: null, part: null, seen: null }) }, "Close")),
    h("dl", { class: "facts" }, [["row of the run", count(found.place + 1)], ["file", known(found.file) ? `${found.file}, row ${count(found.row)}` : null], ["language", found.language], ["tokens as packed", known(found.tokens) ? count(found.tokens) : null], ["bytes", count(text.bytes)], ["created", found.created], ["address", found.url], ["meta", found.meta]]
      .filter(([, value]) => known(value)).map(([name, value]) => h("div", { class: name === "meta" || name === "address" ? "long" : null }, h("dt", {}, name), h("dd", {}, value)))),
    found.clusters.map((one) => h("p", { class: "note" }, `${KINDS[one.stage] || one.stage}: one of ${count(one.size)} alike; `, one.stays === found.place ? "this is the one to keep." : leadToDocument(one.stays, "the one to keep"))),
    found.spans.length > 0 && h("fieldset", { class: "spans" }, h("legend", {}, "Marked in the text"), found.spans.map((one) => h("label", { class: one.made ? "cut-key" : "found-key" },
      h("input", { type: "checkbox", checked: !off.has(one.title), onchange: () => toggle(one.title) }), `${one.title}${one.made ? "" : " (found, left as it is)"}, ${count(one.spans)} ${one.spans === 1 ? "place" : "places"}, ${count(one.bytes)} bytes`))),
    h("p", { class: "pager" }, h("span", {}, text.parts > 1 ? `Part ${count(text.part)} of ${count(text.parts)}, bytes ${count(text.from)} to ${count(text.to)}.` : "The whole text."),
      text.part > 1 && [h("button", { type: "button", onclick: goPart(0) }, "First"), h("button", { type: "button", onclick: goPart(place(text.part - 2)) }, "Before")],
      text.part < text.parts && [h("button", { type: "button", onclick: goPart(place(text.part)) }, "Next part"), h("button", { type: "button", onclick: goPart(text.bytes - 1) }, "Last")],
      known(text.next_hit) && h("button", { type: "button", onclick: goPart(text.next_hit) }, "Next match")),
    h("div", { class: "text whole", dir: "auto", tabindex: "0", role: "region", "aria-label": "Text of the document" }, text.bytes ? marked(visibleCovers, titles, made) : h("span", { class: "quiet" }, "There is no text.")),
    checkList(found, found.rules, null),
    h("details", { class: "values", open: true }, h("summary", {}, "other measured values"), otherValues(found, found.rules)));
}

const PART_BYTES = 24_000; // as the server cuts texts
