// A table of latents that draws the rows that are seen.

const ROW = 34; // pixels; as in the style sheet
const SPARE = 8; // rows that are drawn above and below

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
  const part = el("section", { class: "list" }, listControls(),
    el("p", { class: "note count", role: "status" }, listTitle(rows.length), " ", exportLinks(rows)), scroller);
  part.redraw = draw;
  return part;
}

function listTitle(n) {
  const said = [`${number(n)} ${n === 1 ? "latent" : "latents"}`];
  if (state.of !== "") said.push(` of ${name(Number(state.of))}`);
  if (state.where) said.push(`, ${state.where.split(",").map(conditionText).join(", ")}`);
  if (stringHits && state.q === `text:${stringHits.text}`) said.push(`, among the ${meta.firings_a_token} most active where “${visible(stringHits.text)}” ends (${number(stringHits.places)} places)`);
  return said.join("") + (n ? "" : ": nothing is like that; take a condition away.");
}

function shownColumns() {
  const d = state.of === "" ? null : Number(state.of);
  const about = d === null ? [columnOf("best")] : others(d).flatMap(e => [columnOf(`effect${e}`), columnOf(`cos${e}`)]).filter(c => columns[d][c.key] !== undefined);
  const sorting = columnOf(state.sort.replace(/^-/, ""));
  const shown = [columnOf("rate"), ...about.slice(0, 4)];
  return sorting && !shown.includes(sorting) ? [...shown, sorting] : shown;
}

function headRow(shown) {
  const head = column => {
    const now = state.sort.replace(/^-/, "") === column.key, falling = state.sort === `-${column.key}`;
    return el("div", { role: "columnheader", class: "figure", "aria-sort": now ? (falling ? "descending" : "ascending") : "none" },
      el("button", { title: `${column.help}. Sort by it.`, onclick: () => go({ sort: now ? (falling ? column.key : "") : `-${column.key}` }) }, column.title, now ? (falling ? " ▼" : " ▲") : ""));
  };
  return el("div", { class: "row head", role: "row" }, el("div", { role: "columnheader" }, "latent"),
    el("div", { role: "columnheader", class: "words" }, "active on"), el("div", { role: "columnheader", class: "words" }, "promotes"), shown.map(head));
}

function latentRow([d, i], k, shown) {
  const row = el("div", { class: "row", role: "row", "aria-rowindex": k + 2, "data-k": k, onclick: event => { if (!event.target.closest("a")) go({ view: "latent", d, i, e: "", j: "" }); } },
    el("div", { role: "cell" }, latentLink(d, i), noteOf(d, i) ? el("span", { title: "has a note" }, " ✎") : ""),
    el("div", { role: "cell", class: "words" }, isDead(d, i) ? el("span", { class: "note" }, "dead") : codesOf(tokensAt(d, i, "on"))),
    el("div", { role: "cell", class: "words" }, isDead(d, i) ? "" : codesOf(tokensAt(d, i, "up").slice(0, 3))),
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

// Which dictionary, which class to each smaller one, dead ones or not, and bounds on any column.
function listControls() {
  const parts = state.where.split(",").filter(Boolean);
  const without = test => parts.filter(part => !test(part));
  const set = list => go({ where: list.join(",") });
  const of = choice("Dictionary", [["", "all dictionaries"], ...every().map(d => [String(d), fullName(d)])], state.of, value => go({ of: value, where: parts.filter(p => !p.startsWith("class")).join(","), sort: /^-?(effect|cos|jac|corr)/.test(state.sort) ? "" : state.sort }));
  const alive = choice("Dead or alive", [["", "dead and alive"], ["alive", "alive"], ["dead", "dead"]], parts.find(p => p === "alive" || p === "dead") || "",
    value => set([...without(p => p === "alive" || p === "dead"), value].filter(Boolean)));
  const classes = state.of === "" ? [] : others(Number(state.of)).filter(e => columns[Number(state.of)][`class${e}`]).map(e =>
    choice(`Class to ${name(e)}`, [["", `any class to ${name(e)}`], ...["novel", "reconstruction"].map(c => [`class${e}=${c}`, `${c} to ${name(e)}`])], parts.find(p => p.startsWith(`class${e}=`)) || "",
      value => set([...without(p => p.startsWith(`class${e}=`)), value].filter(Boolean))));
  const chips = parts.filter(p => /[<>]/.test(p)).map(p => el("button", { class: "chip", "aria-label": `remove the condition ${conditionText(p)}`, onclick: () => set(without(q => q === p)) }, conditionText(p), " ×"));
  return el("div", { class: "controls" }, of, alive, classes, boundForm(parts, set), chips);
}

function choice(label, options, value, change) {
  const select = el("select", { "aria-label": label, onchange: event => change(event.target.value) }, options.map(([v, text]) => el("option", { value: v }, text)));
  select.value = value;
  return select;
}

function boundForm(parts, set) {
  const usable = allColumns().filter(c => c.about === undefined || state.of === "" || String(c.about) !== state.of);
  const column = el("select", { "aria-label": "Column" }, usable.map(c => el("option", { value: c.key }, c.title)));
  const sign = el("select", { "aria-label": "at least or at most" }, el("option", { value: ">=" }, "≥"), el("option", { value: "<=" }, "≤"));
  const limit = el("input", { type: "number", step: "any", "aria-label": "Bound", class: "bound" });
  const add = el("button", { onclick: () => { if (limit.value !== "") set([...parts, `${column.value}${sign.value}${Number(limit.value)}`]); } }, "add");
  limit.addEventListener("keydown", event => { if (event.key === "Enter") add.click(); });
  return el("details", { class: "more-conditions" }, el("summary", {}, "condition"), el("span", { class: "inline" }, column, sign, limit, add));
}
