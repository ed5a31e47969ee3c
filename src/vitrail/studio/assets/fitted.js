// Settings of other programs, made to fit the model that is to draw: what it cannot serve is left out, and said so.
import { fieldName, lang, t } from "./i18n.js";

const listed = (names) => names.join(lang === "zh" ? "、" : ", ");
const times = (width, height) => `${width} × ${height}`;
/** Diffusion models share their settings with A1111 and its kin; to others only words and chance mean the same. */
const SHARED = new Set(["prompt", "negative_prompt", "seed", "width", "height", "n"]);
const diffuses = (model) => model.foreign === true || model.kind === "shell_dit";
const TAG = /\s*<(?:lora|lyco|hypernet):([^<>:]*)[^<>]*>/gi;
/** Sides of a latent's pixel, which every checkpoint draws whole. */
const STEP = 8;

/** Words without the tags of add-ons, and the names that stood in them. */
function withoutTags(words) {
  const names = [...words.matchAll(TAG)].map(([, name]) => name.trim());
  if (!names.length) return { words, names };
  const rest = words.replace(TAG, "").replace(/,(\s*,)+/g, ",");
  return { words: rest.replace(/^[\s,]+|[\s,]+$/g, ""), names };
}

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

/** What another program's picture says, as the chosen model can serve it: `{ settings, notes }`. */
export function fitted(settings, model) {
  if (!model) return { settings, notes: [] };
  const sized = withSize(settings, model),
    notes = sized.notes;
  let taken = sized.settings;
  if (!model.foreign) {
    const prompt = withoutTags(taken.prompt ?? ""),
      negative = withoutTags(taken.negative_prompt ?? "");
    const names = [...new Set([...prompt.names, ...negative.names])];
    if (names.length) {
      taken = { ...taken, prompt: prompt.words, negative_prompt: negative.words || null };
      notes.push(t("noLora", { model: model.name, names: listed(names) }));
    }
  }
  if (!diffuses(model)) {
    const strange = Object.keys(taken).filter((name) => !SHARED.has(name));
    taken = Object.fromEntries(Object.entries(taken).filter(([name]) => SHARED.has(name)));
    if (strange.length) notes.push(t("noUse", { model: model.name, names: listed(strange.map(fieldName)) }));
  }
  return { settings: taken, notes };
}
