// The frame of the page: the header with search, which view is shown, keys, and the value at the pointer.

let rendering = 0;

async function render() {
  const turn = ++rendering;
  const main = document.getElementById("main");
  drawHeader();
  const one = latentAt(state.d, state.i), other = latentAt(state.e, state.j);
  try {
    let view;
    if (state.view === "pair" && one && other) view = await pairView(one, other);
    else if (state.view === "latent" && one) view = await latentView(one.d, one.i);
    else view = listView();
    if (turn !== rendering) return;
    main.replaceChildren(...banners(), view);
    if (view.redraw) view.redraw();
    if (state.view !== "list") scrollTo(0, 0);
  } catch (error) {
    if (turn === rendering) main.replaceChildren(el("p", { class: "warning" }, `This cannot be shown: ${error.message}`));
  }
}

function banners() {
  return meta.warnings.map(text => el("p", { class: "warning" }, visible(text)));
}

function drawHeader() {
  const header = document.getElementById("header");
  if (header.dataset.drawn) {
    const box = header.querySelector("input[type=search]");
    if (document.activeElement !== box) box.value = state.q;
    header.querySelector("select").value = state.d === "" || !meta.dictionaries[state.d] ? "" : state.d;
    return;
  }
  header.dataset.drawn = "1";
  const search = el("input", { type: "search", "aria-label": "Find latents", placeholder: "number, token, promotes:token …  ( / )", value: state.q,
    oninput: event => go({ view: "list", q: event.target.value, i: "", e: "", j: "" }, { replace: true }) });
  const choice = el("select", { "aria-label": "Dictionary", onchange: event => go({ view: "list", d: event.target.value, i: "", e: "", j: "" }) },
    el("option", { value: "" }, "all dictionaries"), meta.dictionaries.map((about, d) => el("option", { value: d }, `${about.name} (${about.latents})`)));
  choice.value = state.d;
  header.append(
    el("a", { class: "home", href: "#" }, "latents"), choice, search,
    el("details", { class: "about" }, el("summary", {}, "about"), aboutPart()));
}

function aboutPart() {
  return el("div", { class: "panel" },
    el("p", {}, `${visible(meta.model)} on ${visible(meta.text)}: ${number(meta.tokens)} tokens in ${number(meta.sequences)} sequences of ${meta.context}; ${number(meta.counted)} count (${visible(meta.selection)}).`),
    el("table", {}, el("thead", {}, el("tr", {}, ["dictionary", "latents", "dead here", "L0 here", "L0 in its file", "variance unexplained"].map(t => el("th", { scope: "col" }, t)))),
      el("tbody", {}, meta.dictionaries.map(a => el("tr", {}, [visible(a.name), number(a.latents), number(a.dead), number(a.l0), number(a.declared_l0), number(a.unexplained)].map(t => el("td", {}, t)))))),
    el("p", {}, "Keys: / search, j and k next and previous, Enter opens, Esc back to the list."));
}

document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const typing = /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName);
  if (event.key === "Escape") {
    event.target.blur();
    if (state.view !== "list") go({ view: "list", i: "", e: "", j: "" });
    return;
  }
  if (typing) return;
  if (event.key === "/") { event.preventDefault(); document.querySelector("input[type=search]").focus(); }
  const step = { j: 1, k: -1 }[event.key], one = latentAt(state.d, state.i);
  if (step && state.view === "latent" && one) go({ i: Math.max(0, Math.min(meta.dictionaries[one.d].latents - 1, one.i + step)), e: "", j: "" });
});

// The value of the token under the pointer.
document.addEventListener("pointerover", event => {
  const token = event.target.closest && event.target.closest("[data-value]"), tip = document.getElementById("tip");
  tip.hidden = !token;
  if (!token) return;
  tip.textContent = token.dataset.value;
  const box = token.getBoundingClientRect();
  tip.style.left = `${Math.min(box.left, innerWidth - tip.offsetWidth - 8)}px`;
  tip.style.top = `${box.top > 40 ? box.top - tip.offsetHeight - 4 : box.bottom + 4}px`;
});

addEventListener("hashchange", () => { readAddress(); render(); });

loadStart().then(() => { readAddress(); render(); }).catch(error => {
  document.getElementById("main").replaceChildren(el("p", { class: "warning" }, `The explorer's data cannot be read: ${error.message} Keep the folder "data" beside this page.`));
});
