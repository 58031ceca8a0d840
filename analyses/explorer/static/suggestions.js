// Type ahead: what the search may mean, with how many latents each gives; arrows and Enter choose.

const SUGGESTED = 8;

function searchBox() {
  const input = el("input", { type: "search", id: "search", role: "combobox", "aria-label": "Find latents", "aria-expanded": "false", "aria-controls": "suggestions", "aria-autocomplete": "list", autocomplete: "off", spellcheck: "false", placeholder: "find: number, token, string …   ( / )", value: state.q });
  const list = el("ul", { id: "suggestions", role: "listbox", "aria-label": "Suggestions", hidden: true });
  let at = -1, options = [];
  const close = () => { list.hidden = true; input.setAttribute("aria-expanded", "false"); input.removeAttribute("aria-activedescendant"); at = -1; };
  const take = option => { close(); input.value = option.q ?? input.value; option.take(); };
  const mark = () => [...list.children].forEach((item, k) => {
    item.setAttribute("aria-selected", String(k === at));
    if (k === at) { input.setAttribute("aria-activedescendant", item.id); item.scrollIntoView({ block: "nearest" }); }
  });
  const show = () => {
    options = suggestions(input.value);
    list.replaceChildren(...options.map((option, k) => el("li", { role: "option", id: `option-${k}`, onpointerdown: event => { event.preventDefault(); take(option); } }, option.text)));
    list.hidden = options.length === 0;
    input.setAttribute("aria-expanded", String(options.length > 0));
    at = -1;
  };
  input.addEventListener("input", show);
  input.addEventListener("blur", close);
  input.addEventListener("keydown", event => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (list.hidden) show();
      at = Math.max(-1, Math.min(options.length - 1, at + (event.key === "ArrowDown" ? 1 : -1)));
      mark();
    } else if (event.key === "Enter") {
      if (at >= 0) take(options[at]);
      else { close(); goQuery(input.value); }
    } else if (event.key === "Escape") { event.stopPropagation(); if (list.hidden) input.blur(); else close(); }
  });
  return el("div", { class: "search" }, input, list);
}

async function goQuery(q) {
  const text = /^text:(.+)$/s.exec(q);
  if (text) return goString(text[1]);
  return go({ view: "list", q, d: "", i: "", e: "", j: "" });
}

async function goString(text) {
  const main = document.getElementById("main"), said = el("p", { class: "note", role: "status" }, "Looking through the sample …");
  main.replaceChildren(said);
  await findString(text, (share, places) => { said.textContent = `Looking through the sample: ${percent(share)}, ${number(places)} places`; });
  const before = location.hash;
  go({ view: "list", q: `text:${text}`, d: "", i: "", e: "", j: "", where: "", sort: "" });
  if (location.hash === before) render();
}

let tokenUse = null; // token id -> [latents that are active on it, latents that promote it]

function usesOfTokens() {
  if (tokenUse) return tokenUse;
  tokenUse = new Map();
  for (const d of every()) {
    ["on", "up"].forEach((key, side) => {
      for (const t of columns[d][key]) {
        if (t < 0) continue;
        if (!tokenUse.has(t)) tokenUse.set(t, [0, 0]);
        tokenUse.get(t)[side]++;
      }
    });
  }
  return tokenUse;
}

function suggestions(text) {
  if (columns.length < meta.dictionaries.length) return []; // the index is on its way
  if (!text.trim() || FIELDS.exec(text)[1]) return [];
  const list = [];
  if (/^\s*\d+\s*$/.test(text)) {
    for (const d of every()) if (Number(text) < meta.dictionaries[d].latents) list.push({ text: [`latent ${Number(text)} of `, badge(d)], take: () => go({ view: "latent", d, i: Number(text), e: "", j: "", q: "" }) });
  }
  const uses = usesOfTokens(), words = [...uses].filter(([t]) => contains(vocabulary.get(t) ?? "", text));
  words.sort((a, b) => (vocabulary.get(a[0]).length - vocabulary.get(b[0]).length) || (b[1][0] + b[1][1] - a[1][0] - a[1][1]));
  for (const [t, [on, up]] of words.slice(0, 3)) {
    if (on) list.push({ text: ["active on ", el("code", {}, tokenText(t)), `: ${number(on)} latents`], take: () => go({ view: "list", q: `is:${tokenText(t)}`, d: "", i: "", e: "", j: "" }) });
  }
  if (words.length) {
    const up = words.filter(([, [, n]]) => n).length;
    list.push({ text: `active on any token with “${visible(text)}”`, take: () => goQuery(`on:${text}`) });
    if (up) list.push({ text: `promotes a token with “${visible(text)}”`, take: () => goQuery(`promotes:${text}`) });
  }
  if (labels.length) list.push({ text: `what reports say: “${visible(text)}”`, take: () => goQuery(`label:${text}`) });
  list.push({ text: `active where the text says “${visible(text)}”`, take: () => goString(text) });
  return list.slice(0, SUGGESTED);
}
