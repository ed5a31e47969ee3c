// What can be done with a picture, wherever it is shown.
import * as api from "./api.js";
import { fillForm } from "./create.js";
import { h, tried, toast } from "./dom.js";
import { t } from "./i18n.js";
import { submit } from "./jobs.js";

const go = (hash) => { document.querySelector("dialog[open]")?.close(); location.hash = hash; };
async function derive(id, request) {
  const picture = await api.fileRef(await api.fetchBlob(id), "picture.png");
  await submit({ ...request, picture });
  go("create");
}
export function actions(picture, changed = () => {}) {
  const button = (label, work) => h("button", { type: "button", onclick: () => tried(work) }, label);
  return h("div", { class: "row", style: "justify-content:center" },
    button(t("vary"), () => derive(picture.id, { kind: "vary", model: "default", amount: 0.3, n: 4 })),
    button(t("useInput"), () => go(`edit/${picture.id}`)),
    button(t("upscale"), () => derive(picture.id, { kind: "upscale", scale: 4 })),
    button(t("reuse"), async () => { fillForm((await api.settingsOf(await api.fetchBlob(picture.id))).settings); go("reuse"); location.hash = "create"; }),
    button(t("how"), () => detail(picture.id)),
    button(`★ ${t("star")}`, async () => { const now = await api.picture(picture.id); await api.favourite(picture.id, !now.favourite); toast(now.favourite ? "☆" : "★"); changed(); }),
    h("a", { class: "button", href: api.file(picture.id), download: `vitrail-${picture.id.slice(0, 8)}.png` }, t("download")));
}
export const detail = (id, changed = () => {}) => tried(async () => {
  const found = await api.picture(id);
  const dialog = h("dialog", { "aria-label": t("how"), onclose: () => dialog.remove() }, h("div", { class: "stack" },
    h("img", { class: "big", src: api.file(id), alt: found.prompt ?? "" }),
    h("p", { style: "text-align:center;margin:0" }, found.prompt), actions(found, changed),
    h("details", { open: true }, h("summary", {}, t("how")), h("pre", {}, JSON.stringify(found.record ?? found, null, 1))),
    h("div", { class: "row" }, h("button", { onclick: () => dialog.close() }, t("close")),
      h("button", { class: "bad", onclick: () => confirm(t("sure")) && tried(async () => { await api.remove(id); dialog.close(); changed(); }) }, t("delete")))));
  document.body.append(dialog);
  dialog.showModal();
});
