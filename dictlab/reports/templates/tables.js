// Tables that can be sorted, filtered and shown whole. Text from the data reaches the page through textContent alone.
"use strict";
(function () {
  const STEP = 200; // rows added at a time: thousands at once would stop the page

  function make(parent, tag, text) {
    const element = document.createElement(tag);
    if (text !== undefined) element.textContent = text;
    parent.appendChild(element);
    return element;
  }

  function value(text, numeric) {
    if (text === "–") return null;
    if (!numeric) return text;
    if (text === "True" || text === "False") return text === "True" ? 1 : 0;
    if (text === "inf" || text === "-inf") return text === "inf" ? Infinity : -Infinity;
    const number = parseFloat(text);
    return Number.isNaN(number) ? null : number;
  }

  const contexts = document.getElementById("contexts"), titles = contexts ? JSON.parse(contexts.textContent) : {};

  // A latent's number as a link; `link` says by row which of a few prefixes its address begins with.
  function fill(cell, text, link, row) {
    if (!link || link.of[row] < 0 || !/^\d+$/.test(text)) { cell.textContent = text; return; }
    const a = make(cell, "a", text);
    a.href = link.prefixes[link.of[row]] + text;
    if (Object.hasOwn(titles, a.getAttribute("href"))) a.title = titles[a.getAttribute("href")];
  }

  function enhance(block) {
    const linked = block.querySelector("script.links"), links = linked ? JSON.parse(linked.textContent) : {};
    const rows = JSON.parse(block.querySelector("script").textContent);
    const body = block.querySelector("tbody"), heads = [...block.querySelectorAll("th")];
    const first = body.rows.length, note = block.querySelector(".note");
    let order = rows.map((_, i) => i), column = -1, down = false, wanted = "", limit = first;

    const bar = document.createElement("div"); bar.className = "bar";
    block.insertBefore(bar, block.querySelector(".scroll"));
    const search = make(bar, "input"); search.type = "search"; search.placeholder = "filter rows";
    search.setAttribute("aria-label", "filter rows");
    const more = make(bar, "button"), all = make(bar, "button", "show all"), count = make(bar, "span");
    more.type = all.type = "button"; count.setAttribute("aria-live", "polite");
    search.oninput = () => { wanted = search.value.toLowerCase(); limit = first; draw(); };
    more.onclick = () => { limit += STEP; draw(); };
    all.onclick = () => { limit = Infinity; draw(); };
    if (rows.length <= first) { more.hidden = all.hidden = true; if (rows.length < 8) search.hidden = true; }

    heads.forEach((head, c) => {
      const button = document.createElement("button");
      button.type = "button"; button.textContent = head.textContent; head.textContent = ""; head.appendChild(button);
      button.onclick = () => { down = column === c ? !down : head.dataset.numeric === "true"; column = c; sort(); draw(); };
    });

    function sort() {
      const numeric = heads[column].dataset.numeric === "true", sign = down ? -1 : 1;
      const keys = rows.map(row => value(row[column], numeric));
      order = rows.map((_, i) => i).sort((a, b) => {
        const x = keys[a], y = keys[b];
        if (x === null || y === null) return (x === null) - (y === null) || a - b; // what is missing stands last
        return (numeric ? x - y : x.localeCompare(y, undefined, { numeric: true })) * sign || a - b;
      });
      heads.forEach((head, c) => head.setAttribute("aria-sort", c !== column ? "none" : down ? "descending" : "ascending"));
    }

    function draw() {
      const kept = order.filter(i => !wanted || rows[i].some(text => text.toLowerCase().includes(wanted)));
      const shown = kept.slice(0, limit);
      body.textContent = "";
      for (const i of shown) {
        const line = make(body, "tr");
        rows[i].forEach((text, c) => {
          const cell = make(line, "td");
          cell.className = heads[c].dataset.numeric === "true" ? "number" : "";
          fill(cell, text, links[c], i);
        });
      }
      more.hidden = all.hidden = shown.length >= kept.length;
      more.textContent = "show " + Math.min(STEP, kept.length - shown.length) + " more";
      count.textContent = shown.length + " of " + kept.length + " rows" + (wanted ? " that match" : "");
    }

    if (note) note.hidden = true;
    if (rows.length > first) draw();
  }

  document.querySelectorAll(".table").forEach(block => { if (block.querySelector("script")) enhance(block); });
})();
