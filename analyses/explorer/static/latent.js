// One latent: its contexts, what it writes, how often and how strongly it is active, and what is like it.

const AROUND = [10, 6]; // tokens before and after that are shown at first

async function latentView(d, i) {
  const record = await loadLatent(d, i);
  const twin = latentAt(state.e, state.j);
  const shownTwin = twin && (record.twins[twin.d] || []).find(t => t.latent === twin.i) || null;
  const examples = await examplesPart(d, record, twin, shownTwin);
  return el("article", { class: "one" },
    latentHead(d, i, record),
    el("div", { class: "columns" },
      el("div", { class: "contexts" }, examples),
      el("aside", {}, figuresPart(d, i, record), histogramPart(record), tokensPart(record), twinsPart(d, i, record), ownPart(d, record))));
}

function latentHead(d, i, record) {
  const last = meta.dictionaries[d].latents - 1;
  return el("div", { class: "title" },
    el("h1", {}, el("span", { class: `badge d${d % 6}` }, name(d)), ` latent ${i}`),
    el("nav", { "aria-label": "Neighbouring numbers" },
      el("a", { href: addressOf({ i: Math.max(0, i - 1), e: "", j: "" }), "aria-label": "previous latent" }, "←"),
      el("a", { href: addressOf({ i: Math.min(last, i + 1), e: "", j: "" }), "aria-label": "next latent" }, "→")),
    record.on.length ? el("p", { class: "words" }, "active on ", record.on.map(([t, n]) => [el("code", {}, tokenText(t)), ` ${n} `])) : el("p", {}, "Dead: it is active nowhere in this sample."));
}

function figuresPart(d, i, record) {
  const rows = [
    ["active on", `${percent(columns[d].rate[i])} of tokens`],
    ["largest activation", number(columns[d].max[i])],
    ["mean where active", number(columns[d].mean[i])],
    ["length of direction", number(columns[d].norm[i])],
    ...others(d).filter(e => columns[d][`effect${e}`]).map(e => [
      `added to ${name(e)}`,
      isDead(d, i) ? "dead" : `${classOf(d, i, e)}: change in MSE ${number(columns[d][`effect${e}`][i])} ± ${number(columns[d][`error${e}`][i], 2)}`,
    ]),
  ];
  return el("dl", {}, rows.map(([term, value]) => [el("dt", {}, term), el("dd", {}, value)]));
}

function histogramPart(record) {
  const total = record.hist.reduce((a, b) => a + b, 0), most = Math.max(...record.hist, 1);
  if (!total) return null;
  const n = record.hist.length, width = 240, height = 70;
  const bars = record.hist.map((count, k) => {
    const high = count ? Math.max(1.5, height * Math.log1p(count) / Math.log1p(most)) : 0;
    return svg("rect", { x: k * width / n, y: height - high, width: width / n - 1, height: high },
      svgTitle(`${number(k * record.width)} to ${number((k + 1) * record.width)}: ${count} tokens`));
  });
  const said = `Histogram of ${total} activations from 0 to ${number(n * record.width)}, counts on a logarithmic scale; quantiles ${record.quantiles.map(q => number(q)).join(", ")}`;
  return el("figure", {}, svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": said, class: "hist" }, ...bars),
    el("figcaption", {}, `${number(total)} activations, 0 to ${number(n * record.width)}; counts on a log scale`));
}

function svgTitle(text) {
  const title = svg("title", {});
  title.textContent = text;
  return title;
}

function tokensPart(record) {
  if (!record.up) return el("p", { class: "note" }, "No promoted tokens: directions at this site are none of the residual stream.");
  const list = (title, tokens) => el("div", {}, el("h3", {}, title), el("ol", { class: "tokens" }, tokens.map(([t, v]) => el("li", {}, el("code", {}, tokenText(t)), ` ${v > 0 ? "+" : ""}${number(v)}`))));
  return el("div", { class: "two" }, list("promotes", record.up), list("suppresses", record.down));
}

function twinsPart(d, i, record) {
  return others(d).map(e => {
    const rows = (record.twins[e] || []).slice().sort((a, b) => b.cosine - a.cosine);
    const active = record.hist.reduce((a, b) => a + b, 0);
    return el("section", { class: "twins" },
      el("h3", {}, "Nearest in ", el("span", { class: `badge d${e % 6}` }, name(e))),
      rows.length === 0 ? el("p", { class: "note" }, "none is active") : el("table", {},
        el("thead", {}, el("tr", {}, ["latent", "cosine", "correlation", "Jaccard", ""].map(t => el("th", { scope: "col" }, t)))),
        el("tbody", {}, rows.map(t => el("tr", { class: state.e === String(e) && state.j === String(t.latent) ? "chosen" : null },
          el("td", {}, latentLink(e, t.latent, String(t.latent)), " ", tokensAt(e, t.latent, "on").slice(0, 2).map(w => el("code", {}, tokenText(w)))),
          el("td", { class: "figure" }, number(t.cosine)), el("td", { class: "figure" }, number(t.correlation)),
          el("td", { class: "figure" }, number(jaccard(active, t.active, t.both))),
          el("td", {}, pairLink(d, i, e, t.latent, "side by side")))))));
  });
}

const jaccard = (a, b, both) => (a + b - both > 0 ? both / (a + b - both) : NaN);

function ownPart(d, record) {
  return el("section", {}, el("h3", {}, "Nearest in its own dictionary"),
    el("ul", { class: "own" }, record.own.map(([j, cosine]) => el("li", {}, latentLink(d, j, String(j)), ` ${number(cosine)} `, tokensAt(d, j, "on").slice(0, 3).map(t => el("code", {}, tokenText(t)))))));
}

function groupTitle(group) {
  if (group === 0) return "Most active";
  if (group === meta.bands + 1) return "At random";
  const low = Math.round(100 * (group - 1) / meta.bands), high = Math.round(100 * group / meta.bands);
  return `${low} to ${high} % of its activations`;
}

async function examplesPart(d, record, twin, shownTwin) {
  const groups = new Map();
  record.examples.forEach(([group, sequence, position], k) => {
    if (!groups.has(group)) groups.set(group, []);
    groups.get(group).push({ sequence, position, k });
  });
  const order = [0, ...Array.from({ length: meta.bands }, (_, b) => meta.bands - b), meta.bands + 1].filter(g => groups.has(g));
  const parts = [];
  for (const group of order) {
    const lines = await Promise.all(groups.get(group).map(example => exampleLine(example, [
      { d, values: byPosition(record.acts[example.k], record.unit), most: 10000 * record.unit },
    ])));
    parts.push(el("section", {}, el("h3", {}, groupTitle(group)), lines));
  }
  return parts;
}

// One context. `layers` are the latents whose activations are shown on it: the first as shading, each on a line.
async function exampleLine({ sequence, position }, layers) {
  const tokens = tokensOf(await loadSequence(sequence));
  let [before, after] = AROUND;
  const box = el("div", { class: "context" });
  const draw = () => {
    const from = Math.max(0, position - before), to = Math.min(tokens.length, position + 1 + after);
    const whole = from === 0 && to === tokens.length;
    const lines = layers.map(layer => el("p", { class: `line d${layer.d % 6}`, dir: "auto" }, piecesOf(tokens, from, to).map(piece => pieceSpan(piece, position, layer))));
    const more = el("button", { class: "more", "aria-label": whole ? "less of this text" : "more of this text", onclick: () => {
      [before, after] = whole ? AROUND : [before * 4, after * 4];
      draw();
      box.querySelector(".more").focus();
    } }, whole ? "less" : "more");
    box.replaceChildren(...lines, more, el("span", { class: "where" }, `sequence ${sequence}, token ${position}`));
  };
  draw();
  return box;
}

function pieceSpan(piece, peak, layer) {
  const values = piece.positions.map(p => layer.values.get(p) || 0);
  const value = values.reduce((a, b) => (Math.abs(b) > Math.abs(a) ? b : a), 0);
  const share = layer.most > 0 ? Math.min(1, Math.abs(value) / layer.most) : 0;
  const level = value === 0 ? 0 : Math.max(1, Math.round(share * 9));
  const classes = [`t`, level ? `s${level}` : "", piece.positions.includes(peak) ? "peak" : "", piece.special ? "special" : "", value < 0 ? "negative" : ""];
  const span = el("span", { class: classes.filter(Boolean).join(" "), "data-value": value === 0 ? null : `${number(value, 4)}` }, visible(piece.text));
  if (piece.text.includes("\n")) span.append(el("wbr", {}));
  return span;
}
