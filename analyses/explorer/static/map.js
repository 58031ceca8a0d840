// All directions in two dimensions, linked with the list: what the list holds is drawn over what it does not.

const SHAPED = 30000; // points up to which each dictionary has a shape of its own
const HIT = 14; // pixels within which a point is taken

async function mapView() {
  const stored = await load("map"), positions = stored.positions.map(unpacked);
  const canvas = el("canvas", { class: "map", tabindex: 0, role: "img", "aria-label": `Map of ${number(every().reduce((n, d) => n + countAlive(d), 0))} decoder directions; the list has the same latents` });
  const said = el("div", { class: "point", role: "status" }, "Point at a dot. Drag to move, wheel or + and − to zoom, shift and drag to list a region.");
  const part = el("article", { class: "mapping" }, el("h1", {}, "Map of decoder directions"), listControls(),
    el("div", { class: "controls" }, exportLinks(found()), el("button", { class: "visible-points" }, "list what is in view")),
    el("p", { class: "note" }, mapNote(), " ", every().map(d => [badge(d), " "])), el("div", { class: "plane" }, canvas), said);
  part.redraw = () => startMap(canvas, positions, said, part.querySelector(".visible-points"));
  return part;
}

function mapNote() {
  if (meta.map.kind !== "UMAP") return "The two main axes of the unit directions (UMAP was not used).";
  const all = every().reduce((n, d) => n + countAlive(d), 0);
  return `UMAP with cosine distance${meta.map.landmarks < all ? ` of ${number(meta.map.landmarks)} latents; the others stand between the nearest of these` : ""}. Near is near; far apart says little.`;
}

function startMap(canvas, positions, said, inView) {
  const points = mapPoints(positions), box = { x: 0, y: 0, scale: 1 };
  let wide = 0, high = 0, drag = null, at = null, region = null;
  const context = canvas.getContext("2d");
  const place = (x, y) => [(x * 0.94 + 0.03 - box.x) * box.scale * wide, (y * 0.94 + 0.03 - box.y) * box.scale * high];
  const draw = () => {
    const ratio = devicePixelRatio || 1;
    wide = canvas.clientWidth; high = canvas.clientHeight;
    canvas.width = wide * ratio; canvas.height = high * ratio;
    context.scale(ratio, ratio);
    const style = getComputedStyle(canvas), size = Math.max(1.5, Math.min(4, 260 / Math.sqrt(points.n)) * Math.sqrt(box.scale));
    for (const listed of [false, true]) {
      context.globalAlpha = listed ? 0.85 : 0.15;
      for (const d of every()) {
        context.fillStyle = `hsl(${style.getPropertyValue(`--h${d % 6}`)})`;
        for (let k = points.start[d]; k < points.start[d + 1]; k++) {
          if (Boolean(points.listed[k]) !== listed) continue;
          const [x, y] = place(points.x[k], points.y[k]);
          if (!(x > -5 && y > -5 && x < wide + 5 && y < high + 5)) continue;
          if (points.n > SHAPED) context.fillRect(x - size / 2, y - size / 2, size, size);
          else mark(context, d, x, y, size);
        }
      }
    }
    context.globalAlpha = 1;
    if (at !== null) { const [x, y] = place(points.x[at], points.y[at]); context.strokeStyle = style.color; context.lineWidth = 2; context.strokeRect(x - 6, y - 6, 12, 12); }
    if (region) { context.strokeStyle = style.color; context.strokeRect(region[0], region[1], region[2] - region[0], region[3] - region[1]); }
  };
  const nearest = (x, y) => {
    let best = null, least = HIT * HIT;
    for (let k = 0; k < points.n; k++) {
      if (!points.listed[k]) continue;
      const [px, py] = place(points.x[k], points.y[k]), far = (px - x) ** 2 + (py - y) ** 2;
      if (far < least) { least = far; best = k; }
    }
    return best;
  };
  const say = k => {
    at = k;
    if (k === null) return;
    const [d, i] = [points.d[k], points.i[k]];
    said.replaceChildren(latentLink(d, i), " ", codesOf(tokensAt(d, i, "on")), ` active on ${percent(columns[d].rate[i])} of tokens`, ...others(d).map(e => `, cosine ${number(columns[d][`cos${e}`][i])} with ${name(e)}`));
  };
  const zoom = (factor, x, y) => {
    const scale = Math.min(200, Math.max(1, box.scale * factor));
    box.x += x / wide * (1 / box.scale - 1 / scale); box.y += y / high * (1 / box.scale - 1 / scale);
    box.scale = scale;
    draw();
  };
  const spot = event => { const r = canvas.getBoundingClientRect(); return [event.clientX - r.left, event.clientY - r.top]; };
  canvas.onpointerdown = event => { drag = { from: spot(event), moved: false, region: event.shiftKey }; canvas.setPointerCapture(event.pointerId); };
  canvas.onpointermove = event => {
    const [x, y] = spot(event);
    if (drag && (drag.moved || Math.hypot(x - drag.from[0], y - drag.from[1]) > 4)) {
      drag.moved = true;
      if (drag.region) region = [...drag.from, x, y];
      else { box.x -= (x - drag.from[0]) / wide / box.scale; box.y -= (y - drag.from[1]) / high / box.scale; drag.from = [x, y]; }
    } else if (!drag) { const k = nearest(x, y); if (k === null || k === at) return; say(k); }
    draw();
  };
  canvas.onpointerup = event => {
    const done = drag;
    drag = null;
    if (done && done.moved && region) { listRegion(points, place, region, said); region = null; draw(); return; }
    const k = nearest(...spot(event));
    if (done && !done.moved && k !== null) go({ view: "latent", d: points.d[k], i: points.i[k], e: "", j: "" });
  };
  inView.onclick = () => { listRegion(points, place, [0, 0, wide, high], said); said.scrollIntoView({ block: "nearest" }); };
  canvas.onwheel = event => { event.preventDefault(); zoom(Math.exp(-event.deltaY / 400), ...spot(event)); };
  canvas.onkeydown = event => {
    const move = { ArrowLeft: [-0.1, 0], ArrowRight: [0.1, 0], ArrowUp: [0, -0.1], ArrowDown: [0, 0.1] }[event.key];
    if (move) { event.preventDefault(); box.x += move[0] / box.scale; box.y += move[1] / box.scale; draw(); }
    if (event.key === "+" || event.key === "-") zoom(event.key === "+" ? 1.5 : 1 / 1.5, wide / 2, high / 2);
  };
  new ResizeObserver(draw).observe(canvas); // which also draws it first
}

// A dot for each dictionary of a shape of its own, so that colour is not needed to tell them apart.
function mark(context, d, x, y, size) {
  context.beginPath();
  if (d % 3 === 0) context.arc(x, y, size, 0, 7);
  else if (d % 3 === 1) context.rect(x - size * 0.9, y - size * 0.9, size * 1.8, size * 1.8);
  else { context.moveTo(x, y - size * 1.3); context.lineTo(x + size * 1.2, y + size); context.lineTo(x - size * 1.2, y + size); }
  context.fill();
}

function mapPoints(positions) {
  const listed = every().map(d => new Uint8Array(meta.dictionaries[d].latents)), most = every().reduce((n, d) => n + meta.dictionaries[d].latents, 0);
  for (const [d, i] of found()) listed[d][i] = 1;
  const points = { x: new Float32Array(most), y: new Float32Array(most), d: new Uint8Array(most), i: new Int32Array(most), listed: new Uint8Array(most), start: [] };
  let n = 0;
  for (const d of every()) {
    points.start.push(n);
    for (let i = 0; i < meta.dictionaries[d].latents; i++) {
      if (Number.isNaN(positions[d][2 * i])) continue;
      points.x[n] = positions[d][2 * i]; points.y[n] = positions[d][2 * i + 1]; points.d[n] = d; points.i[n] = i; points.listed[n++] = listed[d][i];
    }
  }
  points.n = n;
  points.start.push(n);
  for (const axis of ["x", "y"]) {
    let low = Infinity, high = -Infinity;
    for (let k = 0; k < n; k++) { low = Math.min(low, points[axis][k]); high = Math.max(high, points[axis][k]); }
    for (let k = 0; k < n; k++) points[axis][k] = high > low ? (points[axis][k] - low) / (high - low) : 0.5;
  }
  return points;
}

function listRegion(points, place, [x1, y1, x2, y2], said) {
  const rows = [];
  for (let k = 0; k < points.n; k++) {
    const [x, y] = place(points.x[k], points.y[k]);
    if (points.listed[k] && x >= Math.min(x1, x2) && x <= Math.max(x1, x2) && y >= Math.min(y1, y2) && y <= Math.max(y1, y2)) rows.push([points.d[k], points.i[k]]);
  }
  said.replaceChildren(el("p", {}, `${number(rows.length)} latents in this region. `, exportLinks(rows, true)),
    el("div", { class: "region" }, growing(rows, ([d, i]) => el("div", {}, latentLink(d, i), " ", codesOf(tokensAt(d, i, "on")), ` ${percent(columns[d].rate[i])}`))));
}
