// From size to size: a latent, what it becomes in the next larger dictionary, and so on; dictionaries by their size.

const LANE_MOST = 24; // latents of a lane that are drawn

const bySize = () => every().sort((a, b) => meta.dictionaries[a].latents - meta.dictionaries[b].latents || a - b);

function lanesView() {
  if (meta.dictionaries.length < 2) return needTwo();
  const order = bySize(), t = threshold(0.5);
  const one = latentAt(state.d, state.i) || firstWithChildren(order, t);
  const lanes = lanesOf(one, order, t), links = [];
  const columnsOfLanes = order.map((d, at) => el("section", { class: "lane" }, el("h2", {}, badge(d), at === 0 ? "" : ` ${number(lanes[at].length)}`),
    lanes[at].slice(0, LANE_MOST).map(node => {
      if (node.from !== null) links.push([at, node]);
      return el("div", { class: `node d${d % 6}${d === one.d && node.i === one.i ? " chosen" : ""}`, id: `node-${d}-${node.i}` },
        el("a", { class: `latent d${d % 6}`, href: addressOf({ view: "lanes", d, i: node.i }) }, String(node.i)), " ", codesOf(tokensAt(d, node.i, "on").slice(0, 3)),
        node.cosine === null ? null : el("span", { class: "note" }, ` ${number(node.cosine)}`), " ", latentLink(d, node.i, "see"));
    }), lanes[at].length > LANE_MOST ? el("p", { class: "note" }, `and ${number(lanes[at].length - LANE_MOST)} more`) : null));
  const canvas = svg("svg", { class: "links", "aria-hidden": "true" });
  const board = el("div", { class: "lanes" }, canvas, columnsOfLanes);
  const part = el("article", {}, el("h1", {}, "From size to size: ", latentLink(one.d, one.i)),
    el("div", { class: "controls" }, thresholdSlider("cosine of at least", 0.5), choice("Dictionary", every().map(d => [String(d), fullName(d)]), String(one.d), value => go({ d: value, i: "0" })), laneNumber(one), exportLinks(order.flatMap((d, at) => lanes[at].map(node => [d, node.i])), true)),
    el("p", { class: "note" }, "A line joins a latent with its nearest one in the next smaller dictionary. To the right what it becomes, to the left what it came from; the number is the cosine."), board);
  part.redraw = () => drawLinks(board, canvas, order, links);
  return part;
}

function laneNumber(one) {
  return el("input", { type: "number", min: 0, max: meta.dictionaries[one.d].latents - 1, value: one.i, "aria-label": "Latent", onchange: event => go({ d: one.d, i: event.target.value }) });
}

function firstWithChildren(order, t) {
  const children = childrenOf(order[0], order[1], t);
  const most = [...children].sort((a, b) => b[1].length - a[1].length)[0];
  return { d: order[0], i: most ? most[0] : 0 };
}

// By lane the latents {i, from, cosine}: ancestors by their nearest, descendants as those whose nearest is there.
function lanesOf(one, order, t) {
  const at = order.indexOf(one.d), lanes = order.map(() => []);
  lanes[at] = [{ i: one.i, from: null, cosine: null }];
  for (let k = at; k > 0; k--) {
    const [here, before] = [order[k], order[k - 1]], node = lanes[k][0];
    if (!node) break;
    const i = columns[here][`near${before}`][node.i], cosine = columns[here][`cos${before}`][node.i];
    if (i < 0 || !(cosine >= t)) break;
    node.from = i;
    node.cosine = cosine;
    lanes[k - 1] = [{ i, from: null, cosine: null }];
  }
  for (let k = at + 1; k < order.length; k++) {
    const [before, here] = [order[k - 1], order[k]], children = childrenOf(before, here, t);
    lanes[k] = lanes[k - 1].flatMap(node => (children.get(node.i) || []).map(i => ({ i, from: node.i, cosine: columns[here][`cos${before}`][i] })));
  }
  return lanes;
}

function drawLinks(board, canvas, order, links) {
  const frame = board.getBoundingClientRect();
  canvas.setAttribute("viewBox", `0 0 ${board.scrollWidth} ${board.scrollHeight}`);
  canvas.style.width = `${board.scrollWidth}px`;
  canvas.style.height = `${board.scrollHeight}px`;
  const lines = links.map(([at, node]) => {
    const a = document.getElementById(`node-${order[at - 1]}-${node.from}`), b = document.getElementById(`node-${order[at]}-${node.i}`);
    if (!a || !b) return null;
    const [p, q] = [a.getBoundingClientRect(), b.getBoundingClientRect()];
    const x1 = p.right - frame.left + board.scrollLeft, y1 = p.top + p.height / 2 - frame.top, x2 = q.left - frame.left + board.scrollLeft, y2 = q.top + q.height / 2 - frame.top;
    return svg("path", { d: `M${x1},${y1} C${(x1 + x2) / 2},${y1} ${(x1 + x2) / 2},${y2} ${x2},${y2}`, "stroke-width": 0.5 + 3 * node.cosine });
  });
  canvas.replaceChildren(...lines.filter(Boolean));
}
