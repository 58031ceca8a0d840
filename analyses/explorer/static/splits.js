// Latents of A that are several latents of B, and twins that are active on different tokens; thresholds can be moved.

const pairsKept = new Map();

// The pairs of latents that were measured, of d and e: arrays a (of d), b (of e), cosine, correlation, both.
async function measuredPairs(d, e) {
  const key = `${d} ${e}`;
  if (!pairsKept.has(key)) {
    const stored = await loadOnce(`pairs-${Math.min(d, e)}-${Math.max(d, e)}`);
    const arrays = Object.fromEntries(Object.entries(stored).map(([k, v]) => [k, unpacked(v)]));
    pairsKept.set(key, d < e ? arrays : { ...arrays, a: arrays.b, b: arrays.a, absorbed: arrays.absorbed_back, absorbed_back: arrays.absorbed });
  }
  return pairsKept.get(key);
}

const threshold = usual => (state.t === "" || Number.isNaN(Number(state.t)) ? usual : Number(state.t));

function thresholdSlider(label, usual) {
  const value = threshold(usual), said = el("output", {}, number(value));
  const slider = el("input", { type: "range", min: 0, max: 1, step: 0.01, value, "aria-label": label,
    oninput: event => { said.textContent = number(Number(event.target.value)); }, onchange: event => go({ t: event.target.value }, { replace: true }) });
  return el("label", { class: "slider" }, `${label} `, slider, " ", said);
}

function pairChoice(d, e, view) {
  const options = every().flatMap(a => others(a).map(b => [`${a} ${b}`, `${name(a)} → ${name(b)}`]));
  return choice("Which two dictionaries", options, `${d} ${e}`, value => { const [a, b] = value.split(" "); go({ view, d: a, e: b, i: "", j: "" }); });
}

function twoDictionaries() {
  const d = meta.dictionaries[state.d] ? Number(state.d) : 0;
  const e = meta.dictionaries[state.e] && Number(state.e) !== d ? Number(state.e) : others(d)[0];
  return [d, e];
}

const needTwo = () => el("p", { class: "note" }, "There is one dictionary here; this view compares two.");

// For each latent of d its children in e: those whose nearest in d it is, by a cosine of at least t.
function childrenOf(d, e, t) {
  const nearest = columns[e][`near${d}`], cosine = columns[e][`cos${d}`], children = new Map();
  for (let j = 0; j < nearest.length; j++) {
    if (nearest[j] < 0 || !(cosine[j] >= t) || isDead(e, j)) continue;
    if (!children.has(nearest[j])) children.set(nearest[j], []);
    children.get(nearest[j]).push(j);
  }
  for (const list of children.values()) list.sort((a, b) => cosine[b] - cosine[a]);
  return children;
}

async function splitsView() {
  const [d, e] = twoDictionaries();
  if (e === undefined) return needTwo();
  const t = threshold(0.6), pairs = await measuredPairs(d, e), children = childrenOf(d, e, t);
  const split = [...children].filter(([, list]) => list.length > 1).sort((a, b) => b[1].length - a[1].length || a[0] - b[0]);
  const components = componentsOf(pairs, d, e, t);
  const alone = components.filter(c => c.b.length === 0).length, fresh = components.filter(c => c.a.length === 0).length;
  return el("article", {}, el("h1", {}, "Latents of ", badge(d), " that split in ", badge(e)),
    el("div", { class: "controls" }, pairChoice(d, e, "splits"), thresholdSlider("cosine of at least", 0.6), exportsPart("splits.csv", () => [["dictionary", "latent", "other dictionary", "other latent", "cosine"], ...split.flatMap(([i, list]) => list.map(j => [meta.dictionaries[d].name, i, meta.dictionaries[e].name, j, columns[e][`cos${d}`][j]]))], () => splitsPython(d, e, t))),
    el("p", {}, `${number(split.length)} latents of ${name(d)} are the nearest of two or more latents of ${name(e)}, by a cosine of at least ${number(t)}.`),
    el("p", { class: "note" }, `Linked at this cosine among measured pairs (each latent's three nearest, either way): ${number(components.filter(c => c.a.length && c.b.length).length)} groups of latents of both, ${number(alone)} alive latents of ${name(d)} alone, ${number(fresh)} of ${name(e)} alone; the largest group has ${number(Math.max(0, ...components.map(c => c.a.length + c.b.length)))} latents.`),
    growing(split, ([i, list]) => el("section", { class: "split" },
      el("div", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on"))),
      el("ul", {}, list.map(j => el("li", {}, latentLink(e, j), ` cosine ${number(columns[e][`cos${d}`][j])} `, codesOf(tokensAt(e, j, "on")), " ", pairLink(d, i, e, j, "side by side")))))));
}

function splitsPython(d, e, t) {
  const nearest = quoted(`nearest in ${meta.dictionaries[d].name}`), cosine = quoted(`cosine with ${meta.dictionaries[d].name}`);
  return [...explorerLines("latents"), `frame = frame[(frame["dictionary"] == ${fullNameOf(e)}) & (frame["firing rate"] > 0) & (frame[${cosine}] >= ${t})]`,
    `frame = frame[frame.duplicated(${nearest}, keep=False)].sort_values([${nearest}, ${cosine}], ascending=[True, False])`];
}

// Connected components of alive latents under cosines of at least t (union-find), each {a: [...], b: [...]}.
function componentsOf(pairs, d, e, t) {
  const n = meta.dictionaries[d].latents, parent = Int32Array.from({ length: n + meta.dictionaries[e].latents }, (_, k) => k);
  const root = k => { while (parent[k] !== k) k = parent[k] = parent[parent[k]]; return k; };
  for (let k = 0; k < pairs.a.length; k++) {
    if (pairs.cosine[k] >= t && !isDead(d, pairs.a[k]) && !isDead(e, pairs.b[k])) parent[root(pairs.a[k])] = root(n + pairs.b[k]);
  }
  const groups = new Map();
  for (let k = 0; k < parent.length; k++) {
    if (k < n ? isDead(d, k) : isDead(e, k - n)) continue;
    const r = root(k);
    if (!groups.has(r)) groups.set(r, { a: [], b: [] });
    (k < n ? groups.get(r).a : groups.get(r).b).push(k < n ? k : k - n);
  }
  return [...groups.values()];
}

async function triggersView() {
  const [d, e] = twoDictionaries();
  if (e === undefined) return needTwo();
  const t = threshold(0.7), pairs = await measuredPairs(d, e), rows = [];
  const active = (a, i) => Math.round(columns[a].rate[i] * meta.counted);
  for (let k = 0; k < pairs.a.length; k++) {
    if (!(pairs.cosine[k] >= t)) continue;
    const value = jaccard(active(d, pairs.a[k]), active(e, pairs.b[k]), pairs.both[k]);
    if (!Number.isNaN(value)) rows.push([pairs.a[k], pairs.b[k], pairs.cosine[k], value, pairs.correlation[k], pairs.both[k]]);
  }
  rows.sort((x, y) => x[3] - y[3]);
  const head = ["", "", "cosine", "Jaccard", "correlation", "first active where second is", "second active where first is", ""];
  return el("article", {}, el("h1", {}, "Twins of ", badge(d), " and ", badge(e), " with different triggers"),
    el("div", { class: "controls" }, pairChoice(d, e, "triggers"), thresholdSlider("cosine of at least", 0.7), exportsPart("twins.csv", () => pairTable(d, e, rows), () => [...explorerLines(`pairs(${fullNameOf(d)}, ${fullNameOf(e)})`), `frame = frame[(frame["cosine"] >= ${t}) & frame["Jaccard"].notna()].sort_values("Jaccard", kind="stable")`])),
    el("p", {}, `${number(rows.length)} pairs have a cosine of at least ${number(t)}; those that share the fewest tokens come first.`),
    el("div", { class: "wide-table" }, el("table", {}, el("thead", {}, el("tr", {}, head.map(h => el("th", { scope: "col" }, h)))),
      growing(rows, ([i, j, cosine, jac, correlation, both]) => el("tr", {},
        el("td", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on").slice(0, 3))), el("td", {}, latentLink(e, j), " ", codesOf(tokensAt(e, j, "on").slice(0, 3))),
        [number(cosine), number(jac), number(correlation), percent(both / active(e, j)), percent(both / active(d, i))].map(v => el("td", { class: "figure" }, v)),
        el("td", {}, pairLink(d, i, e, j, "side by side"))), "tbody"))));
}

const pairTable = (d, e, rows) => [["dictionary", "latent", "other dictionary", "other latent", "cosine", "Jaccard", "correlation", "both"], ...rows.map(([i, j, ...values]) => [meta.dictionaries[d].name, i, meta.dictionaries[e].name, j, ...values])];

// A long list, of which more is drawn when its end comes near.
function growing(items, draw, tag = "div") {
  const box = el(tag, {}), STEP = 60;
  let shown = 0;
  const more = () => {
    box.append(...items.slice(shown, shown + STEP).map(draw));
    shown += STEP;
  };
  more();
  const near = () => { if (box.isConnected && shown < items.length && box.getBoundingClientRect().bottom < innerHeight + 600) more(); };
  addEventListener("scroll", near, { passive: true });
  return box;
}
