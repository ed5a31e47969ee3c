// Shortcuts of the whole page, and the list that says them. Those of a single key can be switched off, because
// speech input and stray keys would set them off (WCAG 2.1.4).
import { dialog, h, kept } from "./dom.js";
import { t } from "./i18n.js";

const LIST = [
  ["Ctrl Enter", "keysGo"],
  ["/", "keysSearch"],
  ["1 … 9, 0", "keysViews"],
  ["d", "keysTheme"],
  ["l", "keysLang"],
  ["?", "keysHelp"],
  ["← →", "keysPictures"],
  ["f", "keysStar"],
  ["[ ]", "keysBrush"],
  ["e", "keysErase"],
  ["Ctrl Z", "keysUndo"],
  ["← → ↓", "keysRate"],
];

export const singleKeys = () => kept.get("singleKeys") ?? true;

/** Whether a key belongs to what is being typed or moved, and not to the page. */
export function typing(event) {
  const { tagName, type } = event.target;
  return (
    tagName === "TEXTAREA" ||
    tagName === "SELECT" ||
    (tagName === "INPUT" && !["range", "checkbox", "button"].includes(type))
  );
}

export function showHelp() {
  dialog(
    t("help"),
    { close: t("close") },
    h(
      "dl",
      { class: "keys" },
      LIST.map(([keys, what]) => [
        h(
          "dt",
          {},
          keys.split(" ").map((key) => (/[…,]/.test(key) ? ` ${key} ` : h("kbd", {}, key))),
        ),
        h("dd", {}, t(what)),
      ]),
    ),
    h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        checked: singleKeys(),
        onchange: (event) => kept.set("singleKeys", event.target.checked),
      }),
      t("keysSingle"),
    ),
    h("p", { class: "note" }, t("helpDrop")),
  );
}

export function shortcuts({ views, switchTheme, switchLanguage }) {
  addEventListener("keydown", (event) => {
    if (
      event.ctrlKey ||
      event.metaKey ||
      event.altKey ||
      typing(event) ||
      document.querySelector("dialog[open]") ||
      !singleKeys()
    )
      return;
    const view = /^\d$/.test(event.key) ? views[(Number(event.key) + 9) % 10] : null;
    if (view) location.hash = view;
    else if (event.key === "/") {
      event.preventDefault();
      document.querySelector("#search, #prompt")?.focus();
    } else if (event.key === "d") switchTheme();
    else if (event.key === "l") switchLanguage();
    else if (event.key === "?") showHelp();
  });
}
