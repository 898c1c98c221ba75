// Duplicates: how large the clusters are, which source repeats which, and the largest of them with their texts.

const KINDS = { exact: "Exact duplicates", same_url: "Documents of one address", near: "Near duplicates", semantic: "Semantic duplicates" };
const SHOWN_AT_ONCE = 3;

function panelDuplicates(data, state, change, all) {
  return data.stages.map((stage) => {
    const many = stage.buckets.filter((bucket) => bucket.to > 1);
    const documents = total(many.map((bucket) => bucket.documents));
    const reported = stage.largest.some((group) => group.samples);
    return [
      h("h3", {}, KINDS[stage.stage] || stage.stage),
      h("p", { class: "lead" }, `${count(documents)} of ${count(stage.examined)} documents (${percent(documents, stage.examined)}) share a cluster with another; `,
        `${count(stage.redundant)} would go if each cluster kept one member`,
        known(stage.duplicate_tokens) && stage.tokens > 0 && `, and with them ${count(stage.duplicate_tokens)} of ${count(stage.tokens)} tokens (${percent(stage.duplicate_tokens, stage.tokens)})`, "."),
      h("div", { class: "columns" },
        many.length > 0 && figure("Documents in clusters, by the size of the cluster.",
          columnChart({ bars: many.map((bucket) => ({ name: short(bucket.to), value: bucket.documents, title: `${count(bucket.documents)} documents in ${count(bucket.clusters)} clusters of ${bucketName(bucket)} members` })), width: 400, height: 200, xLabel: "members of the cluster, up to", yLabel: "documents" })),
        stage.largest.length > 0 && !reported && figure("The largest clusters, and how their first members begin.",
          h("ol", { class: "clusters" }, stage.largest.map((group) => h("li", {}, h("b", {}, `${count(group.size)} members`),
            group.members.map((row) => clusterMember(all.samples.documents?.[row])))))),
        stage.redundant > 0 && (stage.sources || []).length > 1 && stage.sources.length <= 5 && sourceTable(stage)),
      stage.redundant > 0 && (stage.sources || []).length > 5 && sourceTable(stage),
      reported && largestClusters(stage.largest),
    ];
  });
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
      { head: "in all", number: true, cell: (row) => count(row.documents) },
      ...sources.map((column) => ({ head: h("div", {}, column.source), class: "source", cell: (row) => cell(row, column) })),
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
      h("span", { class: "note" }, `${sample.source} · ${sample.id} · ${count(sample.characters)} characters, ${sample.keep ? "kept" : "dropped"}`),
      h("div", { class: "excerpt", dir: "auto" }, sample.excerpt.replace(/\s+/g, " ")))),
      lines.length > 0 && h("details", {}, h("summary", {}, "where the first (−) and the last (+) of these part"), h("div", { class: "difference" }, lines.map(differenceLine)))));
}

const SIGNS = { " ": ["same", " "], "-": ["minus", "−"], "+": ["plus", "+"], "@": ["skipped", "…"] };

function differenceLine(line) {
  const [kind, sign] = SIGNS[line[0]] || SIGNS[" "];
  return h("div", { class: kind, "data-sign": sign, dir: "auto" }, h("span", {}, kind === "skipped" ? "" : line.slice(1)));
}
