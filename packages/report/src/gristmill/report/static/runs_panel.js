// All runs at a folder, each leading to its page.

function panelRuns(data) {
  return table("Runs", [
    { head: "run", class: "name", cell: (row) => h("a", { href: `/run/${row.key.split("/").map(encodeURIComponent).join("/")}` }, row.key) },
    { head: "kind", cell: (row) => row.kind },
    { head: "state", cell: (row) => (row.error ? h("span", { class: "error-text" }, row.error) : row.status && h("span", { class: `state ${row.status}` }, row.status)) },
    { head: "started", cell: (row) => (row.started_at ? time(row.started_at) : "–") },
  ], data.runs);
}
