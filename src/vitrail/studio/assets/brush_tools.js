// The controls of the brush: size, soft edge, eraser, undo.
import { slider } from "./controls.js";
import { fill, h } from "./dom.js";
import { t } from "./i18n.js";
import { icon } from "./icons.js";

/** Controls for the picture that `paint()` gives, if there is one; `update` shows what keys have changed. */
export function brushTools(paint) {
  const brush = h("div", { class: "stack" });
  const size = slider(t("brushSize"), {
    min: 2,
    max: 160,
    value: 16,
    id: "brush",
    oninput: (value) => paint()?.set({ size: value }),
  });
  const soften = slider(t("soften"), {
    min: 0,
    max: 64,
    value: 0,
    id: "edge",
    oninput: (value) => paint()?.set({ soften: value }),
  });
  const eraser = h(
    "button",
    { type: "button", onclick: () => paint()?.set({ erase: !paint().state.erase }) },
    icon("eraser"),
    t("eraser"),
  );
  fill(
    brush,
    size.element,
    soften.element,
    h(
      "div",
      { class: "row" },
      eraser,
      h("button", { type: "button", onclick: () => paint()?.undo() }, icon("undo"), t("undo")),
      h("button", { type: "button", onclick: () => paint()?.clear() }, t("clear")),
    ),
  );
  return {
    element: brush,
    update() {
      if (!paint()) return;
      size.put(paint().state.size);
      soften.put(paint().state.soften);
      eraser.setAttribute("aria-pressed", String(paint().state.erase));
    },
  };
}
