// The frame of the page: the header with search, which view is shown, keys, and the value at the pointer.

let rendering = 0;

async function viewOf() {
  const views = { list: listView, splits: splitsView, triggers: triggersView, absorbed: absorbedView, lanes: lanesView, map: mapView, try: tryView, latent: null, pair: null, token: null };
  if (!Object.hasOwn(views, state.view)) return overviewView(); // which needs no index
  await ready;
  const one = latentAt(state.d, state.i), other = latentAt(state.e, state.j);
  if (state.view === "pair" && one && other && one.d !== other.d) return pairView(one, other);
  if (state.view === "latent" && one) return latentView(one.d, one.i);
  if (state.view === "token" && Number(state.i) < meta.sequences && Number(state.j) < meta.context) return tokenView(Number(state.i), Number(state.j));
  const view = views[state.view];
  if (!view) return el("p", { class: "note" }, "There is no such latent here.");
  if (state.q) await loadLabels();
  if (view === listView && state.q.startsWith("text:") && !(stringHits && `text:${stringHits.text}` === state.q)) await findString(state.q.slice(5), () => {});
  return view();
}

async function render() {
  const turn = ++rendering, main = document.getElementById("main");
  drawHeader();
  try {
    const view = await viewOf();
    if (turn !== rendering) return;
    main.replaceChildren(...(state.view === "overview" ? banners() : []), view);
    if (view.redraw) view.redraw();
    scrollTo(0, 0);
  } catch (error) {
    if (turn === rendering) main.replaceChildren(el("p", { class: "warning" }, `This cannot be shown: ${error.message}`));
  }
}

const banners = () => meta.warnings.map(text => el("p", { class: "warning" }, visible(text)));

const VIEWS = [["overview", "overview"], ["list", "latents"], ["splits", "splits"], ["triggers", "twins"], ["absorbed", "absorbed"], ["lanes", "sizes"], ["map", "map"]];

function drawHeader() {
  const header = document.getElementById("header");
  if (!header.dataset.drawn) {
    header.dataset.drawn = "1";
    header.append(el("nav", { "aria-label": "Views" }), searchBox(), el("details", { class: "about" }, el("summary", {}, "about"), el("div", { class: "panel" })));
    header.querySelector(".about").addEventListener("toggle", event => { if (event.target.open) header.querySelector(".panel").replaceChildren(aboutPart()); });
  }
  const views = meta.dictionaries.length > 1 ? VIEWS : VIEWS.filter(([view]) => !/splits|triggers|absorbed|lanes/.test(view));
  header.querySelector("nav").replaceChildren(...[...views, ...(LIVE ? [["try", "try"]] : [])].map(([view, title]) =>
    el("a", { href: addressOf({ view, d: "", i: "", e: "", j: "", t: "", ...(view === "overview" ? CLEAR : {}) }), "aria-current": state.view === view ? "page" : null }, title)));
  const box = header.querySelector("#search");
  if (document.activeElement !== box) box.value = state.q;
}

function aboutPart() {
  const keys = [["/", "search"], ["j, k", "next and previous latent of the list"], ["Enter", "open"], ["Esc", "back to the list"], ["o, l, s, t, a, z, m", "overview, latents, splits, twins, absorbed, sizes, map"], ["←, →", "from token to token of a context; Enter: what is active there"], ["?", "this list"], ["c", "copy the address of this view"]];
  return el("div", {}, el("p", {}, `dictlab ${visible(meta.version)}. `, viewLink({ view: "overview" }, "What was measured")),
    el("h3", {}, "Keys"), el("dl", {}, keys.map(([key, what]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, what)])),
    el("h3", {}, "Search"), el("p", {}, "A number; ", el("code", {}, "on:self"), el("code", {}, "promotes:self"), el("code", {}, "is: self"), el("code", {}, "label:loop"), " or ", el("code", {}, "text:import os"), ", a string in the sample."), notesFile());
}

const LETTERS = { o: "overview", l: "list", s: "splits", t: "triggers", a: "absorbed", z: "lanes", m: "map" };

document.addEventListener("keydown", event => {
  if (!meta || event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    event.target.blur();
    if (!typing && state.view !== "list") go({ view: "list", d: "", i: "", e: "", j: "" });
    return;
  }
  if (typing) return;
  if (event.key === "/") { event.preventDefault(); document.getElementById("search").focus(); }
  else if (event.key === "?") { const about = document.querySelector(".about"); about.open = !about.open; about.querySelector("summary").focus(); }
  else if (event.key === "ArrowRight" || event.key === "ArrowLeft") stepToken(event);
  else if (event.key === "Enter" && event.target.matches("[data-place]")) openToken(event.target);
  else if (event.key === "c") copy(document.querySelector(".about summary"), location.href);
  else if (LETTERS[event.key]) go({ view: LETTERS[event.key], d: "", i: "", e: "", j: "", t: "" });
  else if (event.key === "j" || event.key === "k") {
    const step = document.querySelector(`[data-step="${event.key === "j" ? 1 : -1}"]`);
    if (step) step.click();
  }
});

// The value of the token under the pointer; a click on a token shows all that are active there.
function showValue(event) {
  const token = event.target.closest && event.target.closest("[data-value]"), tip = document.getElementById("tip");
  tip.hidden = !token;
  if (!token) return;
  tip.textContent = token.dataset.value;
  const box = token.getBoundingClientRect();
  tip.style.left = `${Math.max(4, Math.min(box.left, innerWidth - tip.offsetWidth - 8))}px`;
  tip.style.top = `${box.top > 40 ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
}

document.addEventListener("pointerover", showValue);
document.addEventListener("focusin", showValue);

// Of each context one token is reached by Tab; arrows go on from there.
function stepToken(event) {
  const token = event.target.closest("[data-value]");
  if (!token) return;
  const next = event.key === "ArrowRight" ? token.nextElementSibling : token.previousElementSibling;
  if (!next) return;
  event.preventDefault();
  token.tabIndex = -1;
  next.tabIndex = 0;
  next.focus();
}

function openToken(token) {
  const [sequence, position] = token.dataset.place.split(" ");
  go({ view: "token", d: "", e: "", i: sequence, j: position });
}

document.addEventListener("click", event => {
  const token = event.target.closest && event.target.closest("[data-place]");
  if (token && !String(getSelection())) openToken(token);
});

addEventListener("hashchange", () => { readAddress(); render(); });

load("meta").then(content => { meta = content; readAddress(); ready = loadIndex(); return Promise.all([render(), ready]); }).catch(error => {
  document.getElementById("main").replaceChildren(el("p", { class: "warning" }, `The explorer's data cannot be read: ${error.message} Keep the folder “data” beside this page.`));
});
