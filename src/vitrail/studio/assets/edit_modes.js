// What can be done with a picture, and the request that each of it becomes.
import { labelled, slider } from "./controls.js";
import { h } from "./dom.js";
import { t } from "./i18n.js";
import { drawsFromWords, hasTokenizer } from "./shelf.js";

export const MODES = {
  redraw: {
    icon: "edit",
    brush: true,
    words: true,
    count: true,
    models: (model) => drawsFromWords(model) && model.kind !== "token_transformer",
  },
  inpaint: { icon: "brush", brush: true, words: true, count: true, models: (model) => drawsFromWords(model) },
  outpaint: { icon: "enlarge", words: true, count: true, models: (model) => drawsFromWords(model) },
  variations: { icon: "vary", count: true, models: (model) => drawsFromWords(model) || hasTokenizer(model) },
  enlarge: { icon: "plus", needs: "realesrgan-x4", models: (model) => model.here && model.kind === "rrdb" },
  repair: {
    icon: "eraser",
    brush: true,
    needs: "migan",
    // Of other programs' files a checkpoint repairs, and nothing that is added to one.
    models: (model) => model.here && (model.kind === "migan" || (model.foreign && model.draws)),
  },
};

/** The request of a mode; `form` holds what the person chose. */
export function requestOf(mode, form, picture, mask) {
  const { prompt, model, n, seed } = form;
  const drawn = { n, ...(model && { model }), ...(seed != null && { seed }) };
  switch (mode) {
    case "redraw":
      return { kind: "edit", picture, prompt, strength: form.strength, ...drawn, ...(mask && { mask }) };
    case "inpaint":
      return { kind: "inpaint", picture, mask, prompt, ...drawn };
    case "outpaint":
      return { kind: "inpaint", picture, prompt, expand: form.expand, ...drawn };
    case "variations":
      return { kind: "vary", picture, amount: form.amount, ...drawn };
    case "enlarge":
      return { kind: "upscale", picture, scale: form.scale, ...(model && { model }) };
    default:
      return { kind: "repair", picture, mask, ...(model && { model }) };
  }
}

export const percent = (label, form, name) =>
  slider(label, {
    min: 0,
    max: 1,
    step: 0.05,
    value: form[name],
    show: (value) => `${Math.round(100 * value)} %`,
    oninput: (value) => {
      form[name] = value;
    },
  }).element;

export const edges = (form) =>
  h(
    "div",
    { class: "field" },
    h("span", { class: "label" }, t("edges")),
    h(
      "div",
      { class: "edges" },
      ["left", "right", "top", "bottom"].map((side) =>
        labelled(
          t(`${side}2`),
          h("input", {
            type: "number",
            min: 0,
            max: 2048,
            step: 8,
            value: form.expand[side],
            oninput: (event) => {
              form.expand[side] = Math.max(0, Math.round(Number(event.target.value) || 0));
            },
          }),
        ),
      ),
    ),
  );
