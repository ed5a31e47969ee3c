// The frame of the page: where one is, language, light, the queue, and what every page can do.
import { opening } from "./api.js";
import { codebookView } from "./codebook.js";
import { createView, fillFromPicture } from "./create.js";
import { dialog, fill, h, kept } from "./dom.js";
import { editView } from "./edit.js";
import { evaluateView } from "./evaluate.js";
import { galleryView } from "./gallery.js";
import { lang, setLang, t } from "./i18n.js";
import { icon } from "./icons.js";
import { onConnection, refresh } from "./jobs.js";
import { showHelp, shortcuts } from "./keys.js";
import { modelsView } from "./models.js";
import { plotView } from "./plot.js";
import { queuePanel } from "./queue.js";
import { rateView } from "./rate.js";
import { trainView } from "./train.js";
import { walkView } from "./walk.js";

const VIEWS = {
  create: createView,
  edit: editView,
  gallery: galleryView,
  plot: plotView,
  walk: walkView,
  codebook: codebookView,
  train: trainView,
  evaluate: evaluateView,
  rate: rateView,
  models: modelsView,
};
const GROUPS = [
  ["groupMake", ["create", "edit", "gallery"]],
  ["groupExplore", ["plot", "walk", "codebook"]],
  ["groupTeach", ["train", "evaluate", "rate", "models"]],
];
const ON_A_PHONE = ["create", "edit", "gallery"];

let leave = () => {};
let leaveQueue = () => {};
let here = null;

const dark = () =>
  (document.documentElement.dataset.theme ??
    (matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light")) === "dark";
export function switchTheme() {
  const next = dark() ? "light" : "dark";
  document.documentElement.dataset.theme = next;
  kept.set("theme", next);
}
export function switchLanguage() {
  setLang(lang === "zh" ? "en" : "zh");
  show();
}

const link = (key, current) =>
  h(
    "a",
    { href: `#${key}`, class: `nav-${key}`, "aria-current": key === current ? "page" : null },
    icon(key),
    h("span", {}, t(key)),
  );

function menu(current) {
  const open = dialog(
    "vitrail",
    { close: t("close") },
    GROUPS.map(([group, keys]) =>
      h(
        "section",
        { class: "menu-group" },
        h("h3", {}, t(group)),
        keys.map((key) => link(key, current)),
      ),
    ),
    h("div", { class: "row" }, tools()),
  );
  open.addEventListener("click", (event) => {
    if (event.target.closest("a")) open.close();
  });
}

const tools = () => [
  h(
    "button",
    {
      type: "button",
      class: "quiet lang",
      lang: lang === "zh" ? "en" : "zh-CN",
      onclick: () => {
        document.querySelector("dialog[open]")?.close();
        switchLanguage();
      },
    },
    t("language"),
  ),
  h(
    "button",
    { type: "button", class: "quiet", "aria-label": t("theme"), title: t("theme"), onclick: switchTheme },
    icon("theme"),
  ),
  h("button", { type: "button", class: "quiet", "aria-label": t("help"), title: t("help"), onclick: showHelp }, "?"),
];

function show() {
  leave();
  leaveQueue();
  const [name, ...rest] = location.hash.slice(1).split("/");
  const view = VIEWS[name] ? name : "create";
  if (here && here !== view) scrollTo(0, 0); // a page begins at its top, wherever the one before it was left
  here = view;
  document.documentElement.lang = lang === "zh" ? "zh-CN" : "en";
  document.title = `${t(view)} · vitrail`;
  document.querySelector("dialog[open]")?.close();
  const main = h("main", { id: "main", tabindex: -1, class: `view-${view}` });
  const queue = queuePanel();
  leaveQueue = queue.stop;
  fill(
    document.getElementById("app"),
    h(
      "a",
      {
        class: "skip",
        href: "#main",
        onclick: (event) => {
          event.preventDefault();
          main.focus();
        },
      },
      t("skip"),
    ),
    h(
      "header",
      { class: "rail" },
      h(
        "div",
        { class: "brand" },
        h(
          "a",
          { href: "#create", class: "name" },
          h("img", { src: "/studio/icon.svg", alt: "", width: 30, height: 30 }),
          h("h1", {}, "vitrail"),
        ),
        h("div", { class: "tools" }, tools()),
      ),
      h(
        "nav",
        { class: "views", "aria-label": "vitrail" },
        GROUPS.map(([group, keys]) =>
          h(
            "div",
            { class: "nav-group", role: "group", "aria-label": t(group) },
            h("p", { "aria-hidden": "true" }, t(group)),
            keys.map((key) => link(key, view)),
          ),
        ),
      ),
      queue.element,
    ),
    main,
    h(
      "nav",
      { class: "tabs", "aria-label": t("menu") },
      ON_A_PHONE.map((key) => link(key, view)),
      h(
        "button",
        { type: "button", onclick: queue.openOnPhone },
        icon("queue"),
        h("span", {}, t("queue"), queue.count),
      ),
      h(
        "button",
        { type: "button", "aria-current": ON_A_PHONE.includes(view) ? null : "page", onclick: () => menu(view) },
        icon("menu"),
        h("span", {}, t("menu")),
      ),
    ),
  );
  opening.failed = false;
  opening.now = true;
  try {
    leave = VIEWS[view](main, ...rest.map(decodeURIComponent)) ?? (() => {});
  } finally {
    opening.now = false;
  }
}

// A picture dropped anywhere fills the form, whichever program made it; Edit takes it as its input instead.
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("drop");
});
addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) document.body.classList.remove("drop");
});
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("drop");
  const file = event.dataTransfer?.files?.[0];
  if (!file) return;
  const taken = new CustomEvent("picture-dropped", { detail: file, cancelable: true });
  if (!document.getElementById("main").dispatchEvent(taken)) return;
  fillFromPicture(file, () => {
    if (["", "#create"].includes(location.hash)) show();
    else location.hash = "create";
  });
});

const banner = h("p", { class: "banner", role: "alert", hidden: true });
document.body.append(banner);
onConnection((reached) => {
  banner.textContent = t("lost");
  banner.hidden = reached;
  if (reached && opening.failed) show(); // opened while nobody answered, it is still empty
});

const theme = kept.get("theme");
if (theme) document.documentElement.dataset.theme = theme;
addEventListener("hashchange", show);
shortcuts({ views: GROUPS.flatMap(([, keys]) => keys), switchTheme, switchLanguage });
show();
refresh();
