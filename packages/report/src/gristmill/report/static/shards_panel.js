// Packed shards: what manifests say, and any window of their tokens.

function panelArtifacts(data) {
  return [h("p", { class: "note" }, "Each document ends with one token more than the policy counted: the end of the text."), data.artifacts.map((artifact) => [
    h("h3", {}, artifact.name, h("span", { class: "note" }, ` ${artifact.format || ""}`)),
    h("dl", { class: "facts" }, [["documents", count(total(artifact.sources.map((one) => one.documents)))], ["tokens", count(total(artifact.sources.map((one) => one.tokens)))], ["mixtures", artifact.mixtures.join(", ") || "none"], ["laid out for the Hub", artifact.published ? "yes, same content in published/" : "no"], ["content id", artifact.content_id]]
      .map(([name, value]) => h("div", { class: name === "content id" ? "long" : null }, h("dt", {}, name), h("dd", {}, value || "–")))),
    artifact.sources.length > 0 && table(`Sources of ${artifact.name}`, [
      { head: "source", class: "name", cell: (row) => row.name },
      { head: "documents", number: true, cell: (row) => count(row.documents) },
      { head: "tokens", number: true, cell: (row) => count(row.tokens) },
      { head: "of them held out", number: true, cell: (row) => `${count(row.valid_documents)} documents, ${count(row.valid_tokens)} tokens` },
      { head: "shards", number: true, cell: (row) => count(row.shards) },
      { head: "dtype", cell: (row) => row.dtype || "–" },
      { head: "vocabulary", number: true, cell: (row) => count(row.vocabulary) },
      { head: "licence", cell: (row) => row.licence || "–" },
    ], artifact.sources),
  ])];
}
