// Contamination: which evaluation sets stand in the documents, how strongly, and the matched texts beside their items.

const CALLED = [["score_08", "score ≥ 0.8 (decon)"], ["ngram_13_any", "any 13-gram (GPT-3)"], ["ngram_8_07", "8-grams ≥ 0.7 (PaLM)"]];
const PARTS = [["question", "Question"], ["answer", "Answer"], ["passage", "Passage"]];

function panelContamination(data, state, change) {
  return answered("contamination", {}, (found) => {
    const which = state.matches || (found.matched ? "matched" : "touched");
    const asked = { which, set: state.set_matched || "", at: state.matches_at || 0 };
    return [
      h("p", { class: "lead" }, found.matched
        ? `${count(found.matched)} of ${count(found.measured)} documents hold an evaluation item, or a telling part of one (${percent(found.matched, found.measured)}).`
        : `None of ${count(found.measured)} documents holds an evaluation item; ${found.touched ? `${count(found.touched)} share a few words in a row with one.` : "none shares as much as a few words in a row with one."}`,
        found.measured < found.documents && ` ${count(found.documents - found.measured)} were not looked at.`),
      found.rules.length > 0 && h("p", { class: "note" }, "The policy's rules on it: ", found.rules.map((rule, index) => [index > 0 && "; ", lead({ rule: rule.name }, words(rule.name)), ` (${rule.label} ${boundsOfAll(rule)})`]), "."),
      found.sets.length > 0 && figure("Evaluation sets, each document counted for the set of its best match. The columns are what three well-known rules would call contaminated; the bars, documents by score from 0 to 1, by the root of their number.", setTable("Evaluation sets", "set", found.sets, (row) => ({ set_matched: row.name, matches_at: 0 }), change)),
      found.matched > 0 && figure("The same by source.", setTable("Contamination by source", "source", found.sources, null, change)),
      found.touched > 0 && [
        h("h3", { id: "matches-title" }, "Matched texts"),
        h("div", { class: "choices" },
          choice("Show", [["matched", `matches (${count(found.matched)})`], ["touched", `all that share anything (${count(found.touched)})`]], which, (value) => change({ matches: value, matches_at: 0 })),
          isServed() && h("label", {}, "of the set ", h("select", { onchange: (event) => change({ set_matched: event.target.value, matches_at: 0 }) }, [["", "any"], ...found.sets.map((one) => [one.name, one.name])].map(([value, text]) => h("option", { value, selected: value === asked.set }, text))))),
        !found.texts && h("p", { class: "note" }, "The run keeps no text of evaluation items, so only the document's side is shown. ", h("code", {}, "mkdir -p RUN/contamination && datapipe contamination RUN --sets FOLDER --json > RUN/contamination/report.json"), " writes the items of the strongest matches into it; an index of hashes, as the bundled one, has no text."),
        answered("contamination_matches", isServed() ? asked : { which }, (page) => matchList(page, asked, change), "contamination_matches"),
      ],
    ];
  });
}

function boundsOfAll(rule) {
  const groups = new Set(Object.values(rule.sources).map(boundsText));
  return groups.size === 1 ? [...groups][0] : "by source";
}

function setTable(caption, head, rows, choose, change) {
  const name = (row) => (choose && isServed() ? h("a", { href: "#matches-title", onclick: () => change({ matches: null, ...choose(row) }) }, row.name) : row.name);
  return table(caption, [
    { head, class: "name", cell: name, value: (row) => row.name },
    { head: choose ? "documents that share anything" : "documents", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
    { head: "matched", number: true, cell: (row) => count(row.matched), value: (row) => row.matched },
    ...CALLED.map(([key, title]) => ({ head: title, number: true, cell: (row) => count(row[key]), value: (row) => row[key] })),
    { head: "matched and kept", number: true, cell: (row) => count(row.kept), value: (row) => row.kept },
    { head: "by score, 0 to 1", class: "bar", cell: (row) => scoreBars(row.bins) },
  ], rows);
}

function scoreBars(bins) {
  const most = Math.sqrt(Math.max(...bins, 1)), step = 11;
  return svg(bins.length * step, 22, "documents by score",
    s("line", { class: "axis", x1: 0, x2: bins.length * step, y1: 21.5, y2: 21.5 }),
    bins.map((value, at) => s("rect", { class: at >= 8 ? "fill-dropped" : "fill-kept", x: at * step, width: step - 2, y: 21 - (20 * Math.sqrt(value)) / most, height: (20 * Math.sqrt(value)) / most }, tip(`${count(value)} documents with a score of ${decimal(at / 10)} to ${decimal((at + 1) / 10)}`))));
}

function matchList(page, asked, change) {
  if (!page.of) return h("p", { class: "quiet" }, "There is no such match.");
  const shown = page.matches.length, size = 5;
  const turn = (chosen) => { change(chosen); toHead("contamination_matches"); };
  return [
    page.matches.map(matchView),
    h("p", { class: "pager" }, h("span", {}, `Matches ${count(asked.at + 1)} to ${count(asked.at + shown)} of ${count(page.of)}, the strongest first.`),
      isServed() && asked.at > 0 && h("button", { type: "button", onclick: () => turn({ matches_at: Math.max(asked.at - size, 0) }) }, "Back"),
      isServed() && known(page.next) && h("button", { type: "button", onclick: () => turn({ matches_at: page.next }) }, "Next")),
  ];
}

function matchView(one) {
  const numbers = [["score", one.score], ["13-grams", one.ngram_13], ["8-grams", one.ngram_8]].map(([name, value]) => `${name} ${known(value) ? decimal(value, 3) : "–"}`);
  return h("article", { class: `match ${outcomeClass(one) || ""}` },
    h("div", {}, h("h4", {}, leadToDocument(one.row, one.id)), h("span", { class: "note" }, `${one.source ?? "no source"} · ${outcomeText(one)} · ${numbers.join(", ")}`),
      h("div", { class: "text", dir: "auto", tabindex: "0" }, one.before && "… ", marked(one.pieces, ["stands in the evaluation item"], [false]), one.after && " …"),
      !one.spans && h("span", { class: "note" }, "Too little of the item stands here to be marked; this is how the document begins.")),
    h("div", {}, h("h4", {}, `${one.set ?? "no set"}: ${one.item ?? "–"}`), h("span", { class: "note" }, "the evaluation item"),
      one.texts ? h("div", { class: "text", dir: "auto", tabindex: "0" }, PARTS.filter(([key]) => one.texts[key]).map(([key, title]) => [h("b", { class: "part-name" }, title), h("div", {}, one.texts[key])]))
        : h("p", { class: "quiet" }, "Its text is not in the run folder.")));
}
