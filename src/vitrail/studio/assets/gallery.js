import * as api from "./api.js";
import { h, fill, tried, toast } from "./dom.js";
import { t } from "./i18n.js";
import { detail } from "./picture.js";

export function galleryView(main) {
  const tiles = h("div", { class: "tiles" }), tail = h("p", { class: "note" });
  const search = h("input", { type: "search", placeholder: t("search"), "aria-label": t("search"), style: "max-width:26rem", oninput: () => { clearTimeout(timer); timer = setTimeout(restart, 200); } });
  let timer, next = null, star = false, picking = null, busy = false, turn = 0;
  const toggle = (label, flip) => h("button", { class: "chip", "aria-pressed": "false", onclick: (e) => e.currentTarget.setAttribute("aria-pressed", String(flip())) }, label);
  const pick = (picture, tile) => {
    if (!picking) return detail(picture.id, restart);
    tile.setAttribute("aria-pressed", "true");
    picking.push(picture.id);
    if (picking.length === 2) { slider(...picking); picking = []; for (const other of tiles.children) other.removeAttribute("aria-pressed"); }
  };
  const load = async () => {
    if (busy) return;
    busy = true;
    const mine = turn, query = { limit: 60, ...(search.value.trim() && { query: search.value.trim() }), ...(star && { favourite: true }), ...(next && { before: next }) };
    await tried(async () => {
      const page = await api.pictures(query);
      if (mine !== turn) return;
      tiles.append(...page.pictures.map((p) => { const tile = h("button", { class: "tile", title: p.prompt, onclick: () => pick(p, tile) },
        h("img", { src: api.thumbnail(p.id), alt: p.prompt || p.kind, loading: "lazy" }), p.favourite ? h("span", { class: "star" }, "★") : null); return tile; }));
      next = page.next;
      fill(tail, next ? h("button", { onclick: load }, t("more")) : tiles.children.length ? "" : t("none"));
    });
    busy = false;
    if (mine !== turn) load();
  };
  const restart = () => { turn += 1; next = null; tiles.replaceChildren(); load(); };
  const watch = new IntersectionObserver((seen) => { if (seen[0].isIntersecting && next) load(); }, { rootMargin: "600px" });
  watch.observe(tail);
  fill(main, h("div", { class: "stack" }, h("div", { class: "row" }, search, toggle(`★ ${t("onlyStar")}`, () => { star = !star; restart(); return star; }),
    toggle(t("compare"), () => { picking = picking ? null : []; if (picking) toast(t("pickTwo")); return Boolean(picking); })), tiles, tail));
  load();
  return () => watch.disconnect();
}

function slider(before, after) {
  const box = h("div", { class: "compare" }, h("img", { src: api.file(after), alt: "2" }), h("img", { class: "over", src: api.file(before), alt: "1" }),
    h("input", { type: "range", min: 0, max: 100, value: 50, "aria-label": t("compare"), oninput: (e) => box.style.setProperty("--cut", `${e.target.value}%`) }));
  const dialog = h("dialog", { onclose: () => dialog.remove(), style: "text-align:center" }, box, h("p", {}, h("button", { onclick: () => dialog.close() }, t("close"))));
  document.body.append(dialog);
  dialog.showModal();
}
