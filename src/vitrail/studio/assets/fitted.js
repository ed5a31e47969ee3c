// Settings of other programs, made to fit the model that is to draw: what it cannot serve is left out, and said so.
import { fieldName, lang, t } from "./i18n.js";
import { lorasOf, missingLoras, withoutLoras } from "./loras.js";

export const listed = (names) => names.join(lang === "zh" ? "、" : ", ");
const times = (width, height) => `${width} × ${height}`;
/** Diffusion models share their settings with A1111 and its kin; to others only words and chance mean the same. */
const SHARED = new Set(["prompt", "negative_prompt", "seed", "width", "height", "n"]);
const diffuses = (model) => model.foreign === true || model.kind === "shell_dit";
/** Sides of a latent's pixel, which every checkpoint draws whole. */
const STEP = 8;

/** The size that the model has and that is nearest to the one asked for; null where it must be the usual one. */
function nearestSize(model, width, height) {
  if (model.foreign) return [width, height].map((side) => Math.max(STEP, STEP * Math.round(side / STEP)));
  const apart = ([w, h]) => Math.abs(Math.log(w / width)) + Math.abs(Math.log(h / height));
  return (model.sizes ?? []).toSorted((a, b) => apart(a) - apart(b))[0] ?? null;
}

/** `settings` with a size that `model` draws, and what there is to say about it. */
export function withSize(settings, model) {
  const { width, height, tile, seamless, panorama } = settings;
  // In tiles and around a seam sizes are possible that are not on the list.
  if (!model || !width || !height || tile || seamless || panorama) return { settings, notes: [] };
  const near = nearestSize(model, width, height);
  if (near?.[0] === width && near[1] === height) return { settings, notes: [] };
  const said = { size: times(width, height), model: model.name, other: near && times(...near) };
  const { width: _, height: __, ...rest } = settings;
  return {
    settings: near ? { ...rest, width: near[0], height: near[1] } : rest,
    notes: [t(near ? "otherSize" : "usualSize", said)],
  };
}

/**
 * What a picture of another program, or of a model that is gone, says, as the chosen model can serve it:
 * `{ settings, notes }`. `models` are those of this machine; `strange`: it is of another program.
 */
export function fitted(settings, model, models, { strange = false } = {}) {
  if (!model) return { settings, notes: [] };
  const sized = withSize(settings, model),
    notes = sized.notes;
  let taken = sized.settings;
  const lost = model.foreign ? missingLoras(taken, models) : lorasOf(taken);
  if (lost.length) {
    taken = withoutLoras(taken, lost);
    notes.push(t(model.foreign ? "loraGone" : "noLora", { model: model.name, names: listed(lost) }));
  }
  if (!diffuses(model)) {
    const useless = Object.keys(taken).filter((name) => !SHARED.has(name));
    taken = Object.fromEntries(Object.entries(taken).filter(([name]) => SHARED.has(name)));
    if (useless.length) notes.push(t("noUse", { model: model.name, names: listed(useless.map(fieldName)) }));
  } else if (strange && !model.foreign && taken.cfg_scale != null) {
    // What Stable Diffusion takes for usual, 7, leaves nothing but specks of a picture that is drawn on pixels.
    const { cfg_scale: value, ...rest } = taken;
    taken = rest;
    notes.push(t("ownGuidance", { model: model.name, value }));
  }
  return { settings: taken, notes };
}
