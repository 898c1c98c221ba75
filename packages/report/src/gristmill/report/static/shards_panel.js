// Packed shards: what their manifests say, and any window of their tokens, back to the documents that it is of.

function panelArtifacts(data, state, redraw, all) {
  return [
    h("p", { class: "note" }, "Each document ends with one token more than the policy counted: the end of the text."),
    data.artifacts.map(artifactCard),
    h("h3", {}, "Look into a shard"),
    h("p", { class: "lead" }, "What a training reads, token by token. Point at a token, or choose one with the arrow keys; Page Up and Page Down move the window."),
    shardInspector(data, state),
  ];
}

function artifactCard(artifact) {
  const { tokenizer, recipe, order } = artifact;
  const facts = [
    ["documents", count(total(artifact.sources.map((one) => one.documents)))], ["tokens", count(total(artifact.sources.map((one) => one.tokens)))],
    ["mixtures", artifact.mixtures.join(", ") || "none"], ["laid out for the Hub", artifact.published ? "yes, same content in published/" : "no"],
    ["tokenizer", tokenizer.name && `${tokenizer.name}, ${count(tokenizer.vocab_size)} ids, end of text ${tokenizer.eos_id}`],
    ["held out, by the hash of the id", order && known(order.valid_fraction) && `${percent(order.valid_fraction)}, salt “${order.salt}”`],
    ["content id", artifact.content_id], ["tokenizer.json, sha256", tokenizer.sha256],
  ];
  return [
    h("h3", {}, artifact.name, h("span", { class: "note" }, ` ${artifact.format || ""}`)),
    h("dl", { class: "facts" }, facts.map(([name, value]) => h("div", { class: /^content id$|sha256$/.test(name) ? "long" : null }, h("dt", {}, name), h("dd", {}, value || "–")))),
    recipe && h("p", { class: "note" }, `Chosen by ${recipe.selection || "an unknown selection"}`, recipe.policy && `, policy “${recipe.policy}”`,
      recipe.rules.length > 0 && ` (${recipe.rules.length} rules: ${recipe.rules.map(words).join(", ")})`, ".", recipe.other && [" ", h("code", {}, recipe.other)]),
    artifact.sources.length > 0 && table(`Sources of ${artifact.name}`, [
      { head: "source", class: "name", cell: (row) => row.name },
      { head: "documents", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
      { head: "tokens", number: true, cell: (row) => count(row.tokens), value: (row) => row.tokens },
      { head: "held out, documents", number: true, cell: (row) => count(row.valid_documents), value: (row) => row.valid_documents },
      { head: "held out, tokens", number: true, cell: (row) => count(row.valid_tokens), value: (row) => row.valid_tokens },
      { head: "shards", number: true, cell: (row) => count(row.shards), value: (row) => row.shards },
      { head: "dtype", cell: (row) => row.dtype || "–" },
      { head: "vocabulary", number: true, cell: (row) => count(row.vocabulary), value: (row) => row.vocabulary },
      { head: "licence", cell: (row) => row.licence || "–" },
    ], artifact.sources),
  ];
}

const WINDOWS = ["64", "128", "256", "512", "1024"];
const byPlace = (all, place) => Object.fromEntries(["dataset", "source", "split", "shard", ...all].map((name) => [name, place[name]]));

// Where it stands is kept in state.inspector; only what was chosen is asked for, so that a page that is a file knows the first window.
function shardInspector(data, state) {
  const place = (state.inspector ||= { view: "text" });
  const controls = h("div"), told = h("p", { class: "quiet", role: "status" }), view = h("div", { class: "window" }), about = h("div");
  const go = async (chosen, keep = "") => {
    Object.assign(place, chosen);
    const asked = { ...byPlace(["size"], place), ...(place.id ? { id: place.id } : place.document ? { document: place.document } : { at: place.at || undefined }) };
    const show = (answer) => {
      told.textContent = answer.nowhere || "";
      if (answer.nowhere) return Object.assign(place, { id: "" });
      if (!here(answer)) return view.replaceChildren(absent(answer));
      Object.assign(place, { id: "", document: "", now: answer, last: asked });
      const focused = view.contains(document.activeElement);
      view.replaceChildren(...shardWindow(answer, place, go).flat(Infinity).filter(Boolean));
      if (focused) view.querySelector(".tokens").focus({ preventScroll: true });
      controls.replaceChildren(...inspectorControls(data, place, go));
    };
    const last = answers.get(addressed("shard_window", asked));
    if (last) show(last);
    const answer = await ask("shard_window", asked);
    if (answer && answer !== last) show(answer);
    if (keep !== "window") about.replaceChildren(answered("shard_facts", byPlace([], place.last || place), (facts) => shardFacts(facts, place)), answered("shard_list", { dataset: place.dataset, source: place.source }, shardTable));
  };
  controls.replaceChildren(...inspectorControls(data, place, go));
  go({});
  return h("div", { class: "inspector" }, controls, told, view, about);
}

function inspectorControls(data, place, go) {
  const now = place.now || {};
  const dataset = place.dataset || data.datasets[0];
  const artifact = data.artifacts.find((one) => one.dataset === dataset) || data.artifacts.find((one) => one.published) || data.artifacts[0];
  const source = artifact.sources.find((one) => one.name === (now.source || place.source)) || artifact.sources[0];
  const split = now.split || place.split || "train", shards = source?.splits[split] || 1;
  const pickOne = (label, options, chosen, pick) => h("label", {}, `${label} `, h("select", { "aria-label": label, onchange: (event) => pick(event.target.value) }, options.map(([value, text]) => h("option", { value, selected: value === chosen }, text))));
  const anew = { shard: undefined, at: 0, id: "", document: "" };
  const number = (label, name, least, most, value) => h("label", {}, `${label} `, h("input", { type: "number", name, min: least, max: most, step: 1, value: known(value) ? String(value) : "" }));
  const position = h("form", { class: "choices", onsubmit: (event) => {
    event.preventDefault();
    const field = (name) => position.elements[name].value.trim();
    const chosen = field("id") ? { id: field("id") } : field("document") ? { document: field("document"), id: "" } : { at: Number(field("at") || 0), document: "", id: "" };
    go({ source: source.name, split, shard: Number(field("shard") || 0), ...chosen }, field("id") || Number(field("shard")) !== now.shard ? "" : "window");
  } },
    number("Shard", "shard", 0, shards - 1, now.shard ?? 0), h("span", { class: "note" }, `0 to ${shards - 1}`),
    number("from token", "at", 0, Math.max((now.tokens || 1) - 1, 0), now.at ?? 0),
    number("or document", "document", 1, now.document_count || 1, ""),
    h("label", {}, "or id ", h("input", { type: "text", name: "id", size: 22, autocomplete: "off", spellcheck: "false" })),
    h("button", { type: "submit" }, "Go"));
  return [
    h("div", { class: "choices" },
      data.datasets.length > 1 && pickOne("Dataset", data.datasets.map((one) => [one, one]), dataset, (value) => go({ ...anew, dataset: value, source: undefined, split: undefined })),
      pickOne("Source", artifact.sources.map((one) => [one.name, one.name]), source?.name, (value) => go({ ...anew, source: value, split: undefined })),
      source && choice("Split", ["train", "valid"].filter((one) => source.splits[one]).map((one) => [one, one === "valid" ? "held out" : "train"]), split, (value) => go({ ...anew, source: source.name, split: value })),
      pickOne("Window", WINDOWS.map((one) => [one, `${one} tokens`]), String(now.size || 256), (value) => go({ size: value, at: now.at }, "window")),
      choice("Show", [["text", "text"], ["ids", "ids"], ["both", "both"]], place.view, (value) => go({ view: value, at: now.at }, "window"))),
    position,
  ].filter(Boolean);
}

function shardWindow(now, place, go) {
  const stop = now.at + now.ids.length, first = now.documents[0], last = now.documents.at(-1);
  const move = (by) => go({ source: now.source, split: now.split, shard: now.shard, at: clamp(now.at + by, 0, now.tokens - 1) }, "window");
  const detail = h("output", { class: "token-told" }, "Point at a token.");
  const owner = (index) => now.documents.find((one) => one.end > now.at + index);
  const box = h("div", { class: `tokens ${place.view}`, tabindex: "0", role: "group", "aria-label": `tokens ${count(now.at)} to ${count(stop - 1)} as ${place.view}` });
  const chips = new Map(); // index of a token -> its element
  const select = (index) => {
    box.querySelector(".pointed")?.classList.remove("pointed");
    chips.get(index)?.classList.add("pointed");
    const run = now.runs?.find((one) => one.start <= index && index < one.end);
    box.dataset.chosen = index;
    detail.replaceChildren(...[h("span", {}, "token ", h("b", {}, (now.at + index).toLocaleString("en-US"))), h("span", {}, "id ", h("b", {}, String(now.ids[index]))), now.bytes?.[index] && h("span", {}, "bytes ", h("code", {}, now.bytes[index])),
      run && h("span", {}, run.name ? "special " : run.text === undefined ? "no text by itself" : run.end - run.start > 1 ? `tokens ${run.start + now.at} to ${run.end - 1 + now.at} together ` : "text ", h("code", {}, run.name ?? (run.text === undefined ? "" : JSON.stringify(run.text)))),
      h("span", {}, "document ", h("span", { class: "id" }, owner(index)?.id)), now.learnt && !now.learnt[index] && h("span", {}, "not learnt from")].filter(Boolean));
  };
  for (const run of now.runs || now.ids.map((_, index) => ({ start: index, end: index + 1 }))) {
    const begins = now.documents.find((one) => one.start === now.at + run.start);
    if (begins) box.append(h("span", { class: "bound" }, `document ${count(begins.row + 1)}${begins.continues ? ", goes on from the shard before" : ""}`, h("span", { class: "id" }, begins.id)));
    for (let index = run.start; index < run.end; index += 1) {
      const text = run.name ?? run.text ?? (run.bytes ? `‹${run.bytes}›` : String(now.ids[index])), own = index === run.start ? text : "";
      const kind = ["token", run.name !== undefined ? "special" : run.text === undefined ? "bytes" : null, (now.runs ? run.start : index) % 2 ? "odd" : null, now.learnt && !now.learnt[index] ? "unlearnt" : null];
      const chip = h("span", { class: kind.filter(Boolean).join(" "), "data-index": index },
        place.view === "ids" || !now.runs ? String(now.ids[index]) : place.view === "both" ? [h("span", { class: "piece" }, own.replaceAll("\n", "↵").replaceAll("\t", "→") || "…"), h("span", { class: "number" }, String(now.ids[index]))] : own);
      chips.set(index, chip);
      box.append(chip, place.view === "text" && now.runs ? "" : " ");
    }
  }
  const indexOf = (event) => event.target.closest?.(".token")?.dataset.index;
  for (const name of ["pointerover", "click"]) box.addEventListener(name, (event) => indexOf(event) !== undefined && select(Number(indexOf(event))));
  box.addEventListener("keydown", (event) => {
    const steps = { ArrowRight: 1, ArrowLeft: -1 }, moves = { PageDown: now.size, PageUp: -now.size, Home: -now.at, End: now.tokens };
    if (event.key in steps) select(clamp(Number(box.dataset.chosen ?? -1) + steps[event.key], 0, now.ids.length - 1));
    else if (event.key in moves) move(moves[event.key] === now.tokens ? Math.max(now.tokens - now.size, 0) - now.at : moves[event.key]);
    else return;
    event.preventDefault();
  });
  return [
    h("div", { class: "window-head" },
      h("button", { type: "button", disabled: now.at === 0, onclick: () => move(-now.size) }, "← previous"),
      h("span", {}, `Tokens ${now.at.toLocaleString("en-US")} to ${(stop - 1).toLocaleString("en-US")} of ${now.tokens.toLocaleString("en-US")} in ${now.split} shard ${now.shard} of ${now.source}; document${now.documents.length > 1 ? `s ${count(first.row + 1)} to ${count(last.row + 1)}` : ` ${count(first.row + 1)}`} of ${count(now.document_count)}`),
      h("button", { type: "button", disabled: stop >= now.tokens, onclick: () => move(now.size) }, "next →")),
    now.undecoded && h("p", { class: "absent failed" }, now.undecoded),
    box, detail, windowDocuments(now),
  ];
}

function windowDocuments(now) {
  const found = (one) => (known(one.file) && one.id.endsWith(`@${one.file}:${one.file_row}`) ? one.id.slice(0, -`@${one.file}:${one.file_row}`.length) : one.id); // packing tells repeated ids apart by their place
  const read = (one) => lead({ id: found(one), exact: "yes" }, one.id);
  const scores = [...new Set(now.documents.flatMap((one) => Object.keys(one.values)))];
  return table("Documents of this window", [
    { head: "document", number: true, cell: (one) => count(one.row + 1), value: (one) => one.row + 1 },
    { head: "id; read it", class: "name", cell: read, value: (one) => one.id },
    { head: "read from", cell: (one) => (known(one.file) ? `${one.file}, row ${one.file_row}` : "–") },
    { head: "tokens of the shard", number: true, cell: (one) => [`${one.start.toLocaleString("en-US")} to ${(one.end - 1).toLocaleString("en-US")}`, (one.continues || one.goes_on) && h("span", { class: "note" }, one.goes_on ? " goes on in the next shard" : " begun in the shard before")], value: (one) => one.start },
    { head: "tokens", number: true, cell: (one) => count(one.end - one.start), value: (one) => one.end - one.start },
    ...scores.map((name) => ({ head: words(name.replace("scores.", "")), number: now.documents.every((one) => typeof one.values[name] !== "string"), cell: (one) => decimal(one.values[name], 3), value: (one) => one.values[name] })),
  ], now.documents, { class: "measures" });
}

function shardFacts(facts, place) {
  const result = h("div", { role: "status" });
  const verify = async (event) => {
    event.target.disabled = true;
    result.replaceChildren(h("p", { class: "quiet" }, "reading and hashing …"));
    const answer = await ask("shard_check", byPlace([], place.last || place));
    event.target.disabled = false;
    if (answer) result.replaceChildren(shardCheck(answer));
  };
  const wrong = facts.files.filter((file) => file.fault);
  return [
    h("h4", {}, `${facts.source}, ${facts.split} shard ${facts.shard}`, h("span", { class: "note" }, ` ${count(facts.document_count)} documents, ${count(facts.tokens)} tokens; largest id ${facts.largest_id} of ${count(facts.vocabulary)}`)),
    figure(`Lengths of its documents in tokens, the end of the text included; n = ${count(facts.document_count)}, shortest ${count(facts.shortest)}, median ${decimal(facts.median)}, mean ${decimal(facts.mean)}, longest ${count(facts.longest)}. A bar holds lengths up to twice its first.`,
      columnChart({ bars: facts.lengths.map((bar) => ({ name: bar.from < 1024 ? String(bar.from) : bar.from < 2 ** 20 ? `${bar.from / 1024} Ki` : `${bar.from / 2 ** 20} Mi`, value: bar.count, title: `${count(bar.from)} to ${count(bar.to)} tokens: ${count(bar.count)} documents` })), width: 560, height: 190, xLabel: "tokens from", yLabel: "documents" })),
    table(`Files of ${facts.split} shard ${facts.shard} of ${facts.source}`, [
      { head: "file", class: "name", cell: (row) => row.path },
      { head: "bytes listed", number: true, cell: (row) => row.bytes.toLocaleString("en-US"), value: (row) => row.bytes },
      { head: "size", cell: (row) => (row.fault ? h("span", { class: "state failed" }, row.fault) : "as listed") },
      { head: "sha256 listed", cell: (row) => h("code", {}, row.sha256) },
    ], facts.files, { class: "tall" }),
    h("p", {}, wrong.length > 0 && h("b", {}, `${wrong.length} of ${facts.files.length} files are not of the size that the manifest lists. `), isServed() && h("button", { type: "button", class: "check", onclick: verify }, "Compare the hashes of this shard")),
    result,
  ];
}

function shardCheck(found) {
  if (!here(found)) return absent(found);
  if (found.too_large) return h("p", { class: "note" }, `This shard has ${count(found.too_large)} bytes; more than ${count(found.limit)} are not hashed here: `, h("code", {}, "shards verify FOLDER"), " does it.");
  const wrong = found.files.filter((file) => file.sha256 !== file.listed);
  if (!wrong.length) return h("p", { class: "lead" }, h("span", { class: "state done" }, "Whole. "), `The ${found.files.length} files of ${found.split} shard ${found.shard} have the hashes that the manifest lists (${count(found.bytes)} bytes read).`);
  return h("div", {}, wrong.map((file) => h("p", { class: "absent failed" }, h("b", {}, file.path), file.fault ? `: ${file.fault}` : [": altered. Its sha256 is ", h("code", {}, file.sha256), ", listed is ", h("code", {}, file.listed)])));
}

function shardTable(data) {
  return [
    h("p", { class: data.faulty ? "absent failed" : "note" }, data.faulty ? [`${count(data.faulty)} of ${count(data.files)} files of ${data.source} are not of the size that the manifest lists: `, h("code", {}, data.faults.slice(0, 5).join("; ")), data.faulty > 5 && " …"] : `All ${count(data.files)} files of ${data.source} have the size that the manifest lists.`),
    table(`Shards of ${data.source}`, [
      { head: "shard", class: "name", cell: (row) => `${row.split === "valid" ? "held out" : row.split} ${row.number}` },
      { head: "documents", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
      { head: "tokens", number: true, cell: (row) => count(row.tokens), value: (row) => row.tokens },
      { head: "bytes", number: true, cell: (row) => row.bytes.toLocaleString("en-US"), value: (row) => row.bytes },
      { head: "", cell: (row) => (row.faults ? h("span", { class: "state failed" }, `${row.faults} wrong`) : row.continues ? h("span", { class: "note" }, "its first document began in the shard before") : "") },
    ], data.shards),
    data.total > data.shards.length && h("p", { class: "note" }, `The first ${count(data.shards.length)} of ${count(data.total)} shards; the sizes of all were compared.`),
  ];
}
