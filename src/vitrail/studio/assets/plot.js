// Compare settings: a picture for every combination of two settings, the seed the same in all of them.
import * as api from "./api.js";
import { labelled, newSeed, select } from "./controls.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { rose } from "./glass.js";
import { EXAMPLES, fieldName, lang, t } from "./i18n.js";
import { icon } from "./icons.js";
import { cancel, ended, jobs, onJob, submit } from "./jobs.js";
import { detail } from "./picture.js";
import { drawsFromWords, modelList } from "./shelf.js";

const MOST = 64;
const AXES = {
  cfg_scale: { number: true, example: "1, 3, 6" },
  steps: { number: true, example: "8, 16, 32" },
  seed: { number: true, example: "1, 2, 3" },
  shift: { number: true, example: "1, 2, 4" },
  style: { example: "noto, twemoji, fluent-3d" },
  sampler: { example: "euler, heun, dpmpp_2m" },
  schedule: { example: "simple, karras" },
  model: { example: "default, vqgan" },
  replace: { example: "red, blue, green" },
};
const axisName = (axis) => (axis === "replace" ? t("replaceWord") : fieldName(axis));
const split = (text) =>
  text
    .split(/[,，]/)
    .map((part) => part.trim())
    .filter(Boolean);

function valuesOf({ axis, text }) {
  const parts = split(text);
  if (!AXES[axis].number) return parts;
  const numbers = parts.map(Number);
  if (numbers.some(Number.isNaN)) throw new Error(t("notNumbers", { name: axisName(axis) }));
  return numbers;
}

/** The request of one cell. For "replace" the first value is a word of the prompt, and each value stands in its place. */
function requestAt(prompt, seed, model, settings) {
  const request = { kind: "text_to_image", prompt, seed, ...(model !== "default" && { model }) };
  for (const { axis, value, first } of settings) {
    if (axis === "replace") request.prompt = request.prompt.replaceAll(first, value);
    else request[axis] = value;
  }
  return request;
}

export function plotView(main) {
  const now = kept.get("plot") ?? {
    prompt: EXAMPLES[lang][1],
    model: "default",
    x: { axis: "cfg_scale", text: "1, 3, 6" },
    y: { axis: "style", text: "noto, twemoji" },
    made: null,
  };
  const store = () => kept.set("plot", now);
  const out = h("section", { class: "pane plot-out" });
  let cells = new Map(),
    sending = false;

  const axis = (which, label) => {
    const values = h("input", {
      id: `${which}s`,
      value: now[which].text,
      "aria-label": `${label}: ${t("values")}`,
      oninput: () => {
        now[which].text = values.value;
        store();
      },
    });
    const choice = select(
      Object.keys(AXES).map((name) => [name, axisName(name)]),
      now[which].axis,
      (name) => {
        now[which] = { axis: name, text: AXES[name].example };
        values.value = AXES[name].example;
        store();
      },
      { id: which },
    );
    return h("div", { class: "field" }, h("label", { for: which }, label), choice, values);
  };
  const prompt = h("textarea", {
    id: "prompt",
    rows: 2,
    value: now.prompt,
    oninput: () => {
      now.prompt = prompt.value;
      store();
    },
  });
  const models = h("div");
  tried(async () =>
    fill(
      models,
      labelled(
        t("model"),
        select(
          (await modelList()).filter(drawsFromWords).map((one) => [one.name, one.name]),
          now.model,
          (name) => {
            now.model = name;
            store();
          },
        ),
      ),
    ),
  );

  const start = () =>
    tried(async () => {
      if (!now.prompt.trim()) return toast(t("needPrompt"), { bad: true });
      const across = valuesOf(now.x),
        down = valuesOf(now.y);
      if (!across.length || !down.length) return toast(t("needValues"), { bad: true });
      if (across.length * down.length > MOST)
        return toast(t("tooMany", { n: across.length * down.length, most: MOST }), { bad: true });
      if (sending) return undefined; // a second press while the cells of the first are asked for
      sending = true;
      try {
        await askFor(across, down);
      } finally {
        sending = false;
      }
      return undefined;
    });
  const askFor = async (across, down) => {
    const { prompt: words, model, x, y } = structuredClone(now); // it may be written on meanwhile
    const seed = newSeed();
    const made = { x: x.axis, y: y.axis, across, down, ids: [], prompt: words };
    for (const b of down) {
      for (const a of across) {
        const job = await submit(
          requestAt(words, seed, model, [
            { axis: x.axis, value: a, first: across[0] },
            { axis: y.axis, value: b, first: down[0] },
          ]),
        );
        made.ids.push(job.id);
        now.made = made; // the grid before it stays until the server takes this one
        store();
        draw();
      }
    }
  };

  const drawCell = (job) => {
    const cell = cells.get(job.id);
    if (!cell) return;
    const picture = job.pictures[0];
    cell.disabled = !picture;
    cell.onclick = () =>
      detail(picture.id, { siblings: now.made.ids.map((id) => jobs.get(id)?.pictures[0]?.id).filter(Boolean) });
    fill(
      cell,
      picture
        ? h("img", { src: api.file(picture.id), alt: job.title })
        : job.error
          ? h("small", { class: "bad" }, job.error.message)
          : t(job.state),
    );
  };
  const draw = () => {
    const { made } = now;
    if (!made)
      return fill(
        out,
        h("div", { class: "empty" }, rose().element, h("h2", {}, t("plotEmpty")), h("p", {}, t("plotHint"))),
      );
    cells = new Map();
    const rows = made.down.map((b, j) =>
      h(
        "tr",
        {},
        h("th", { scope: "row" }, `${axisName(made.y)} `, h("b", {}, String(b))),
        made.across.map((_, i) => {
          const id = made.ids[j * made.across.length + i],
            cell = h("button", { type: "button", class: "cell", disabled: true }, id ? "…" : "");
          if (id) cells.set(id, cell);
          return h("td", {}, cell);
        }),
      ),
    );
    fill(
      out,
      h(
        "div",
        { class: "row pane" },
        h("h2", {}, made.prompt),
        h("button", { type: "button", onclick: () => tried(() => sheet(made)) }, icon("download"), t("asSheet")),
        made.ids.some((id) => jobs.get(id) && !ended(jobs.get(id)))
          ? h(
              "button",
              {
                type: "button",
                class: "cancel",
                onclick: () =>
                  tried(async () => {
                    for (const id of made.ids) if (jobs.has(id) && !ended(jobs.get(id))) await cancel(id);
                  }),
              },
              t("cancelAll"),
            )
          : null,
      ),
      h(
        "table",
        {},
        h(
          "thead",
          {},
          h(
            "tr",
            {},
            h("td"),
            made.across.map((a) => h("th", { scope: "col" }, `${axisName(made.x)} `, h("b", {}, String(a)))),
          ),
        ),
        h("tbody", {}, rows),
      ),
    );
    for (const id of cells.keys()) {
      if (jobs.has(id)) drawCell(jobs.get(id));
      else
        api.job(id).then(
          (job) => {
            jobs.set(id, job);
            drawCell(job);
          },
          () => fill(cells.get(id) ?? h("i"), "–"),
        );
    }
    return undefined;
  };

  fill(
    main,
    h(
      "div",
      { class: "panes work" },
      h(
        "form",
        {
          class: "pane form",
          onsubmit: (event) => {
            event.preventDefault();
            start();
          },
        },
        h(
          "div",
          { class: "scroll" },
          h("div", { class: "page-head" }, h("h2", {}, t("plot")), h("p", {}, t("plotHint"))),
          labelled(t("prompt"), prompt),
          axis("x", t("axisX")),
          axis("y", t("axisY")),
          h("small", {}, t("values")),
          models,
        ),
        h("div", { class: "foot" }, h("button", { class: "main", id: "go" }, icon("plot"), t("run"))),
      ),
      out,
    ),
  );
  draw();
  const stop = onJob((job) => {
    if (cells.has(job.id)) {
      drawCell(job);
      if (ended(job) && [...cells.keys()].every((id) => jobs.get(id) && ended(jobs.get(id)))) draw();
    }
  });
  return stop;
}

/** The whole grid as one picture with its labels, drawn and saved in the browser. */
async function sheet(made) {
  const side = 256,
    left = 190,
    top = 64;
  const canvas = new OffscreenCanvas(left + side * made.across.length, top + side * made.down.length),
    pen = canvas.getContext("2d");
  pen.fillStyle = "#faf8f3";
  pen.fillRect(0, 0, canvas.width, canvas.height);
  pen.fillStyle = "#1f2027";
  pen.font = "15px sans-serif";
  pen.textBaseline = "middle";
  made.across.forEach((a, i) => pen.fillText(`${axisName(made.x)} ${a}`, left + side * i + 8, top / 2, side - 16));
  for (const [j, b] of made.down.entries()) {
    pen.fillText(`${axisName(made.y)} ${b}`, 8, top + side * (j + 0.5), left - 16);
    for (let i = 0; i < made.across.length; i += 1) {
      const picture = jobs.get(made.ids[j * made.across.length + i])?.pictures[0];
      if (picture)
        pen.drawImage(
          await createImageBitmap(await api.fetchBlob(picture.id)),
          left + side * i + 2,
          top + side * j + 2,
          side - 4,
          side - 4,
        );
    }
  }
  const link = h("a", {
    href: URL.createObjectURL(await canvas.convertToBlob({ type: "image/png" })),
    download: "vitrail-settings.png",
  });
  link.click();
}
