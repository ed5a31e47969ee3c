// Walk: the way from one picture to the next as a film, and a mixture of them with sliders.
import * as api from "./api.js";
import { chips, labelled, newSeed, select, slider } from "./controls.js";
import { fill, h, toast, tried } from "./dom.js";
import { filmOf, frame } from "./film.js";
import { EXAMPLES, lang, t } from "./i18n.js";
import { icon } from "./icons.js";
import { submit, titleOf } from "./jobs.js";
import { actions } from "./picture.js";
import { hasTokenizer, modelList } from "./shelf.js";
import { stage } from "./stage.js";

const MOST_STOPS = 8;
// Kept while the page is open; the words in the language that it began in.
let words = null;
const form = { mode: "film", frames: 16, loop: false, curve: "linear", fps: 8, model: null };

/** Put the settings of a walk into the form; the page shows them when it is drawn next. */
export function fillWalk({ stops, weights, frames, loop, curve, fps, model }) {
  const named = stops
    .map(({ prompt, seed }, i) => ({ prompt: prompt ?? "", seed, weight: weights?.[i] ?? (i ? 0 : 1) }))
    .filter((one) => one.prompt);
  if (named.length > 1) words = named;
  Object.assign(form, { mode: weights ? "mix" : "film", loop, curve, fps, model });
  if (!weights) form.frames = frames;
}

export function walkView(main) {
  words ??= [EXAMPLES[lang][1], EXAMPLES[lang][4]].map((prompt, i) => ({ prompt, seed: i + 1, weight: i ? 0 : 1 }));
  let models = [],
    stopFilm = () => {},
    mixing = null;
  const panel = h("form", {
    class: "pane form",
    onsubmit: (event) => {
      event.preventDefault();
      start();
    },
  });
  const shown = stage({ title: t("walk"), hint: t("walkHint"), remember: "walked", done: (job) => finished(job) });

  const request = () => ({
    kind: "walk",
    frames: form.mode === "film" ? form.frames : 2,
    fps: form.fps,
    curve: form.curve,
    ...(form.model && { model: form.model }),
    stops: words.map(({ prompt, seed }) => ({ prompt, seed })),
    ...(form.mode === "film"
      ? { loop: form.loop }
      : { frames: Math.max(2, words.length), weights: words.map((one) => one.weight) }),
  });
  const start = () =>
    tried(async () => {
      if (words.some((one) => !one.prompt.trim())) return toast(t("needWords"), { bad: true });
      const job = await submit(request());
      mixing = form.mode === "mix" ? job.id : null;
      shown.follow(job);
      return undefined;
    });
  // A mixture is drawn anew soon after a slider rests.
  let rest;
  const mixSoon = () => {
    clearTimeout(rest);
    rest = setTimeout(() => {
      if (mixing) start();
    }, 450);
  };

  const finished = (job) => {
    stopFilm();
    // Behind the frames that were asked for comes the film itself, as one file.
    const asked = job.request?.weights ? 1 : (job.request?.frames ?? job.pictures.length);
    const frames = job.pictures.slice(0, asked),
      whole = job.pictures[asked];
    if (frames.length < 2)
      return fill(shown.element, h("div", { class: "result-of" }, frame(frames[0], titleOf(job)), actions({ ...frames[0], kind: job.kind })));
    const film = filmOf(frames, job.request?.fps ?? form.fps);
    stopFilm = film.stop;
    const save = whole
      ? h("a", { class: "button", href: api.file(whole.id), download: true }, icon("download"), t("download"))
      : null;
    return fill(shown.element, h("div", { class: "result-of" }, film.element, save));
  };

  const stopRow = (one, i) =>
    h(
      "li",
      { class: "field" },
      h(
        "label",
        { for: `stop-${i}` },
        i === 0 ? t("from") : i === words.length - 1 && form.mode === "film" ? t("to") : t("via", { n: i + 1 }),
      ),
      h(
        "div",
        { class: "with-buttons" },
        h("input", {
          id: `stop-${i}`,
          value: one.prompt,
          oninput: (event) => {
            one.prompt = event.target.value;
          },
        }),
        h(
          "button",
          {
            type: "button",
            class: "quiet",
            title: t("dice"),
            "aria-label": `${t("dice")}: ${one.prompt}`,
            onclick: () => {
              one.seed = newSeed();
              if (mixing) start();
              else toast(`${t("seed")} ${one.seed}`);
            },
          },
          icon("dice"),
        ),
        words.length > 2
          ? h(
              "button",
              {
                type: "button",
                class: "quiet",
                "aria-label": `${t("delete")}: ${one.prompt}`,
                onclick: () => {
                  words.splice(i, 1);
                  draw();
                },
              },
              icon("close"),
            )
          : null,
      ),
      form.mode === "mix"
        ? slider(t("weight"), {
            min: -1,
            max: 2,
            step: 0.05,
            value: one.weight,
            show: (value) => `${Math.round(100 * value)} %`,
            oninput: (value) => {
              one.weight = value;
              mixSoon();
            },
          }).element
        : null,
    );

  const draw = () =>
    fill(
      panel,
      h(
        "div",
        { class: "scroll" },
        h("div", { class: "page-head" }, h("h2", {}, t("walk")), h("p", {}, t("walkHint"))),
        chips(
          t("walkMode"),
          [
            ["film", t("walkFilm")],
            ["mix", t("walkMix")],
          ],
          form.mode,
          (mode) => {
            form.mode = mode;
            mixing = null;
            draw();
          },
          { named: false },
        ),
        h("ul", { class: "stops" }, words.map(stopRow)),
        words.length < MOST_STOPS
          ? h(
              "button",
              {
                type: "button",
                class: "quiet",
                onclick: () => {
                  words.push({ prompt: EXAMPLES[lang][words.length % 6], seed: words.length + 1, weight: 0 });
                  draw();
                },
              },
              icon("plus"),
              t("addStop"),
            )
          : null,
        form.mode === "film"
          ? [
              slider(t("frames"), {
                min: 4,
                max: 60,
                value: form.frames,
                oninput: (value) => {
                  form.frames = value;
                },
              }).element,
              chips(
                t("curve"),
                [
                  ["linear", t("straight")],
                  ["slerp", t("arc")],
                ],
                form.curve,
                (value) => {
                  form.curve = value;
                },
              ),
              h(
                "label",
                { class: "check" },
                h("input", {
                  type: "checkbox",
                  checked: form.loop,
                  onchange: (event) => {
                    form.loop = event.target.checked;
                  },
                }),
                t("loop"),
              ),
            ]
          : null,
        models.length > 1
          ? labelled(
              t("model"),
              select(
                models.map((one) => [one.name, one.name]),
                form.model ?? "",
                (name) => {
                  form.model = name;
                },
              ),
            )
          : null,
      ),
      h("div", { class: "foot" }, h("button", { class: "main", id: "go" }, icon("walk"), t("run"))),
    );

  fill(main, h("div", { class: "panes work" }, panel, shown.element));
  draw();
  tried(async () => {
    models = (await modelList()).filter(hasTokenizer);
    const named = (name) => models.find((one) => one.name === name);
    form.model = (named(form.model) ?? named("vqgan") ?? models[0])?.name;
    draw();
  });
  return () => {
    stopFilm();
    clearTimeout(rest);
    shown.stop();
  };
}
