import * as api from "./api.js";
import { createView, fillForm } from "./create.js";
import { h, fill, toast, tried } from "./dom.js";
import { editView } from "./edit.js";
import { galleryView } from "./gallery.js";
import { lang, setLang, t } from "./i18n.js";
import { refresh } from "./jobs.js";
import { modelsView } from "./models.js";
import { plotView, walkView } from "./plot.js";
import { rateView } from "./rate.js";

const VIEWS = { create: createView, gallery: galleryView, edit: editView, plot: plotView, walk: walkView, rate: rateView, models: modelsView };
let leave = () => {};

function theme() {
  const dark = getComputedStyle(document.documentElement).colorScheme.includes("dark") && matchMedia("(prefers-color-scheme: dark)").matches;
  const now = document.documentElement.dataset.theme ?? (dark ? "dark" : "light");
  const next = now === "dark" ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  try { localStorage.setItem("vitrail.theme", next); } catch { /* private window */ }
}

function show() {
  leave();
  const [name, argument] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "create";
  document.documentElement.lang = lang;
  const main = h("main", { id: "main" });
  fill(document.getElementById("app"),
    h("header", {}, h("div", { class: "bar" }, h("h1", {}, "vitrail"),
      h("nav", { "aria-label": "vitrail" }, Object.keys(VIEWS).map((key) =>
        h("a", { href: `#${key}`, "aria-current": key === view ? "page" : null }, t(key)))),
      h("button", { id: "lang", lang: lang === "zh" ? "en" : "zh", onclick: () => { setLang(lang === "zh" ? "en" : "zh"); show(); } }, lang === "zh" ? "English" : "中文"),
      h("button", { "aria-label": t("theme"), title: t("theme"), onclick: theme }, "◐"))),
    main);
  leave = VIEWS[view](main, argument) ?? (() => {});
}

// A picture dropped anywhere fills the form, whichever program made it.
addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("drop"); });
addEventListener("dragleave", (event) => { if (!event.relatedTarget) document.body.classList.remove("drop"); });
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  const file = event.dataTransfer?.files?.[0];
  if (file) tried(async () => {
    const found = await api.settingsOf(file);
    fillForm(found.settings);
    if (location.hash === "" || location.hash === "#create") show(); else location.hash = "create";
    toast([`${t("filled")} (${found.program})`, ...found.notes].join(" · "));
  });
});
try { const kept = localStorage.getItem("vitrail.theme"); if (kept) document.documentElement.dataset.theme = kept; } catch { /* private window */ }
addEventListener("hashchange", show);
show();
tried(refresh);
