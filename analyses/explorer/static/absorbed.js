// Latents of A whose occasions other latents of B have taken over: both are active, and the nearest of B to it is silent.

async function absorbedView() {
  const [d, e] = twoDictionaries();
  if (e === undefined) return needTwo();
  const t = threshold(0.8), pairs = await measuredPairs(d, e), nearest = columns[d][`near${e}`], rows = [];
  const active = (a, i) => Math.round(columns[a].rate[i] * meta.counted);
  for (let k = 0; k < pairs.a.length; k++) {
    const i = pairs.a[k], j = pairs.b[k];
    if (pairs.absorbed[k] > 0 && pairs.both[k] / active(e, j) >= t) rows.push([i, j, pairs.absorbed[k] / active(d, i), pairs.both[k] / active(e, j), pairs.cosine[k], columns[d][`cos${e}`][i]]);
  }
  rows.sort((x, y) => y[2] - x[2]);
  const table = () => [["dictionary", "latent", "nearest", "other dictionary", "absorbing latent", "share absorbed", "share within", "cosine"], ...rows.map(([i, j, share, within, cosine]) => [meta.dictionaries[d].name, i, nearest[i], meta.dictionaries[e].name, j, share, within, cosine])];
  const python = () => [...explorerLines(`pairs(${fullNameOf(d)}, ${fullNameOf(e)})`), `frame = frame[(frame["absorbed"] > 0) & (frame["both"] >= ${t} * frame["other active"])]`,
    'frame = frame.assign(share=frame["absorbed"] / frame["active"]).sort_values("share", ascending=False, kind="stable")'];
  return el("article", {}, el("h1", {}, "Latents of ", badge(d), " absorbed in ", badge(e)),
    el("div", { class: "controls" }, pairChoice(d, e, "absorbed"), thresholdSlider("within it: at least", 0.8), exportsPart("absorbed.csv", table, python)),
    el("p", {}, `${number(rows.length)} latents of ${name(e)} are active almost only where one of ${name(d)} is, and on tokens at which that one's nearest in ${name(e)} is silent. Largest share first.`),
    el("p", { class: "note" }, "Within it: share of the absorbing latent's tokens at which the absorbed one is active. Among measured pairs: each latent's three nearest and its most correlated one, either way."),
    growing(rows, ([i, j, share, within, cosine, near]) => el("section", { class: "split" },
      el("div", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on"))),
      el("ul", {}, el("li", {}, el("strong", {}, percent(share)), " of its tokens: ", latentLink(e, nearest[i]), ` (cosine ${number(near)}) is silent and `, latentLink(e, j), " ", codesOf(tokensAt(e, j, "on").slice(0, 3)),
        ` is active; ${percent(within)} of its tokens are within, cosine ${number(cosine)} `, pairLink(d, i, e, j, "side by side"))))));
}
