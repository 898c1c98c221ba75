// Tables that can be sorted by each of their columns and taken away as CSV, whatever panel they stand in.

// columns: [{head, cell(row) -> node or text, number: true, value(row) -> number or text}]. `value` is what a column is
// sorted by and what goes into the CSV, exact where the cell is rounded or drawn; without it the cell's text is taken.
// A column without a head, or with `plain`, is not sorted by; a drawn one without `value` is left out of the CSV too.
// options: {class, caption: true to show it, row(row) -> class, at_once: rows before "show all"}.
const AT_ONCE = 200;
const orders = new Map(); // caption -> {head, down, all}: what was chosen stays when the table is drawn again

function table(caption, columns, rows, options = {}) {
  const heads = columns.map((column) => textOf(column.head));
  const sortable = (column, index) => heads[index] && !column.plain && (column.value || column.class !== "bar");
  const chosen = orders.get(caption) || { head: "", down: false, all: false };
  const limit = options.at_once || AT_ONCE;
  const body = h("tbody"), more = h("p", { class: "more-rows" });
  const ends = columns.map((column, index) => h("th", { class: column.number ? "number" : column.class, scope: "col" },
    sortable(column, index) ? h("button", { type: "button", class: "sort", onclick: () => turn(column, heads[index]) }, column.head) : column.head));
  const made = h("table", { class: options.class }, h("caption", { class: options.caption ? null : "unseen" }, caption), h("thead", {}, h("tr", {}, ends)), body);
  const cells = (row) => h("tr", { class: options.row ? options.row(row) : null }, columns.map((column, index) =>
    h(index ? "td" : "th", { class: column.number ? "number" : column.class, scope: index ? null : "row" }, column.cell(row))));

  // Numbers begin with the largest, words with the first; the third press gives the order back that the table came in.
  function turn(column, head) {
    const first = Boolean(column.number);
    if (chosen.head !== head) Object.assign(chosen, { head, down: first });
    else if (chosen.down === first) chosen.down = !first;
    else chosen.head = "";
    orders.set(caption, chosen);
    show();
  }

  function show() {
    const at = heads.findIndex((head, index) => head && head === chosen.head && sortable(columns[index], index));
    const shown = at < 0 ? rows : sorted(rows, columns[at], chosen.down);
    ends.forEach((end, index) => (index === at ? end.setAttribute("aria-sort", chosen.down ? "descending" : "ascending") : end.removeAttribute("aria-sort")));
    made.classList.toggle("sorted", at >= 0);
    const cut = !chosen.all && shown.length > limit + limit / 10;
    body.replaceChildren(...(cut ? shown.slice(0, limit) : shown).map(cells));
    more.replaceChildren(...(cut ? [`${count(limit)} of ${count(shown.length)} rows. `, h("button", { type: "button", onclick: () => { orders.set(caption, Object.assign(chosen, { all: true })); show(); } }, "Show all")] : []));
  }

  show();
  const save = () => download(fileName(made, caption, "csv"), csv(columns, heads, rows), "text/csv;charset=utf-8");
  return h("div", { class: "table" },
    h("div", { class: "scroll", tabindex: "0", role: "region", "aria-label": caption }, made), more,
    rows.length > 0 && h("div", { class: "tools" }, h("button", { type: "button", title: `Save “${caption}” as comma-separated values`, onclick: save }, "CSV")));
}

function textOf(content) {
  const walker = document.createTreeWalker(fill(document.createElement("span"), {}, [content]), NodeFilter.SHOW_TEXT), pieces = [];
  while (walker.nextNode()) pieces.push(walker.currentNode.data);
  return pieces.join(" ").replace(/\s+/g, " ").trim();
}

const valueOf = (column, row) => (column.value ? column.value(row) : amount(textOf(column.cell(row))));

// Stable, and what is not known comes last whichever way it goes.
function sorted(rows, column, down) {
  const keyed = rows.map((row) => [row, valueOf(column, row)]);
  const rank = (value) => (!known(value) || value === "" || value === "–" ? 2 : typeof value === "string" ? 1 : 0);
  const compare = (a, b) => (typeof a === "string" ? a.localeCompare(b, "en", { numeric: true }) : a - b);
  return keyed.sort(([, a], [, b]) => rank(a) - rank(b) || (rank(a) === 2 ? 0 : (down ? -1 : 1) * compare(a, b))).map(([row]) => row);
}

// What a cell says in figures as a number: "1,234", "−0.5", "1.23 M", "4.5 %", "2 min 3 s", "3 of 7"; other text as it is.
const SIZES = { "%": 1, k: 1e3, M: 1e6, B: 1e9, T: 1e12, ms: 1e-3, s: 1, min: 60, h: 3600 };

function amount(text) {
  const plain = text.replaceAll(",", "").replaceAll("−", "-");
  const parts = [...plain.matchAll(/([-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?)\s*(ms|min|[kMBTsh%])?(?=\s|$)/g)];
  const rest = parts.length ? plain.slice(parts[0].index + parts[0][0].length) : "";
  if (!parts.length || parts[0].index > 0 || !/^(\s*[\d.]+ (ms|s|min|h))*( (of|\/|to) .*)?$/.test(rest)) return text;
  const timed = /^(ms|s|min|h)$/.test(parts[0][2] || "");
  return (timed ? parts : parts.slice(0, 1)).reduce((sum, [, number, unit]) => sum + Number(number) * (SIZES[unit] || 1), 0);
}

// RFC 4180. Text that a spreadsheet would take for a formula gets an apostrophe in front.
function csv(columns, heads, rows) {
  const taken = columns.map((column, index) => [column, heads[index]]).filter(([column, head]) => column.value || (head && column.class !== "bar"));
  const field = (value) => {
    if (typeof value === "number") return Number.isFinite(value) ? String(value) : "";
    const text = known(value) && value !== "–" ? String(value) : "";
    const safe = /^[=+\-@\t\r\n＝＋－＠]/.test(text) ? "'" + text : text;
    return /[",\r\n]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
  };
  const said = (column, row) => {
    if (column.value) return column.value(row);
    const text = textOf(column.cell(row));
    return /^[-−]?[\d,]+(\.\d+)?(e[-+]?\d+)?$/.test(text) ? amount(text) : text;
  };
  const lines = [taken.map(([column, head]) => column.unit ? `${head || "value"} (${column.unit})` : head), ...rows.map((row) => taken.map(([column]) => said(column, row)))];
  return lines.map((line) => line.map(field).join(",") + "\r\n").join("");
}
