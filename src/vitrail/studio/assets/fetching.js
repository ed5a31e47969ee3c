// Models on their way here: how far they are, and a notice that fetches one where it is missed.
import * as api from "./api.js";
import { fill, h } from "./dom.js";
import { lang, size, span, t } from "./i18n.js";
import { icon } from "./icons.js";
import { forgetModels } from "./shelf.js";

export const POLL_MS = 1200;

/** What is known of how far a model is: bytes where they are counted, else since when it comes. */
function far({ done, total, seconds }) {
  if (done != null) return t("fetching", { done: size(done), all: size(total) });
  return seconds == null ? t("fetchingNext", { all: size(total) }) : t("fetchingFor", { all: size(total), time: span(seconds) });
}

/** How much of a model is here, while it is fetched. */
export const pulled = ({ name, fetching }) =>
  h(
    "div",
    { style: "flex:1" },
    h("progress", {
      max: fetching.total || 1,
      ...(fetching.done && { value: fetching.done }),
      "aria-label": name,
    }),
    h("small", {}, far(fetching)),
  );

/** Why a model did not arrive; the server keeps it in English, here it comes into the reader's language. */
export function pullError(line) {
  const told = h("small", { class: "bad", role: "alert" }, line);
  if (lang === "zh")
    api.inChinese(line).then(
      ({ text }) => {
        told.textContent = text;
      },
      () => {}, // it stays as it is
    );
  return told;
}

/** What says that `model` of the catalogue is missing, and fetches it; `arrived()` is called once it is here. */
export function missing(model, arrived) {
  const element = h("div", { class: "notice" });
  let timer = null,
    over = false;
  const draw = (now, error = now.fetching?.error) =>
    fill(
      element,
      h("span", {}, t("needsModel", { name: model.name })),
      now.fetching?.running
        ? pulled(now)
        : h(
            "button",
            { type: "button", class: "fetch", onclick: start },
            icon("download"),
            `${t("fetch")} (${size(model.size)})`,
          ),
      error ? pullError(error) : null,
      h("small", {}, `${t("licence")}${lang === "zh" ? "：" : ": "}${model.licence} · `, h("a", { href: `#models/${model.name}` }, t("toModels"))),
    );
  const look = async () => {
    const now = (await api.models()).find((one) => one.name === model.name);
    if (over) return;
    if (now?.here) {
      forgetModels();
      arrived();
      return;
    }
    draw(now ?? model);
    if (now?.fetching?.running) timer = setTimeout(() => told(look), POLL_MS);
  };
  // What goes wrong stands beside the button that can be pressed again.
  const told = (work) => work().catch((error) => over || draw({ ...model, fetching: null }, error.message));
  function start() {
    draw({ ...model, fetching: { running: true, total: model.size, seconds: 0 } });
    told(async () => {
      await api.pullModel(model.name);
      await look();
    });
  }
  draw(model);
  told(look); // the list that `model` is of may be older than the fetching
  return {
    element,
    stop: () => {
      over = true;
      clearTimeout(timer);
    },
  };
}
