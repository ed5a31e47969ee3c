// The codebook: what each code of a tokenizer draws, and how often it is used.
import * as api from "./api.js";
import { chips, labelled, select } from "./controls.js";
import { fill, h, kept, tried } from "./dom.js";
import { rose } from "./glass.js";
import { t } from "./i18n.js";
import { hasTokenizer, modelList } from "./shelf.js";

export function codebookView(main) {
  const body = h("div", { class: "stack pane" }),
    head = h("div");
  let model = kept.get("codebook") ?? "vqgan",
    order = kept.get("codeOrder") ?? "use";
  const draw = () =>
    tried(async () => {
      fill(body, h("div", { class: "empty" }, rose({ share: 0.3 }).element, h("p", {}, t("reading"))));
      const found = await api.codebook(model);
      const most = found.shares[0] || 1,
        src = api.codebookSheet(model, found.digest);
      const codes = found.order.map((code, i) => ({
        code,
        share: found.shares[i],
        x: (i % found.columns) * found.tile,
        y: Math.floor(i / found.columns) * found.tile,
      }));
      const list = h("div", { class: "codes", role: "list" });
      const show = async (by) => {
        order = by;
        kept.set("codeOrder", by);
        const sorted = by === "use" ? codes : await byColour(src, codes, found.tile);
        fill(
          list,
          sorted.map((one) => codeCell(one, src, most)),
        );
      };
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
        h(
          "div",
          { class: "label-row" },
          h("p", { class: "note" }, t("codebookHow", { n: codes.length })),
          chips(
            t("codeOrder"),
            [
              ["use", t("byUse")],
              ["colour", t("byColour")],
            ],
            order,
            (by) => tried(() => show(by)),
            { named: false },
          ),
        ),
        list,
      );
      await show(order);
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

const codeCell = ({ code, share, x, y }, src, most) =>
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
  );

/** The codes along the rainbow, the colourless ones behind it; each by the mean of its drawing. */
async function byColour(src, codes, tile) {
  const sheet = Object.assign(new Image(), { src });
  await sheet.decode();
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const inner = tile / 2; // the edge of a drawing fades
  return codes
    .map((one) => {
      pen.imageSmoothingQuality = "high";
      pen.drawImage(sheet, one.x + tile / 4, one.y + tile / 4, inner, inner, 0, 0, 1, 1);
      const [r, g, b] = pen.getImageData(0, 0, 1, 1).data,
        high = Math.max(r, g, b),
        range = high - Math.min(r, g, b);
      const hue = (high === r ? (g - b) / range + 6 : high === g ? (b - r) / range + 2 : (r - g) / range + 4) % 6;
      return { one, place: range < 40 ? 10 + (255 - high) / 255 : hue };
    })
    .sort((a, b) => a.place - b.place)
    .map(({ one }) => one);
}

export const figure = (value, label) => h("div", { class: "figure" }, h("b", {}, String(value)), h("small", {}, label));
