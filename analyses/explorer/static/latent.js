// One latent: its contexts, what it writes, how often and how strongly it is active, and what is like it.

const AROUND = [10, 6]; // tokens before and after that are shown at first

async function latentView(d, i) {
  const record = await loadLatent(d, i);
  await loadLabels();
  return el("article", { class: "one" }, latentHead(d, i, record),
    el("div", { class: "columns" },
      el("div", { class: "contexts" }, await examplesPart(d, record)),
      el("aside", {}, figuresPart(d, i, record), histogramPart(record), tokensPart(record), twinsPart(d, i, record), ownPart(d, record), notePart(d, i))));
}

// The latent before and after in the list that one came from.
function neighboursInList(d, i) {
  let rows = found(), at = rows.findIndex(row => row[0] === d && row[1] === i);
  if (at < 0) { rows = search(String(d), "", "", ""); at = i; }
  return { before: rows[at - 1], after: rows[at + 1], at, n: rows.length };
}

function latentHead(d, i, record) {
  const { before, after, at, n } = neighboursInList(d, i);
  const step = (row, sign, label) => (row ? el("a", { href: addressOf({ d: row[0], i: row[1], e: "", j: "" }), "aria-label": label, "data-step": sign }, sign === 1 ? "next →" : "← previous") : null);
  const total = record.on.length ? Math.round(columns[d].rate[i] * meta.counted) : 0;
  return el("div", { class: "title" },
    el("h1", {}, badge(d), ` latent ${i}`), exportContexts([[d, i, record]]),
    el("nav", { "aria-label": "In the list" }, el("a", { href: addressOf({ view: "list", d: "", i: "", e: "", j: "" }) }, "list"), ` ${number(at + 1)} of ${number(n)} `, step(before, -1, "previous latent"), " ", step(after, 1, "next latent")),
    total ? el("p", { class: "words" }, "active on ", record.on.map(([t, count]) => [el("code", {}, tokenText(t)), el("span", { class: "note" }, `${percent(count / total)}  `)])) : el("p", {}, "Dead: it is active nowhere in this sample."),
    labelsOf(d, i).map(([, , source, text]) => el("p", { class: "label" }, el("span", { class: "note" }, `${visible(source)}: `), visible(text))));
}

function figuresPart(d, i, record) {
  const rows = [
    ["firing rate", `${percent(columns[d].rate[i])} of tokens`],
    ["largest activation", number(columns[d].max[i])],
    ["mean where active", number(columns[d].mean[i])],
    ["length of direction", number(columns[d].norm[i])],
    ...others(d).filter(e => columns[d][`effect${e}`]).map(e => [`added to ${name(e)}`, isDead(d, i) ? "dead" : effectText(d, i, e, record.errors[e])]),
  ];
  return el("dl", {}, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

function effectText(d, i, e, error) {
  const mse = meta.dictionaries[e].mse, change = columns[d][`effect${e}`][i] / mse;
  return [el("strong", {}, classOf(d, i, e)), `: ${change < 0 ? "lowers" : "raises"} its error by ${percent(Math.abs(change))} ± ${error === null ? "?" : number(100 * error / mse, 2)}`];
}

function histogramPart(record) {
  const total = record.hist.reduce((a, b) => a + b, 0), most = Math.max(...record.hist, 1);
  if (!total) return null;
  const n = record.hist.length, width = 240, height = 70;
  const bars = record.hist.map((count, k) => {
    const high = count ? Math.max(1.5, height * Math.log1p(count) / Math.log1p(most)) : 0;
    const title = svg("title", {});
    title.textContent = `${number(k * record.width)} to ${number((k + 1) * record.width)}: ${count} tokens`;
    return svg("rect", { x: k * width / n, y: height - high, width: width / n - 1, height: high }, title);
  });
  const said = `Histogram of ${total} activations from 0 to ${number(n * record.width)}, counts on a logarithmic scale; quantiles ${record.quantiles.map(q => number(q)).join(", ")}`;
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said, class: "hist", preserveAspectRatio: "none" }, ...bars),
    el("figcaption", {}, `${number(total)} activations from 0 to ${number(n * record.width)}, counts on a log scale`));
}

function tokensPart(record) {
  if (!record.up) return el("p", { class: "note" }, "No promoted tokens: directions at this site are none of the residual stream.");
  const list = (title, tokens) => el("div", {}, el("h3", {}, title), el("ol", { class: "tokens" }, tokens.map(([t, v]) => el("li", {}, el("code", {}, tokenText(t)), el("span", { class: "note" }, ` ${v > 0 ? "+" : ""}${number(v)}`)))));
  return el("div", { class: "two" }, list("promotes", record.up), list("suppresses", record.down));
}

function twinsPart(d, i, record) {
  const active = record.hist.reduce((a, b) => a + b, 0);
  return others(d).map(e => {
    const rows = (record.twins[e] || []).slice().sort((a, b) => b.cosine - a.cosine);
    return el("section", { class: "twins" }, el("h3", {}, "Like it in ", badge(e)),
      rows.length === 0 ? el("p", { class: "note" }, "none") : el("table", {},
        el("thead", {}, el("tr", {}, ["latent", "cosine", "correlation", "Jaccard", "same tokens"].map(t => el("th", { scope: "col" }, t)))),
        el("tbody", {}, rows.map(t => el("tr", {},
          el("td", {}, latentLink(e, t.latent, String(t.latent)), " ", codesOf(tokensAt(e, t.latent, "on").slice(0, 2))),
          [number(t.cosine), number(t.correlation), number(jaccard(active, t.active, t.both))].map(v => el("td", { class: "figure" }, v)),
          el("td", {}, pairLink(d, i, e, t.latent, "side by side")))))));
  });
}

const jaccard = (a, b, both) => (a + b - both > 0 ? both / (a + b - both) : NaN);

function ownPart(d, record) {
  return el("section", {}, el("h3", {}, "Nearest in its own dictionary"),
    el("ul", { class: "own" }, record.own.map(([j, cosine]) => el("li", {}, latentLink(d, j, String(j)), ` ${number(cosine)} `, codesOf(tokensAt(d, j, "on").slice(0, 3))))));
}

function groupTitle(group) {
  if (group === 0) return "Most active";
  if (group === meta.bands + 1) return "At random among the tokens it is active on";
  const low = Math.round(100 * (group - 1) / meta.bands), high = Math.round(100 * group / meta.bands);
  return `From ${low} % to ${high} % of its activations, by size`;
}

async function examplesPart(d, record) {
  const groups = new Map();
  record.examples.forEach(([group, sequence, position], k) => {
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push({ sequence, position, k });
  });
  const order = [0, ...Array.from({ length: meta.bands }, (_, b) => meta.bands - b), meta.bands + 1].filter(g => groups.has(g));
  const parts = [];
  for (const group of order) {
    const lines = await Promise.all(groups.get(group).map(example => exampleLine(example, [layerOf(d, record, example.k)])));
    parts.push(el("section", {}, el("h2", {}, groupTitle(group)), lines));
  }
  return parts;
}

const layerOf = (d, activations, k) => ({ d, values: byPosition(activations.acts[k], activations.unit), most: meta.steps * activations.unit });

// One context. `layers` are the latents whose activations are shown on it, each on a line of its own.
async function exampleLine({ sequence, position }, layers, lengthens = true) {
  const tokens = tokensOf(await loadSequence(sequence)), box = el("div", { class: "context" });
  let [before, after] = AROUND;
  const draw = () => {
    const from = Math.max(0, position - before), to = Math.min(tokens.length, position + 1 + after);
    const whole = from === 0 && to === tokens.length, far = before > meta.reach && tokens.length > meta.reach;
    const lines = layers.map(layer => el("p", { class: `line d${layer.d % 6}`, dir: "auto" }, piecesOf(tokens, from, to).map(piece => pieceSpan(piece, position, layer, sequence))));
    const more = el("button", { class: "more", "aria-label": whole ? "less of this text" : "more of this text", onclick: () => {
      [before, after] = whole ? AROUND : [before * 4, after * 4];
      draw();
      box.querySelector(".more").focus();
    } }, whole ? "less" : "more");
    const where = el("span", { class: "where" }, `sequence ${sequence}, token ${position}`, far ? `; activations are known up to ${meta.reach} tokens away` : "");
    box.replaceChildren(...lines, ...(lengthens ? [more, where] : []));
  };
  draw();
  return box;
}

function pieceSpan(piece, peak, layer, sequence) {
  const values = piece.positions.map(p => layer.values.get(p) || 0);
  const value = values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  const share = layer.most > 0 ? Math.min(1, Math.abs(value) / layer.most) : 0;
  const level = value === 0 ? 0 : Math.max(1, Math.round(share * 9));
  const classes = ["t", level ? `s${level}` : "", piece.positions.includes(peak) ? "peak" : "", piece.special ? "special" : "", value < 0 ? "negative" : ""];
  const said = value === 0 ? `token ${piece.positions.at(-1)}` : `${number(value, 4)} at token ${piece.positions.at(-1)}`;
  const span = el("span", { class: classes.filter(Boolean).join(" "), "data-value": said, tabindex: piece.positions.includes(peak) ? 0 : null, "data-place": sequence === undefined ? null : `${sequence} ${piece.positions.at(-1)}` }, visible(piece.text));
  return span;
}

// Every latent that is among the most active on one token of the sample, of each dictionary: opened from a context.
async function tokenView(sequence, position) {
  const file = Math.floor(sequence / meta.sequences_a_file), rest = sequence % meta.sequences_a_file;
  const line = await exampleLine({ sequence, position }, [{ d: 0, values: new Map(), most: 0 }]);
  const active = await Promise.all(every().map(async d => {
    const latents = await firingsOf(d, file), at = (rest * meta.context + position) * meta.firings_a_token;
    return [...latents.slice(at, at + meta.firings_a_token)].filter(i => i >= 0);
  }));
  const lists = every().map(d => {
    const here = active[d];
    return el("section", {}, el("h2", {}, badge(d)), here.length ? el("ul", { class: "own" }, here.map(i => el("li", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on"))))) : el("p", { class: "note" }, "none is active here"));
  });
  const rows = every().flatMap(d => active[d].map(i => [d, i]));
  return el("article", { class: "one" }, el("h1", {}, "Which latents are active here?"), exportLinks(rows, true), line,
    el("p", { class: "note" }, `The ${meta.firings_a_token} of each dictionary whose activation is largest beside their own largest one.`), el("div", { class: "side" }, lists));
}
