// Puts a canvas in the place of each scatter's picture: point at a point to see what it is, click to keep it.
// Text from the data reaches the page through textContent alone.
"use strict";
(function () {
  const RADIUS = 3, NEAR = 12, HEIGHT = 0.66, MARGIN = 18, AXIS = 44; // in CSS pixels; AXIS: for ticks and labels
  const SPARE = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999", "#000000"];
  const corners = (n, turn) => Array.from({ length: n }, (_, i) => (i / n + turn) * 2 * Math.PI)
    .map(a => [Math.cos(a) * 1.3, Math.sin(a) * 1.3]);
  const SHAPES = [null, corners(4, 1 / 8), corners(3, -1 / 4), corners(4, 0), corners(3, 1 / 4), corners(5, -1 / 4), corners(6, 0), corners(8, 0)];

  function make(parent, tag, name, text) {
    const element = document.createElement(tag);
    if (name) element.className = name;
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  function range(values) {
    let low = Infinity, high = -Infinity;
    for (const v of values) if (v !== null) { low = Math.min(low, v); high = Math.max(high, v); }
    return high > low ? [low, high] : low === high ? [low - 1, high + 1] : [0, 1];
  }

  function scatter(figure) {
    const data = JSON.parse(figure.querySelector("script").textContent);
    const n = data.x.length, shown = data.groups.map(() => true);
    const colours = data.groups.map((_, g) => data.colours[g] || SPARE[g % SPARE.length]);
    const [left, right] = range(data.x), [bottom, top] = range(data.y);
    const px = new Float32Array(n), py = new Float32Array(n);
    const axis = data.xlabel || data.ylabel ? AXIS : 0;
    let zoom = 1, moveX = 0, moveY = 0, hover = -1, pinned = -1, width = 0, height = 0, ratio = 1, drag = null;

    const bar = document.createElement("div"); bar.className = "bar";
    const plane = document.createElement("div"); plane.className = "plane";
    const point = document.createElement("div"); point.className = "point"; point.setAttribute("aria-live", "polite");
    const image = figure.querySelector("img");
    image.replaceWith(bar, plane, point);
    const canvas = make(plane, "canvas"), tip = make(plane, "div", "tip");
    canvas.setAttribute("role", "img"); canvas.setAttribute("aria-label", image.alt);
    tip.hidden = true;
    const base = document.createElement("canvas"); // points are drawn here once, and copied at each movement
    point.textContent = "Point at a point to see what it is; click to keep it, or go from point to point with the arrow keys. Drag to move the plot.";

    data.groups.forEach((name, g) => {
      const button = make(bar, "button");
      button.type = "button"; button.setAttribute("aria-pressed", "true");
      const sign = make(button, "canvas"); sign.width = sign.height = 12;
      symbol(sign.getContext("2d"), g, 6, 6, 4);
      button.appendChild(document.createTextNode(" " + name));
      button.onclick = () => { shown[g] = !shown[g]; button.setAttribute("aria-pressed", String(shown[g])); hover = -1; redraw(); };
    });
    [["+", 1.6], ["−", 1 / 1.6], ["whole plot", 0]].forEach(([name, factor]) => {
      const button = make(bar, "button", "", name);
      button.type = "button";
      button.onclick = () => {
        if (factor) { zoom *= factor; moveX *= factor; moveY *= factor; } else { zoom = 1; moveX = moveY = 0; }
        redraw();
      };
    });

    function symbol(context, g, x, y, r) {
      context.fillStyle = colours[g];
      context.beginPath();
      const shape = SHAPES[g % SHAPES.length];
      if (shape) shape.forEach(([a, b], i) => i ? context.lineTo(x + a * r, y + b * r) : context.moveTo(x + a * r, y + b * r));
      else context.arc(x, y, r, 0, 2 * Math.PI);
      context.fill();
    }

    function ring(context, i, r, line) {
      context.strokeStyle = "#000"; context.lineWidth = line;
      context.beginPath(); context.arc(px[i], py[i], r, 0, 2 * Math.PI); context.stroke();
    }

    const visible = i => shown[data.group[i]] && data.x[i] !== null && data.y[i] !== null;

    const toX = v => (width + axis) / 2 + moveX + zoom * (width - axis - 2 * MARGIN) * ((v - left) / (right - left) - 0.5);
    const toY = v => (height - axis) / 2 + moveY - zoom * (height - axis - 2 * MARGIN) * ((v - bottom) / (top - bottom) - 0.5);

    function place() {
      for (let i = 0; i < n; i++) { px[i] = toX(data.x[i]); py[i] = toY(data.y[i]); }
    }

    // Round values between two ends, about six of them.
    function ticks(low, high) {
      const rough = (high - low) / 6, power = 10 ** Math.floor(Math.log10(rough));
      const step = power * [1, 2, 5, 10].find(m => m * power >= rough);
      const values = [];
      for (let i = Math.ceil(low / step); i * step <= high; i++) values.push(i * step);
      const digits = Math.max(0, -Math.floor(Math.log10(step)));
      return values.map(v => [v, v.toFixed(digits)]);
    }

    function axes(context) {
      const w = width - axis, h = height - axis, inverse = (low, high, to, pixel) => low + (high - low) * (pixel - to(low)) / (to(high) - to(low));
      context.fillStyle = "#fff"; context.fillRect(0, 0, axis, height); context.fillRect(0, h, width, axis);
      context.strokeStyle = "#888"; context.lineWidth = 1; context.strokeRect(axis + 0.5, 0.5, w - 1, h - 1);
      context.font = "11px system-ui, sans-serif"; context.fillStyle = "#222";
      context.textAlign = "center"; context.textBaseline = "top";
      for (const [v, text] of ticks(inverse(left, right, toX, axis), inverse(left, right, toX, width))) {
        const x = toX(v);
        context.beginPath(); context.moveTo(x, h); context.lineTo(x, h + 4); context.stroke();
        if (x > axis + 8 && x < width - 8) context.fillText(text, x, h + 6);
      }
      context.fillText(data.xlabel, axis + w / 2, h + 24);
      context.textAlign = "right"; context.textBaseline = "middle";
      for (const [v, text] of ticks(inverse(bottom, top, toY, h), inverse(bottom, top, toY, 0))) {
        const y = toY(v);
        context.beginPath(); context.moveTo(axis - 4, y); context.lineTo(axis, y); context.stroke();
        if (y > 8 && y < h - 8) context.fillText(text, axis - 6, y);
      }
      context.save(); context.translate(7, h / 2); context.rotate(-Math.PI / 2); context.textAlign = "center";
      context.fillText(data.ylabel, 0, 0); context.restore();
    }

    function thresholds(context) {
      context.strokeStyle = "#444"; context.lineWidth = 1; context.setLineDash([5, 4]);
      context.beginPath();
      for (const v of data.vertical) { context.moveTo(toX(v), 0); context.lineTo(toX(v), height - axis); }
      for (const v of data.horizontal) { context.moveTo(axis, toY(v)); context.lineTo(width, toY(v)); }
      context.stroke(); context.setLineDash([]);
    }

    function names(context) {
      const members = new Map();
      for (let i = 0; i < n; i++) {
        if (!data.marks[i] || !visible(i)) continue;
        ring(context, i, RADIUS + 1.5, 0.7);
        for (const name of data.marks[i].split(", ")) {
          if (!members.has(name)) members.set(name, []);
          members.get(name).push(i);
        }
      }
      const middle = (of, positions) => of.map(i => positions[i]).sort((a, b) => a - b)[of.length >> 1];
      context.font = "11px system-ui, sans-serif"; context.textAlign = "center"; context.textBaseline = "middle";
      [...members].sort((a, b) => b[1].length - a[1].length).slice(0, 12).forEach(([name, of]) => {
        const mx = middle(of, px), my = middle(of, py), away = i => (px[i] - mx) ** 2 + (py[i] - my) ** 2;
        const i = of.reduce((a, b) => away(b) < away(a) ? b : a), x = px[i], y = py[i], w = context.measureText(name).width + 6;
        context.fillStyle = "rgba(255,255,255,0.85)"; context.fillRect(x - w / 2, y - 8, w, 16);
        context.strokeStyle = "#000"; context.lineWidth = 0.7; context.strokeRect(x - w / 2, y - 8, w, 16);
        context.fillStyle = "#000"; context.fillText(name, x, y + 1);
      });
    }

    function redraw() {
      place();
      const context = base.getContext("2d");
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      context.clearRect(0, 0, width, height);
      context.globalAlpha = 0.65;
      for (let i = 0; i < n; i++) if (visible(i)) symbol(context, data.group[i], px[i], py[i], RADIUS);
      context.globalAlpha = 1;
      thresholds(context);
      if (axis) axes(context);
      if (data.marks) names(context);
      paint();
    }

    function paint() {
      const context = canvas.getContext("2d");
      context.setTransform(1, 0, 0, 1, 0, 0);
      context.clearRect(0, 0, canvas.width, canvas.height);
      context.drawImage(base, 0, 0);
      context.setTransform(ratio, 0, 0, ratio, 0, 0);
      for (const i of [pinned, hover]) if (i >= 0 && visible(i)) ring(context, i, RADIUS + 4, 2);
    }

    function describe(element, i) {
      element.textContent = "";
      const line = (name, text) => {
        const row = make(element, "div");
        make(row, "b", "", name);
        row.appendChild(document.createTextNode(text));
      };
      line(data.title, data.groups[data.group[i]]);
      for (const [name, values] of Object.entries(data.labels)) if (values[i] !== null) line(name, values[i]);
    }

    function nearest(x, y) {
      let best = -1, least = NEAR * NEAR;
      for (let i = 0; i < n; i++) {
        const d = (px[i] - x) ** 2 + (py[i] - y) ** 2;
        if (d < least && visible(i)) { least = d; best = i; }
      }
      return best;
    }

    function at(event) {
      const box = canvas.getBoundingClientRect();
      return [event.clientX - box.left, event.clientY - box.top];
    }

    canvas.onpointerdown = event => { drag = [...at(event), moveX, moveY, false]; };
    canvas.onpointermove = event => {
      const [x, y] = at(event);
      if (drag && event.buttons) {
        if (drag[4] || Math.hypot(x - drag[0], y - drag[1]) > 4) {
          drag[4] = true; tip.hidden = true; hover = -1;
          moveX = drag[2] + x - drag[0]; moveY = drag[3] + y - drag[1];
          redraw();
        }
        return;
      }
      const found = nearest(x, y);
      if (found === hover) return;
      hover = found; tip.hidden = found < 0;
      if (found >= 0) {
        describe(tip, found);
        tip.style.left = Math.max(0, Math.min(px[found] + 12, width - tip.offsetWidth - 2)) + "px";
        tip.style.top = py[found] + 12 + "px";
      }
      paint();
    };
    canvas.onpointerleave = () => { hover = -1; tip.hidden = true; drag = null; paint(); };
    canvas.onclick = event => {
      if (drag && drag[4]) { drag = null; return; }
      drag = null;
      pinned = nearest(...at(event));
      if (pinned >= 0) describe(point, pinned); else point.textContent = "";
      paint();
    };

    canvas.tabIndex = 0;
    canvas.onkeydown = event => {
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (!step) return;
      event.preventDefault();
      const order = [...px.keys()].filter(visible).sort((a, b) => data.x[a] - data.x[b]);
      if (!order.length) return;
      const place = order.indexOf(pinned);
      pinned = order[place < 0 ? (step > 0 ? 0 : order.length - 1) : (place + step + order.length) % order.length];
      describe(point, pinned);
      paint();
    };

    function resize() {
      const wide = plane.clientWidth || 800;
      if (wide === width) return;
      moveX *= wide / (width || wide); moveY *= wide / (width || wide);
      width = wide; height = Math.round(wide * HEIGHT); ratio = window.devicePixelRatio || 1;
      for (const one of [canvas, base]) { one.width = Math.round(width * ratio); one.height = Math.round(height * ratio); }
      canvas.style.height = height + "px";
      redraw();
    }
    window.addEventListener("resize", resize);
    resize();
  }

  document.querySelectorAll("figure.scatter").forEach(scatter);
})();
