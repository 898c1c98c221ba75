// Duplicates: how large the clusters are, which source repeats which, and the largest of them with their texts.

const KINDS = { exact: "Exact duplicates", same_url: "Documents of one address", near: "Near duplicates", semantic: "Semantic duplicates" };
const SHOWN_AT_ONCE = 3, CLUSTERS = 5;

function panelDuplicates(data, state, change, all) {
  return [data.stages.map((stage) => clusterStage(stage, state, change, all)), (data.repeats || []).map(repeatStage)];
}

function clusterStage(stage, state, change, all) {
  const many = stage.buckets.filter((bucket) => bucket.to > 1);
  const documents = total(many.map((bucket) => bucket.documents));
  const reported = stage.largest.some((group) => group.samples);
  const open = state[`clusters_${stage.stage}`] || null;
  const set = (chosen) => change({ [`clusters_${stage.stage}`]: chosen && { ...open, ...chosen } });
  const share = (bucket) => percent(bucket.documents, stage.examined);
  return [
    h("h3", { id: `clusters-${stage.stage}` }, KINDS[stage.stage] || stage.stage),
    h("p", { class: "lead" }, `${count(documents)} of ${count(stage.examined)} documents (${percent(documents, stage.examined)}) share a cluster with another; `,
      `${count(stage.redundant)} would go if each cluster kept one member`,
      known(stage.duplicate_tokens) && stage.tokens > 0 && `, and with them ${count(stage.duplicate_tokens)} of ${count(stage.tokens)} tokens (${percent(stage.duplicate_tokens, stage.tokens)})`, "."),
    h("div", { class: "columns" },
      many.length > 0 && figure(`Documents in clusters, by the size of the cluster; n = ${count(stage.examined)} documents.`,
        columnChart({ bars: many.map((bucket) => ({ name: short(bucket.to), value: bucket.documents, title: `${count(bucket.documents)} documents (${share(bucket)}) in ${count(bucket.clusters)} clusters of ${bucketName(bucket)} members` })), width: 400, height: 200, xLabel: "members of the cluster, up to", yLabel: "documents" }),
        table(`Clusters by size, ${stage.stage}`, [
          { head: "members", cell: (bucket) => bucketName(bucket), value: (bucket) => bucket.to },
          { head: "clusters", number: true, cell: (bucket) => (isServed() && bucket.clusters ? h("a", { href: `#clusters-${stage.stage}-list`, onclick: () => set({ from: bucket.from, to: bucket.to, at: 0 }) }, count(bucket.clusters)) : count(bucket.clusters)), value: (bucket) => bucket.clusters },
          { head: "documents", number: true, cell: (bucket) => count(bucket.documents), value: (bucket) => bucket.documents },
          { head: "of all", number: true, cell: share, value: (bucket) => bucket.documents / stage.examined },
        ], many.filter((bucket) => bucket.documents))),
      stage.largest.length > 0 && !reported && !isServed() && figure("The largest clusters, and how their first members begin.",
        h("ol", { class: "clusters" }, stage.largest.map((group) => h("li", {}, h("b", {}, `${count(group.size)} members`),
          group.members.map((row) => clusterMember(all.samples.documents?.[row])))))),
      stage.redundant > 0 && (stage.sources || []).length > 1 && stage.sources.length <= 5 && sourceTable(stage)),
    stage.redundant > 0 && (stage.sources || []).length > 5 && sourceTable(stage),
    isServed() ? documents > 0 && clusterBrowser(stage.stage, open, set) : reported && largestClusters(stage.largest),
  ];
}

// Clusters by size, each with its members and what any of them has otherwise than the one to keep.
function clusterBrowser(stage, open, set) {
  const now = { from: 2, to: null, at: 0, row: null, members_at: 0, other: null, ...open };
  const one = { stage, row: now.row, at: now.members_at };
  const turn = (chosen) => { set(chosen); toHead(`clusters ${stage}`); };
  return figure("Clusters, the largest first. Blue is kept, vermilion is dropped; each member leads to its document.", h("div", { id: `clusters-${stage}-list` },
    (known(now.to) || now.from > 2) && h("p", { class: "pager" }, h("span", {}, `Only those of ${now.from === now.to ? now.to : `${count(now.from)} to ${count(now.to)}`} members.`), h("button", { type: "button", onclick: () => set(null) }, "All sizes")),
    answered("clusters", { stage, from: now.from, to: now.to, at: now.at, limit: CLUSTERS }, (found) => [
      found.page.map((group) => clusterCard(group, now, one, set)),
      h("p", { class: "pager" }, h("span", {}, found.clusters ? `Clusters ${count(now.at + 1)} to ${count(now.at + found.page.length)} of ${count(found.clusters)}, of ${count(found.documents)} documents.` : "There is no such cluster."),
        now.at > 0 && h("button", { type: "button", onclick: () => turn({ at: Math.max(now.at - CLUSTERS, 0), row: null }) }, "Back"),
        known(found.next) && h("button", { type: "button", onclick: () => turn({ at: found.next, row: null }) }, "Next")),
    ], `clusters ${stage}`)));
}

function clusterCard(group, now, one, set) {
  const opened = now.row === group.stays;
  const turn = (chosen) => { set(chosen); toHead(`cluster ${one.stage} ${one.row}`); };
  const member = (line) => clusterLine(line, group.stays, opened ? now.other : null, (other) => set({ row: group.stays, members_at: opened ? now.members_at : 0, other }), one.stage);
  return h("article", { class: "cluster" },
    h("div", {}, h("h4", {}, `${count(group.size)} members`),
      h("span", { class: "note" }, Object.entries(group.sources).map(([name, number]) => `${name} ${count(number)}`).join(", ")),
      known(group.kept) && h("span", { class: "note" }, group.kept ? `${count(group.kept)} kept` : "none kept"),
      group.size > group.members.length && h("button", { type: "button", "aria-expanded": String(opened), onclick: () => set({ row: opened ? null : group.stays, members_at: 0, other: null }) }, opened ? "Fewer" : "All members")),
    h("div", {}, opened ? answered("cluster", one, (found) => [
      found.members.map(member),
      (known(found.next) || now.members_at > 0) && h("p", { class: "pager" }, h("span", {}, `Members ${count(now.members_at + 1)} to ${count(now.members_at + found.members.length)} of ${count(found.size)}.`),
        now.members_at > 0 && h("button", { type: "button", onclick: () => turn({ members_at: Math.max(now.members_at - 20, 0) }) }, "Back"),
        known(found.next) && h("button", { type: "button", onclick: () => turn({ members_at: found.next }) }, "Next")),
    ], `cluster ${one.stage} ${one.row}`) : group.members.map(member)));
}

function clusterLine(line, stays, compared, compare, stage) {
  const mine = line.row === stays;
  return h("div", { class: `member ${outcomeClass(line) || ""}` },
    h("span", { class: "note" }, `${line.source ?? "no source"} · `, leadToDocument(line.row, line.id), ` · ${count(line.bytes)} bytes, ${outcomeText(line)}`, mine && h("b", {}, " · the one to keep"),
      !mine && h("button", { type: "button", class: "small", "aria-expanded": String(compared === line.row), onclick: () => compare(compared === line.row ? null : line.row) }, "compare")),
    h("div", { class: "excerpt", dir: "auto" }, marked(line.pieces, []), line.after && " …"),
    !mine && compared === line.row && answered("difference", { row: stays, other: line.row }, wordDifference, `difference ${stage} ${line.row}`));
}

// In the one to keep alone: struck out; in this one alone: underlined.
function wordDifference(found) {
  if (found.same) return h("p", { class: "note" }, `Both texts are the same ${count(found.bytes[0])} bytes.`);
  const node = { "=": (text) => text, "-": (text) => h("del", { class: "minus" }, text), "+": (text) => h("ins", { class: "plus" }, text), "@": (text) => h("span", { class: "note" }, ` … ${text} … `) };
  return [h("div", { class: "text words", dir: "auto", tabindex: "0" }, found.pieces.map(([sign, text]) => (node[sign] || node["="])(text))),
    h("p", { class: "note" }, "Struck out: only in the one to keep. Underlined: only in this one.", !found.whole && ` Only a part was compared: of each text the first ${count(found.compared)} bytes at most, and there the words after the first difference.`)];
}

// Parts of texts that stood in the corpus before: how much of the documents they are, and in which sources.
function repeatStage(stage) {
  const column = `${stage.stage}.share`;
  return [
    h("h3", {}, `Repeated ${stage.stage}`),
    h("p", { class: "lead" }, "In ", lead({ sort: column, order: "falling" }, `${count(stage.documents)} of ${count(stage.looked)} documents`), ` (${percent(stage.documents, stage.looked)}) ${count(stage.units)} ${stage.stage} stood in the corpus before. `,
      h("span", { class: "note" }, "The run keeps what is to be cut of each document, not where it stood first, so there is no table of who repeats whom; documents that an earlier rule drops are not looked at.")),
    stage.documents > 0 && h("div", { class: "columns" },
      figure(`Documents by the share of their bytes that is repeated; n = ${count(stage.documents)}.`, columnChart({ bars: stage.bars.map((bar) => ({ name: `≤ ${decimal(100 * bar.to)} %`, value: bar.documents, title: `${count(bar.documents)} documents with ${percent(bar.from)} to ${percent(bar.to)} of their bytes repeated` })), width: 400, height: 200, xLabel: "repeated share of the bytes", yLabel: "documents" })),
      figure("The same by source.", table(`Repeated ${stage.stage} by source`, [
        { head: "source", class: "name", cell: (row) => lead({ source: row.source, sort: column, order: "falling" }, row.source), value: (row) => row.source },
        { head: "looked at", number: true, cell: (row) => count(row.looked), value: (row) => row.looked },
        { head: "with repeats", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
        { head: "share", number: true, cell: (row) => percent(row.documents, row.looked), value: (row) => row.documents / row.looked },
        { head: stage.stage, number: true, cell: (row) => count(row.units), value: (row) => row.units },
      ], stage.sources.filter((row) => row.looked)))),
  ];
}

const bucketName = (bucket) => (bucket.from === bucket.to ? String(bucket.to) : `${bucket.from}–${bucket.to}`);

function clusterMember(document) {
  if (!document) return null;
  return h("div", { class: "member" }, h("span", { class: "note" }, `${document.source} · ${document.id}`), h("bdi", { class: "one-line" }, document.text.slice(0, 140).replace(/\s+/g, " ")));
}

// A row's documents by the source in which they have a duplicate. Shades go by the root: a tenth must not look like none.
function sourceTable(stage) {
  const sources = stage.sources.map((source, index) => ({ ...source, index }));
  const upright = sources.length > 8;
  const cell = (row, column) => {
    const found = stage.pairs[row.index][column.index];
    const title = row === column ? `${count(found)} of ${count(row.documents)} documents of ${row.source} have another duplicate there` : `${count(found)} of ${count(row.documents)} documents of ${row.source} have a duplicate in ${column.source}`;
    const shade = found ? Math.ceil(5 * Math.sqrt(found / row.documents)) : 0;
    return h("div", { class: `heat-cell heat-${shade}${row === column ? " heat-own" : ""}`, title }, found ? (upright ? roughly(found / row.documents) : percent(found, row.documents)) : "·");
  };
  return figure(`Which source repeats which: the share of a row’s documents${upright ? ", in percent," : ""} that have a duplicate in the column’s source; framed, in their own.`,
    table("Which source repeats which", [
      { head: "documents of", class: "name", cell: (row) => row.source },
      { head: "in all", number: true, cell: (row) => count(row.documents), value: (row) => row.documents },
      ...sources.map((column) => ({ head: h("div", {}, column.source), class: "source", cell: (row) => cell(row, column), value: (row) => stage.pairs[row.index][column.index] })),
    ], sources, { class: upright ? "heats upright" : "heats" }));
}

const roughly = (share) => (share < 0.005 ? "<1" : String(Math.round(100 * share)));

function largestClusters(groups) {
  const rest = groups.slice(SHOWN_AT_ONCE);
  return figure("The largest clusters: first members, what is kept, and how the texts differ. Blue is kept, vermilion is dropped.",
    groups.slice(0, SHOWN_AT_ONCE).map(largeCluster),
    rest.length > 0 && h("details", { class: "more" }, h("summary", {}, `${count(rest.length)} more clusters, of ${count(rest[0].size)} to ${count(rest.at(-1).size)} members`), rest.map(largeCluster)));
}

function largeCluster(group) {
  const lines = group.difference || [];
  const dropped = Object.entries(group.dropped).map(([rule, number]) => `${count(number)} by ${words(rule)}`);
  return h("article", { class: "cluster" },
    h("div", {}, h("h4", {}, `${count(group.size)} members`),
      h("span", { class: "note" }, Object.entries(group.sources).map(([name, number]) => `${name} ${count(number)}`).join(", ")),
      h("span", { class: "note" }, group.kept ? `${count(group.kept)} kept` : "none kept", dropped.length > 0 && `; dropped ${dropped.join(", ")}`),
      known(group.similarity) && h("span", { class: "note" }, `alike to ${decimal(group.similarity, 2)} at least`)),
    h("div", {}, group.samples.map((sample) => h("div", { class: `member ${sample.keep ? "kept" : "dropped"}` },
      h("span", { class: "note" }, `${sample.source} · `, leadToDocument(sample.row, sample.id), ` · ${count(sample.characters)} characters, ${sample.keep ? "kept" : "dropped"}`),
      h("div", { class: "excerpt", dir: "auto" }, sample.excerpt.replace(/\s+/g, " ")))),
      lines.length > 0 && h("details", {}, h("summary", {}, "where the first (−) and the last (+) of these part"), h("div", { class: "difference" }, lines.map(differenceLine)))));
}

const SIGNS = { " ": ["same", " "], "-": ["minus", "−"], "+": ["plus", "+"], "@": ["skipped", "…"] };

function differenceLine(line) {
  const [kind, sign] = SIGNS[line[0]] || SIGNS[" "];
  return h("div", { class: kind, "data-sign": sign, dir: "auto" }, h("span", {}, kind === "skipped" ? "" : line.slice(1)));
}
