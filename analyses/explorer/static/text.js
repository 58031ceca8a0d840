// Text reaches the page through text nodes alone; what cannot be seen, or acts on its surroundings, as a sign or code.

const SIGNS = { "\n": "↵", "\t": "⇥", "\r": "↵" };
const INVISIBLE = /[\p{Cc}\p{Cf}\p{Cs}\p{Zl}\p{Zp}]/u;

function visible(text) {
  if (!INVISIBLE.test(text)) return text;
  return Array.from(text, c => SIGNS[c] || (INVISIBLE.test(c) ? escaped(c.codePointAt(0)) : c)).join("");
}

function escaped(code) {
  const hex = (n, width) => n.toString(16).padStart(width, "0");
  if (code >= 0xdc80 && code <= 0xdcff) return `\\x${hex(code - 0xdc00, 2)}`; // a byte that belongs to no letter
  return code < 0x100 ? `\\x${hex(code, 2)}` : code < 0x10000 ? `\\u${hex(code, 4)}` : `\\U${hex(code, 8)}`;
}

const tokenText = id => visible(vocabulary.get(id) ?? `token ${id}`);

// el("p", {class: "note", onclick: f}, "text", node, ...): attributes by name; functions are listeners.
function el(tag, attributes, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes || {})) {
    if (value === undefined || value === null || value === false) continue;
    if (typeof value === "function") element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : String(value));
  }
  element.append(...children.flat(Infinity).filter(child => child !== null && child !== undefined && child !== false));
  return element;
}

function svg(tag, attributes, ...children) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes || {})) element.setAttribute(name, String(value));
  element.append(...children.filter(Boolean));
  return element;
}

function number(value, digits = 3) {
  if (value === null || value === undefined || Number.isNaN(value)) return "–";
  if (Number.isInteger(value)) return value.toLocaleString("en");
  const size = Math.abs(value);
  return size !== 0 && (size < 1e-3 || size >= 1e5) ? value.toExponential(digits - 1) : Number(value.toPrecision(digits)).toString();
}

const percent = value => (Number.isNaN(value) ? "–" : `${number(100 * value)} %`);
const signedPercent = value => (Number.isNaN(value) ? "–" : `${value > 0 ? "+" : ""}${number(100 * value, 2)} %`);

// The tokens of a sequence with their places in its text.
function tokensOf(sequence) {
  let start = 0;
  return sequence.lengths.map((length, position) => {
    const token = { position, text: sequence.text.slice(start, start + length), special: sequence.special.includes(position) };
    start += length;
    return token;
  });
}

// Pieces of text that can be seen: the tokens of a letter of several tokens stand together at its last one.
function piecesOf(tokens, from, to) {
  const pieces = [];
  let held = [];
  for (const token of tokens.slice(from, to)) {
    held.push(token);
    if (token.text !== "") {
      pieces.push({ text: token.text, special: token.special, positions: held.map(t => t.position) });
      held = [];
    }
  }
  if (held.length && pieces.length) pieces[pieces.length - 1].positions.push(...held.map(t => t.position));
  else if (held.length) pieces.push({ text: "", special: false, positions: held.map(t => t.position) });
  return pieces;
}

// Numbers of [position, activation, position, activation, ...] by position.
function byPosition(row, unit) {
  const values = new Map();
  for (let i = 0; i < row.length; i += 2) values.set(row[i], row[i + 1] * unit);
  return values;
}
