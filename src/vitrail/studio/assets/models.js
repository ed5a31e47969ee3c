// Models: what is here and what could be, with licence, source and size; fetch and remove.
import * as api from "./api.js";
import { dialog, fill, h, toast, tried } from "./dom.js";
import { POLL_MS, pulled, pullError } from "./fetching.js";
import { lang, size, t } from "./i18n.js";
import { icon } from "./icons.js";
import { forgetModels } from "./shelf.js";

export function modelsView(main, wanted) {
  let timer;
  const here = h("div", { class: "shelf" }),
    others = h("div", { class: "shelf" });
  const draw = async () => {
    const models = await api.models();
    fill(
      here,
      models.filter((model) => model.here).map((model) => card(model)),
    );
    fill(
      others,
      models.filter((model) => !model.here).map((model) => card(model)),
    );
    if (wanted) {
      document.getElementById(`model-${wanted}`)?.scrollIntoView({ block: "center" });
      wanted = null;
    }
    clearTimeout(timer);
    if (models.some((model) => model.fetching?.running)) timer = setTimeout(() => tried(draw), POLL_MS);
    forgetModels();
  };
  const pull = (model) =>
    tried(async () => {
      await api.pullModel(model.name);
      await draw();
    });
  const remove = (model) => {
    const ask = dialog(
      t("removeModel", { name: model.name }),
      { close: t("close") },
      h(
        "div",
        { class: "stack" },
        h("p", {}, t("removeHint", { size: size(model.size) })),
        h(
          "div",
          { class: "row" },
          h(
            "button",
            {
              type: "button",
              class: "danger",
              onclick: () =>
                tried(async () => {
                  await api.removeModel(model.name);
                  ask.close();
                  await draw();
                  toast(t("removed", { name: model.name }));
                }),
            },
            icon("trash"),
            t("remove"),
          ),
          h("button", { type: "button", onclick: () => ask.close() }, t("cancel")),
        ),
      ),
    );
  };

  const card = (model) =>
    h(
      "article",
      { class: "model", id: `model-${model.name}` },
      h(
        "div",
        { class: "label-row" },
        h("h3", {}, model.name),
        h(
          "span",
          { class: model.here ? "badge here" : "badge" },
          model.here ? t(model.shipped ? "shipped" : "here") : size(model.size),
        ),
      ),
      model.problem ? h("p", { class: "bad" }, model.problem) : h("p", {}, model[lang] ?? about(model)),
      h(
        "dl",
        {},
        [
          [t("licence"), model.licence],
          [t("credit"), model.credit],
          [t("source"), model.sources?.join(", ")],
          [t("styles"), model.styles?.join(", ")],
          [t("sizeOnDisk"), model.here && model.size ? size(model.size) : null],
        ]
          .filter(([, value]) => value)
          .map(([name, value]) => [h("dt", {}, name), h("dd", {}, value)]),
      ),
      h(
        "div",
        { class: "row" },
        model.here && model.draws
          ? h(
              "a",
              { class: "button", href: `#create/${encodeURIComponent(model.name)}` },
              icon("create"),
              t("try_create"),
            )
          : null,
        model.card
          ? h(
              "button",
              {
                type: "button",
                onclick: () =>
                  dialog(
                    model.name,
                    { close: t("close"), wide: true },
                    h("pre", { style: "max-height:none" }, model.card),
                  ),
              },
              icon("info"),
              t("card"),
            )
          : null,
        model.fetching?.running ? pulled(model) : null,
        !model.here && !model.fetching?.running
          ? h("button", { type: "button", onclick: () => pull(model) }, icon("download"), t("fetch"))
          : null,
        model.here && !model.shipped && !model.foreign
          ? h("button", { type: "button", class: "danger", onclick: () => remove(model) }, icon("trash"), t("remove"))
          : null,
      ),
      model.fetching?.error ? pullError(model.fetching.error) : null,
    );

  fill(
    main,
    h("section", { class: "pane page-head" }, h("h2", {}, t("models")), h("p", {}, t("modelsHint"))),
    here,
    h("section", { class: "pane page-head" }, h("h2", {}, t("catalogue")), h("p", {}, t("catalogueHint"))),
    others,
  );
  tried(draw);
  return () => clearTimeout(timer);
}

const KINDS = [
  "shell_dit",
  "token_transformer",
  "vq_autoencoder",
  "kl_autoencoder",
  "checkpoint",
  "lora",
  "vae",
  "rrdb",
  "migan",
  "biggan",
  "dcgan",
  "embedding",
];
const about = (model) => (KINDS.includes(model.kind) ? t(`model_${model.kind}`) : model.kind.replaceAll("_", " "));
