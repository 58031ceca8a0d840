// Finding latents: a query, conditions on columns, an order; and a table that draws the rows that are seen.

const ROW = 34; // pixels; as in the style sheet
const SPARE = 8; // rows that are drawn above and below

// The latents that the address asks for, as dictionary * 2^32 + latent.
function found() {
  const wanted = state.d === "" ? meta.dictionaries.map((_, d) => d) : [Number(state.d)].filter(d => meta.dictionaries[d]);
  const matches = matcher(state.q), conditions = parseWhere(state.where), rows = [];
  for (const d of wanted) {
    const fits = matches(d);
    for (let i = 0; i < meta.dictionaries[d].latents; i++) {
      if (fits(i) && conditions.every(condition => condition(d, i))) rows.push([d, i]);
    }
  }
  return sorted(rows);
}

function sorted(rows) {
  const [, sign, key] = /^(-?)(.*)$/.exec(state.sort);
  const column = allColumns().find(c => c.key === key);
  if (!column) return rows;
  const keyed = rows.map(([d, i]) => [column.value(d, i), d, i]);
  const order = sign ? -1 : 1;
  keyed.sort((a, b) => (Number.isNaN(a[0]) - Number.isNaN(b[0])) || order * (a[0] - b[0]) || a[1] - b[1] || a[2] - b[2]);
  return keyed.map(([, d, i]) => [d, i]);
}

// "254": that number. "on:self", "promotes:self": tokens. Anything else: either of the two, or a label.
function matcher(query) {
  const text = query.trim();
  if (!text) return () => () => true;
  if (/^\d+$/.test(text)) return () => i => i === Number(text);
  const [, field, rest] = /^(?:(on|promotes|label):)?(.*)$/s.exec(text);
  const words = new Set();
  for (const [id, word] of vocabulary) if (contains(word, rest)) words.add(id);
  return d => {
    const within = [field !== "promotes" && field !== "label" && columns[d].on, field !== "on" && field !== "label" && columns[d].up].filter(Boolean);
    return i => within.some(values => holds(values, meta.dictionaries[d].latents, i, words));
  };
}

function contains(word, wanted) {
  return word.toLowerCase().includes(wanted.toLowerCase()) || visible(word).toLowerCase().includes(wanted.toLowerCase());
}

function holds(values, latents, i, words) {
  const n = values.length / latents;
  for (let k = i * n; k < (i + 1) * n; k++) if (words.has(values[k])) return true;
  return false;
}

// "alive", "class0=novel", "cos1<0.5", "rate>=0.01", joined by commas.
function parseWhere(where) {
  return where.split(",").filter(Boolean).map(part => {
    if (part === "alive") return (d, i) => !isDead(d, i);
    if (part === "dead") return (d, i) => isDead(d, i);
    const classes = /^class(\d+)=(\w+)$/.exec(part);
    if (classes) return (d, i) => classOf(d, i, Number(classes[1])) === classes[2];
    const bound = /^(\w+?)(<=|>=|<|>)(-?[\d.eE+-]+)$/.exec(part);
    const column = bound && allColumns().find(c => c.key === bound[1]);
    if (!column) return () => true;
    const limit = Number(bound[3]);
    const test = { "<": v => v < limit, ">": v => v > limit, "<=": v => v <= limit, ">=": v => v >= limit }[bound[2]];
    return (d, i) => test(column.value(d, i));
  });
}

function listView() {
  const rows = found(), shown = shownColumns();
  const body = el("div", { class: "rows", role: "rowgroup" });
  const scroller = el("div", { class: "scroller", role: "table", "aria-rowcount": rows.length + 1, "aria-label": "Latents", tabindex: 0 },
    headRow(shown), body);
  body.style.height = `${rows.length * ROW}px`;
  const draw = () => {
    const first = Math.max(0, Math.floor(scroller.scrollTop / ROW) - SPARE);
    const last = Math.min(rows.length, Math.ceil((scroller.scrollTop + (scroller.clientHeight || 800)) / ROW) + SPARE);
    body.replaceChildren(...rows.slice(first, last).map((row, k) => latentRow(row, first + k, shown)));
  };
  scroller.addEventListener("scroll", draw, { passive: true });
  scroller.addEventListener("keydown", event => listKey(event, scroller, rows, draw));
  requestAnimationFrame(draw);
  const part = el("section", { class: "list" },
    el("p", { class: "note count" }, `${number(rows.length)} latents`, rows.length ? "" : ": nothing is like that; take a condition away."),
    scroller);
  part.redraw = draw;
  return part;
}

function shownColumns() {
  const effects = allColumns().filter(c => c.key.startsWith("effect") || c.key.startsWith("cos"));
  const about = state.d === "" ? effects.slice(0, 2) : effects.filter(c => c.about !== Number(state.d));
  const usable = about.filter(c => state.d === "" || columns[Number(state.d)][c.key]);
  const sorting = allColumns().filter(c => c.key === state.sort.replace(/^-/, "") && c.key !== "rate" && !usable.includes(c));
  return [allColumns()[0], ...sorting, ...usable.slice(0, 4)];
}

function headRow(shown) {
  const head = (title, key, help) => {
    const now = state.sort.replace(/^-/, "") === key;
    const falling = state.sort === `-${key}`;
    return el("div", { role: "columnheader", "aria-sort": now ? (falling ? "descending" : "ascending") : "none", title: help },
      el("button", { onclick: () => go({ sort: now ? (falling ? key : "") : `-${key}` }) }, title, now ? (falling ? " ▼" : " ▲") : ""));
  };
  return el("div", { class: "row head", role: "row" },
    el("div", { role: "columnheader" }, "latent"), el("div", { role: "columnheader", class: "words" }, "active on tokens"),
    shown.map(c => head(c.title, c.key, c.help)));
}

function latentRow([d, i], k, shown) {
  const row = el("div", { class: "row", role: "row", "aria-rowindex": k + 2, "data-k": k },
    el("div", { role: "cell" }, latentLink(d, i)),
    el("div", { role: "cell", class: "words" }, isDead(d, i) ? el("span", { class: "note" }, "dead") : tokensAt(d, i, "on").map(t => el("code", {}, tokenText(t)))),
    shown.map(c => el("div", { role: "cell", class: "figure" }, c.show(c.value(d, i)))));
  row.style.top = `${k * ROW}px`;
  return row;
}

// Down and up (or j and k) go from latent to latent, Enter opens.
function listKey(event, scroller, rows, draw) {
  const step = { ArrowDown: 1, j: 1, ArrowUp: -1, k: -1, PageDown: 20, PageUp: -20, Home: -rows.length, End: rows.length }[event.key];
  if (!step || event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  event.stopPropagation();
  const held = document.activeElement.closest && document.activeElement.closest(".row[data-k]");
  const k = Math.min(rows.length - 1, Math.max(0, (held ? Number(held.dataset.k) : -1) + step));
  const top = k * ROW, height = scroller.clientHeight - ROW;
  if (top < scroller.scrollTop) scroller.scrollTop = top;
  else if (top + ROW > scroller.scrollTop + height) scroller.scrollTop = top + ROW - height;
  draw();
  const row = scroller.querySelector(`.row[data-k="${k}"] a`);
  if (row) row.focus({ preventScroll: true });
}
