// The address says what is shown: everything after # is the state of the page, so that any view can be sent on.
// of, q, where, sort: the list; d, i: a latent; e, j: another one beside it; t: a threshold.

const state = {};
const DEFAULTS = { view: "overview", of: "", q: "", where: "", sort: "", d: "", i: "", e: "", j: "", t: "" };

function readAddress() {
  const given = new URLSearchParams(location.hash.replace(/^#/, ""));
  for (const [key, value] of Object.entries(DEFAULTS)) state[key] = given.get(key) ?? value;
}

function addressOf(changes) {
  const wanted = { ...state, ...changes };
  const set = Object.entries(wanted).filter(([key, value]) => value !== DEFAULTS[key] && value !== null && value !== undefined);
  return `#${new URLSearchParams(set.map(([key, value]) => [key, String(value)]))}`;
}

function go(changes, { replace = false } = {}) {
  const address = addressOf(changes);
  if (address === location.hash || (address === "#" && !location.hash)) return;
  if (!replace) { location.hash = address; return; }
  history.replaceState(null, "", address);
  readAddress();
  render();
}

// A latent that exists, or null: the address may have been typed.
function latentAt(d, i) {
  if (!/^\d+$/.test(d) || !/^\d+$/.test(i)) return null;
  const about = meta.dictionaries[Number(d)];
  return about && Number(i) < about.latents ? { d: Number(d), i: Number(i) } : null;
}

const CLEAR = { of: "", q: "", where: "", sort: "", d: "", i: "", e: "", j: "", t: "" };
const viewLink = (changes, ...children) => el("a", { href: addressOf({ ...CLEAR, ...changes }) }, ...children);
const latentLink = (d, i, ...children) =>
  el("a", { class: `latent d${d % 6}`, href: addressOf({ view: "latent", d, i, e: "", j: "" }) }, ...(children.length ? children : [`${name(d)} · ${i}`]));
const pairLink = (d, i, e, j, ...children) =>
  el("a", { href: addressOf({ view: "pair", d, i, e, j }) }, ...children);
const badge = d => el("span", { class: `badge d${d % 6}`, title: fullName(d) }, name(d));
