// What can be taken away from the page: figures as SVG and PNG, tables as CSV; made here, from what is shown.

function download(name, content, type) {
  const address = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  h("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10_000);
}

// demo-funnel-funnel-by-rule.csv: of the run, the section and what it is.
function fileName(element, name, kind) {
  const plain = (text) => text.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-+|-+$/g, "").slice(0, 60);
  return [document.title.split(" · ")[0], element.closest("main > section")?.id || "", name].map(plain).filter(Boolean).join("-") + "." + kind;
}

// The charts of a figure as one SVG that needs no style sheet: each where it stands, with the words between them.
const DRAWN = ["fill", "fill-opacity", "stroke", "stroke-width", "stroke-dasharray", "stroke-linejoin", "stroke-opacity", "opacity", "font-family", "font-size", "font-weight", "text-anchor"];
const NOT_DRAWN = ".scroll, .tools, figcaption, .unseen, button, select, option, input, output, details:not([open]) > :not(summary)";
const chartsOf = (element) => [...element.querySelectorAll("svg")].filter((one) => !one.closest(NOT_DRAWN) && !one.parentElement.closest("svg") && one.getBoundingClientRect().width > 0);

function standAlone(element, caption) {
  const charts = chartsOf(element), margin = 12, used = new Set();
  const boxes = [...charts.map(drawnBox), ...wordsOf(element).map((one) => one.box)];
  const left = Math.min(...boxes.map((box) => box.left)) - margin, top = Math.min(...boxes.map((box) => box.top)) - margin;
  const width = Math.ceil(Math.max(...boxes.map((box) => box.right)) + margin - left), height = Math.ceil(Math.max(...boxes.map((box) => box.bottom)) + margin - top);
  const copies = charts.map((chart) => {
    const box = chart.getBoundingClientRect(), copy = plainCopy(chart, used);
    for (const [name, value] of Object.entries({ x: box.left - left, y: box.top - top, width: box.width, height: box.height, overflow: "visible" })) copy.setAttribute(name, value);
    return copy;
  });
  const lines = wordsOf(element).map(({ text, box, style }) => s("text", { x: box.left - left, y: box.top - top + box.height * 0.78, fill: rgb(style.color), "font-family": style.fontFamily, "font-size": style.fontSize, "font-weight": style.fontWeight }, text));
  const patterns = [...used].map((id) => document.getElementById(id)).filter(Boolean).map((pattern) => plainCopy(pattern, used));
  return s("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` }, s("title", {}, caption), s("defs", {}, patterns),
    s("rect", { width, height, fill: rgb(getComputedStyle(document.body).backgroundColor) }), copies, lines);
}

// With what its marks reach beyond its own box: labels at the edges.
function drawnBox(chart) {
  const own = chart.getBoundingClientRect();
  const texts = [...chart.querySelectorAll("text")].map((text) => text.getBoundingClientRect()).filter((box) => box.width > 0);
  const reach = (name, pick) => pick(own[name], ...texts.map((box) => box[name]));
  return { left: reach("left", Math.min), top: reach("top", Math.min), right: reach("right", Math.max), bottom: reach("bottom", Math.max) };
}

// Every element with the look that the page gives it, as attributes.
function plainCopy(element, used) {
  const copy = element.cloneNode(true);
  const from = [element, ...element.querySelectorAll("*")], to = [copy, ...copy.querySelectorAll("*")];
  from.forEach((one, index) => {
    const style = getComputedStyle(one), target = to[index];
    if (style.display === "none" && one.closest("defs") === null) return target.setAttribute("display", "none");
    target.removeAttribute("class");
    if (["title", "defs", "svg", "pattern"].includes(one.localName)) return;
    for (const name of one.localName === "text" || one.localName === "tspan" ? DRAWN : DRAWN.filter((other) => !/font|anchor/.test(other))) {
      const value = style.getPropertyValue(name), pattern = /url\("?#([\w-]+)"?\)/.exec(value);
      if (pattern) used.add(pattern[1]);
      target.setAttribute(name, pattern ? `url(#${pattern[1]})` : /^(fill|stroke)$/.test(name) ? rgb(value) : value);
    }
  });
  return copy;
}

// Words of a figure outside its charts, line by line: legends and the names of small multiples.
function wordsOf(element) {
  const found = [], walker = document.createTreeWalker(element, NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    if (!node.data.trim() || node.parentElement.closest("svg") || node.parentElement.closest(NOT_DRAWN)) continue;
    const style = getComputedStyle(node.parentElement), range = document.createRange();
    for (const word of node.data.matchAll(/\S+/g)) {
      range.setStart(node, word.index);
      range.setEnd(node, word.index + word[0].length);
      const box = range.getBoundingClientRect(), last = found.at(-1);
      if (box.width <= 0) continue;
      if (last?.node === node && Math.abs(last.box.top - box.top) < 2) Object.assign(last, { text: `${last.text} ${word[0]}`, box: { left: last.box.left, top: last.box.top, right: box.right, bottom: last.box.bottom, height: last.box.height } });
      else found.push({ node, text: word[0], box, style });
    }
  }
  return found;
}

// Any CSS colour as one that every reader of SVG knows.
const ink = document.createElement("canvas").getContext("2d", { willReadFrequently: true });

function rgb(colour) {
  if (/^(rgb\(|none|#)/.test(colour)) return colour;
  ink.canvas.width = ink.canvas.height = 1;
  ink.fillStyle = colour;
  ink.fillRect(0, 0, 1, 1);
  const [red, green, blue, alpha] = ink.getImageData(0, 0, 1, 1).data;
  return alpha === 255 ? `rgb(${red}, ${green}, ${blue})` : alpha === 0 ? "none" : `rgba(${red}, ${green}, ${blue}, ${(alpha / 255).toFixed(3)})`;
}

const svgText = (element, caption) => new XMLSerializer().serializeToString(standAlone(element, caption));

function saveSvg(element, name, caption) {
  download(fileName(element, name, "svg"), svgText(element, caption), "image/svg+xml");
}

// At twice the size, for screens and print.
function savePng(element, name, caption) {
  const address = URL.createObjectURL(new Blob([svgText(element, caption)], { type: "image/svg+xml" }));
  const image = new Image();
  image.onload = () => {
    const canvas = h("canvas", { width: 2 * image.naturalWidth, height: 2 * image.naturalHeight });
    canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
    URL.revokeObjectURL(address);
    canvas.toBlob((blob) => download(fileName(element, name, "png"), blob, "image/png"), "image/png");
  };
  image.src = address;
}
