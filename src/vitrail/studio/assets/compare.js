// Two pictures on top of each other with an edge that is moved between them.
import { dialog, h, withinSight } from "./dom.js";
import { t } from "./i18n.js";

/**
 * `a` and `b`: { src, label }; where their sizes differ the second is stretched over the first. `cut`: where the edge
 * is at first, as a share of the width.
 */
export function comparison(a, b, { width = 512, cut = 0.5 } = {}) {
  const range = h("input", {
    type: "range",
    min: 0,
    max: 100,
    value: Math.round(100 * cut),
    "aria-label": t("compareSlider"),
    oninput: () => box.style.setProperty("--cut", `${range.value}%`),
  });
  const under = h("img", { src: b.src, alt: b.label, width, draggable: "false" });
  const box = h(
    "div",
    { class: "compare" },
    under,
    h("img", { class: "over", src: a.src, alt: a.label, draggable: "false" }),
    h("span", { class: "side a" }, a.label),
    h("span", { class: "side b" }, b.label),
    range,
  );
  box.style.setProperty("--cut", `${range.value}%`);
  under.addEventListener("load", () => {
    const { naturalWidth: w, naturalHeight: height } = under;
    const times = Math.max(1, Math.floor(width / Math.max(w, height)));
    under.style.cssText = withinSight(w * times, height * times, 62);
  });
  return box;
}

export const compareDialog = (a, b) =>
  dialog(t("compare"), { close: t("close"), wide: true }, h("div", { class: "result-of" }, comparison(a, b)));
