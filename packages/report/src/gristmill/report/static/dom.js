"use strict";
// Elements, numbers as people read them, and text that cannot deceive. Nothing in this page ever parses data as HTML.

const SVG = "http://www.w3.org/2000/svg";

function h(tag, attributes, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

function s(tag, attributes, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

function fill(element, attributes, children) {
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : typeof value === "string" ? legible(value) : value);
  }
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    if (child instanceof Node) element.append(child);
    else element.append(element.namespaceURI === SVG ? legible(String(child)) : visible(String(child)));
  }
  return element;
}

// Control, format (bidi, zero width), private, unassigned and lone-surrogate characters, and letters that look like nothing.
const HIDDEN = /[\p{Cc}\p{Cf}\p{Co}\p{Cn}\p{Cs}\p{Zl}\p{Zp}\u115f\u1160\u2800\u3164\uffa0]/gu;
const NAMES = {
  0x00: "NUL", 0x07: "BEL", 0x08: "BS", 0x0d: "CR", 0x1b: "ESC", 0x7f: "DEL", 0xad: "SHY", 0x200b: "ZWSP", 0x200c: "ZWNJ",
  0x200d: "ZWJ", 0x200e: "LRM", 0x200f: "RLM", 0x202a: "LRE", 0x202b: "RLE", 0x202c: "PDF", 0x202d: "LRO", 0x202e: "RLO",
  0x2060: "WJ", 0x2066: "LRI", 0x2067: "RLI", 0x2068: "FSI", 0x2069: "PDI", 0xfeff: "BOM",
};

function spelt(character) {
  const code = character.codePointAt(0);
  return NAMES[code] || "U+" + code.toString(16).toUpperCase().padStart(4, "0");
}

function legible(text) {
  return text.replace(HIDDEN, (character) => (character === "\n" || character === "\t" ? character : `[${spelt(character)}]`));
}

function visible(text) {
  const out = document.createDocumentFragment();
  let end = 0;
  for (const match of text.matchAll(HIDDEN)) {
    if (match[0] === "\n" || match[0] === "\t") continue;
    out.append(text.slice(end, match.index));
    const mark = document.createElement("span");
    mark.className = "hidden-character";
    mark.title = "U+" + match[0].codePointAt(0).toString(16).toUpperCase().padStart(4, "0") + ", shown because it is invisible";
    mark.textContent = spelt(match[0]);
    out.append(mark);
    end = match.index + match[0].length;
  }
  out.append(text.slice(end));
  return out;
}

const THIN = "\u2009";
const known = (value) => value !== null && value !== undefined && !Number.isNaN(value);

// 12,345 in full up to a million, then 1.23 M, 4.56 B.
function count(value) {
  if (!known(value)) return "–";
  for (const [size, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"]]) {
    if (Math.abs(value) >= size) return (value / size).toPrecision(3) + THIN + name;
  }
  return Math.round(value).toLocaleString("en-US");
}

function short(value) {
  if (!known(value)) return "–";
  for (const [size, name] of [[1e12, "T"], [1e9, "B"], [1e6, "M"], [1e3, "k"]]) {
    if (Math.abs(value) >= size) return trim((value / size).toPrecision(3)).replace("-", "−") + THIN + name;
  }
  return trim(String(Math.round(value * 1000) / 1000)).replace("-", "−");
}

function decimal(value, digits = 4) {
  if (typeof value !== "number") return known(value) ? String(value) : "–";
  if (value === 0) return "0";
  if (Number.isInteger(value) && Math.abs(value) < 1e15) return value.toLocaleString("en-US").replace("-", "−");
  const size = Math.abs(value);
  const text = size >= 1000 ? Math.round(value).toLocaleString("en-US") : size < 1e-4 ? value.toExponential(2) : trim(value.toPrecision(digits));
  return text.replace(/^-/, "−");
}

// For columns of figures that are read against each other.
const fixed = (value, digits) => (known(value) ? value.toFixed(digits).replace(/^-(0\.?0*)$/, "$1").replace("-", "−") : "–");
const trim = (text) => (text.includes(".") && !text.includes("e") ? text.replace(/0+$/, "").replace(/\.$/, "") : text);
const signed = (value, digits = 3) => (value > 0 ? "+" : value < 0 ? "−" : "") + decimal(Math.abs(value), digits);

function percent(part, whole = 1) {
  if (!known(part) || !whole) return "–";
  const value = (100 * part) / whole;
  const digits = value !== 0 && Math.abs(value) < 0.1 ? 2 : 1;
  return value.toFixed(digits) + THIN + "%";
}

function duration(seconds) {
  if (!known(seconds)) return "–";
  if (seconds < 1) return Math.round(seconds * 1000) + " ms";
  if (seconds < 100) return trim(seconds.toPrecision(3)) + " s";
  if (seconds < 6000) return Math.floor(seconds / 60) + " min " + Math.round(seconds % 60) + " s";
  return Math.floor(seconds / 3600) + " h " + Math.round((seconds % 3600) / 60) + " min";
}

const words = (name) => String(name).replaceAll("_", " ");
const total = (numbers) => numbers.reduce((sum, value) => sum + (value || 0), 0);

// The same choice among a few, everywhere: buttons that say which is pressed.
function choice(label, options, chosen, pick) {
  return h("div", { class: "choice", role: "group", "aria-label": label },
    h("span", { class: "choice-label" }, label),
    options.map(([value, text]) =>
      h("button", { type: "button", "aria-pressed": String(value === chosen), onclick: () => pick(value) }, text)));
}
