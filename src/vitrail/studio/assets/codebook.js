// The codebook: what each code of a tokenizer draws, and how often it is used.
import * as api from "./api.js";
import { labelled, select } from "./controls.js";
import { fill, h, kept, tried } from "./dom.js";
import { rose } from "./glass.js";
import { t } from "./i18n.js";
import { hasTokenizer, modelList } from "./shelf.js";

export function codebookView(main) {
  const body = h("div", { class: "stack pane" }),
    head = h("div");
  let model = kept.get("codebook") ?? "vqgan";
  const draw = () =>
    tried(async () => {
      fill(body, h("div", { class: "empty" }, rose({ share: 0.3 }).element, h("p", {}, t("reading"))));
      const found = await api.codebook(model);
      const most = found.shares[0] || 1,
        src = api.codebookSheet(model, found.digest);
      const sorted = found.order.map((code, i) => ({
        code,
        share: found.shares[i],
        x: (i % found.columns) * found.tile,
        y: Math.floor(i / found.columns) * found.tile,
      }));
      fill(
        body,
        h(
          "div",
          { class: "figures" },
          figure(found.codes, t("codes")),
          figure(`${found.used} (${Math.round((100 * found.used) / found.codes)} %)`, t("codesUsed")),
          figure(found.perplexity.toFixed(0), t("perplexity")),
          figure(`${(100 * found.shares.slice(0, 10).reduce((a, b) => a + b, 0)).toFixed(0)} %`, t("topTen")),
        ),
        h("p", { class: "note" }, t("codebookHow", { n: sorted.length })),
        h(
          "div",
          { class: "codes", role: "list" },
          sorted.map(({ code, share, x, y }) =>
            h(
              "div",
              { class: "code", role: "listitem", title: `${t("code")} ${code}: ${(100 * share).toPrecision(2)} %` },
              h("i", {
                role: "img",
                "aria-label": `${t("code")} ${code}`,
                style: `background-image:url("${src}");background-position:-${x}px -${y}px`,
              }),
              h("span", {}, `${code} · ${share ? `${(100 * share).toPrecision(2)} %` : "0"}`),
              h("u", { style: `width:${Math.round((100 * share) / most)}%` }),
            ),
          ),
        ),
      );
    });
  fill(
    main,
    h(
      "div",
      { class: "panes" },
      h(
        "div",
        { class: "pane stack" },
        h("div", { class: "page-head" }, h("h2", {}, t("codebook")), h("p", {}, t("codebookHint"))),
        head,
      ),
      body,
    ),
  );
  tried(async () => {
    const models = (await modelList()).filter(hasTokenizer);
    if (!models.length) return fill(body, h("p", { class: "note" }, t("noTokenizer")));
    if (!models.some((one) => one.name === model)) model = models[0].name;
    fill(
      head,
      labelled(
        t("model"),
        select(
          models.map((one) => [one.name, one.name]),
          model,
          (name) => {
            model = name;
            kept.set("codebook", name);
            draw();
          },
          { style: "max-width:20rem" },
        ),
      ),
    );
    return draw();
  });
}

export const figure = (value, label) => h("div", { class: "figure" }, h("b", {}, String(value)), h("small", {}, label));
