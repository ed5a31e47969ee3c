import * as api from "./api.js";
import { h, fill, tried } from "./dom.js";
import { t } from "./i18n.js";

/** Pairs of pictures of the same words from two models, in random order and on random sides. */
function pairsOf(pictures) {
  const byWords = Map.groupBy(pictures.filter((p) => p.prompt && p.kind === "text_to_image"), (p) => p.prompt.toLowerCase());
  const pairs = [];
  for (const same of byWords.values()) for (let i = 0; i < same.length; i++) for (let j = 0; j < i; j++)
    if (same[i].model !== same[j].model) pairs.push(Math.random() < 0.5 ? [same[i], same[j]] : [same[j], same[i]]);
  return pairs.map((p) => [Math.random(), p]).sort((a, b) => a[0] - b[0]).map((p) => p[1]);
}
export function rateView(main) {
  const area = h("section", { class: "card stack" }), table = h("section", { class: "card" });
  let pairs = [];
  const draw = () => {
    const pair = pairs[0];
    if (!pair) return fill(area, h("p", { class: "note" }, t("needPairs")));
    fill(area, h("p", { class: "note" }, t("rateHint")), h("h2", {}, pair[0].prompt), h("div", { class: "grid2" }, pair.map((p, i) =>
      h("button", { class: "tile", "aria-label": t(i ? "rightOne" : "leftOne"), onclick: () => answer(i ? "right" : "left") }, h("img", { src: api.file(p.id), alt: "" })))),
      h("div", { style: "text-align:center" }, h("button", { onclick: () => answer("tie") }, t("tie"))));
  };
  const answer = (winner) => tried(async () => {
    const [left, right] = pairs[0];
    await api.vote({ prompt: left.prompt, left: left.id, right: right.id, left_name: left.model, right_name: right.model, winner });
    pairs.shift(); draw(); await scores();
  });
  const scores = async () => {
    const rows = await api.scores();
    fill(table, h("h2", {}, t("scores")), h("table", {}, h("thead", {}, h("tr", {}, [t("model"), t("strengthLog"), t("interval"), t("votes")].map((x) => h("th", {}, x)))),
      h("tbody", {}, rows.map((s) => h("tr", {}, [s.name, s.strength.toFixed(2), `${s.low.toFixed(2)} – ${s.high.toFixed(2)}`, s.votes].map((x) => h("td", {}, String(x))))))),
      h("p", {}, h("a", { class: "button", href: "/api/studio/scores.csv" }, t("csv"))));
  };
  const keys = (e) => { const winner = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" }[e.key]; if (winner && pairs.length && e.target === document.body) { e.preventDefault(); answer(winner); } };
  addEventListener("keydown", keys);
  fill(main, h("div", { class: "stack" }, area, table));
  tried(async () => { pairs = pairsOf((await api.pictures({ limit: 500 })).pictures); draw(); await scores(); });
  return () => removeEventListener("keydown", keys);
}
