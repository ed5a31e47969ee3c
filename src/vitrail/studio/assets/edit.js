import * as api from "./api.js";
import { h, fill, toast, tried } from "./dom.js";
import { lang, t, EXAMPLES } from "./i18n.js";
import { submit } from "./jobs.js";
import { canvasOf } from "./paint.js";
import { queuePanel, stage } from "./queue.js";

export function editView(main, id) {
  let blob = null, paint = null, what = "img2img";
  const place = h("div"), shown = stage(place), queue = queuePanel((job) => shown.follow(job));
  const prompt = h("textarea", { id: "prompt", placeholder: EXAMPLES[lang][0] });
  const strength = h("input", { type: "range", id: "strength", min: 0, max: 1, step: 0.05, value: 0.6 });
  const pixels = h("input", { type: "number", id: "pixels", min: 8, max: 512, value: 32 });
  const size = h("input", { type: "range", id: "brush", min: 2, max: 128, value: 24, oninput: () => paint?.setSize(Number(size.value)) });
  const take = (found) => tried(async () => { blob = found; paint?.stop(); paint = await canvasOf(blob, size); fill(shown.element, paint.element); });
  const file = h("input", { type: "file", id: "file", accept: "image/png,image/jpeg,image/webp", onchange: () => file.files[0] && take(file.files[0]) });
  const kinds = h("div", { class: "row", role: "group", "aria-label": t("what") }, ["img2img", "inpaint", "outpaint", "repair"].map((kind) =>
    h("button", { class: "chip", "aria-pressed": String(kind === what), onclick: (e) => { what = kind; for (const b of kinds.children) b.setAttribute("aria-pressed", String(b === e.target)); } }, t(kind))));
  const start = () => tried(async () => {
    if (!blob) return toast(t("needPicture"));
    const mask = paint.painted() ? await api.fileRef(await paint.mask(), "mask.png") : null;
    if ((what === "inpaint" || what === "repair") && !mask) return toast(t("paintFirst"));
    const picture = await api.fileRef(blob, blob.name ?? "picture.png"), words = prompt.value.trim(), n = Number(pixels.value);
    const request = {
      img2img: { kind: "edit", picture, prompt: words, strength: Number(strength.value), ...(mask && { mask }) },
      inpaint: { kind: "inpaint", picture, mask, prompt: words, model: "default", strength: 1 },
      outpaint: { kind: "inpaint", picture, prompt: words, model: "default", expand: { left: n, right: n, top: n, bottom: n } },
      repair: { kind: "repair", picture, mask },
    }[what];
    shown.follow(await submit(request));
  });
  fill(main, h("div", { class: "two" }, h("div", { class: "stack" }, h("section", { class: "card stack" },
    h("div", {}, h("label", { for: "file" }, t("choose")), file), kinds,
    h("div", {}, h("label", { for: "prompt" }, t("prompt")), prompt),
    h("div", {}, h("label", { for: "strength" }, t("strength")), strength),
    h("div", {}, h("label", { for: "brush" }, t("brush")), h("div", { class: "row" }, size, h("button", { onclick: () => paint?.undo() }, t("undo")), h("button", { onclick: () => paint?.clear() }, t("clear")))),
    h("div", {}, h("label", { for: "pixels" }, t("pixels")), pixels),
    h("button", { class: "main", onclick: start }, t("run"))), queue.element), shown.element));
  fill(place, h("p", { class: "note" }, t("needPicture")));
  if (id) tried(async () => take(await api.fetchBlob(id)));
  return () => { paint?.stop(); shown.stop(); queue.stop(); };
}
