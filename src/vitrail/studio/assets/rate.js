// Blind rating: two pictures of the same words, from whom stays hidden; and what all answers together say.
import * as api from "./api.js";
import { labelled, newSeed, select } from "./controls.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { rose } from "./glass.js";
import { EXAMPLES, lang, t } from "./i18n.js";
import { icon } from "./icons.js";
import { onPictures, submit } from "./jobs.js";
import { typing } from "./keys.js";
import { drawsFromWords, modelList } from "./shelf.js";

const NAMES = {
  model: (picture) => picture.model,
  style: (picture) => picture.record?.request?.style ?? null,
  sampler: (picture) => picture.record?.request?.sampler ?? null,
};
/** Who can be set against whom in pictures that are drawn for it. */
const CONTENDERS = {
  model: (models) => models.map((one) => one.name),
  style: (models) => models.find((one) => one.name === "default")?.styles ?? [],
  sampler: async () => Object.keys((await api.form()).samplers),
};
const ANSWERS = { ArrowLeft: "left", ArrowRight: "right", ArrowDown: "tie" };

const MOST_REMEMBERED = 5000;
const keyOf = (pair) =>
  pair
    .map((picture) => picture.id.slice(0, 12))
    .sort()
    .join();

/** Pairs of pictures of the same words from two contenders, in random order and on random sides. */
function pairsOf(pictures, name) {
  const byWords = Map.groupBy(
    pictures.filter((one) => one.prompt && one.kind === "text_to_image" && name(one)),
    (one) => one.prompt.toLowerCase(),
  );
  const pairs = [];
  for (const same of byWords.values()) {
    for (const [i, a] of same.entries())
      for (const b of same.slice(0, i)) if (name(a) !== name(b)) pairs.push(Math.random() < 0.5 ? [a, b] : [b, a]);
  }
  return pairs
    .map((pair) => [Math.random(), pair])
    .sort(([a], [b]) => a - b)
    .map(([, pair]) => pair);
}

export function rateView(main) {
  const area = h("section", { class: "pane stack" }),
    table = h("section", { class: "pane stack" });
  let pairs = [],
    rated = new Set(), // what was answered in this browser is not asked again
    given = 0,
    by = "model",
    busy = false;

  const left = h("small", { style: "text-align:center" });
  const sayLeft = () => fill(left, t("pairsLeft", { n: pairs.length }));
  const draw = () => {
    const pair = pairs[0];
    sayLeft();
    const choice = labelled(
      t("rateBy"),
      select(
        [
          ["model", t("model")],
          ["style", t("style")],
          ["sampler", t("sampler")],
        ],
        by,
        (value) => {
          by = value;
          load();
        },
        { style: "max-width:14rem" },
      ),
    );
    const head = h(
      "div",
      { class: "row", style: "justify-content:space-between" },
      h("div", { class: "page-head" }, h("h2", {}, t("rate")), h("p", {}, t("rateHint"))),
      choice,
    );
    if (!pair)
      return fill(area, head, makePairs(given, by));
    return fill(
      area,
      head,
      h("h3", { class: "words", style: "text-align:center" }, pair[0].prompt),
      h(
        "div",
        { class: "pairing" },
        pair.map((picture, i) =>
          h(
            "button",
            {
              type: "button",
              "aria-label": t(i ? "rightBetter" : "leftBetter"),
              onclick: () => answer(i ? "right" : "left"),
            },
            h("img", { src: api.file(picture.id), alt: t(i ? "rightOne" : "leftOne") }),
            h("kbd", { "aria-hidden": "true" }, i ? "→" : "←"),
          ),
        ),
      ),
      h(
        "div",
        { class: "row", style: "justify-content:center" },
        h(
          "button",
          { type: "button", onclick: () => answer("tie") },
          t("tie"),
          h("kbd", { "aria-hidden": "true" }, "↓"),
        ),
      ),
      left,
    );
  };
  const answer = (winner) =>
    tried(async () => {
      if (busy || !pairs.length) return;
      busy = true;
      const [left, right] = pairs[0];
      try {
        await api.vote({
          prompt: left.prompt,
          left: left.id,
          right: right.id,
          left_name: NAMES[by](left),
          right_name: NAMES[by](right),
          winner,
          by,
        });
        rated.add(keyOf(pairs.shift()));
        kept.set(`rated.${by}`, [...rated].slice(-MOST_REMEMBERED));
        given += 1;
        draw();
        await showScores();
      } finally {
        busy = false;
      }
    });
  const showScores = async () => {
    const about = by,
      rows = await api.scores(by).catch((error) => error);
    if (about !== by) return undefined; // another question was chosen meanwhile
    if (rows instanceof Error)
      return fill(table, h("h2", {}, t("scores")), h("p", { class: "note", role: "status" }, rows.message));
    if (!rows.length) return fill(table, h("h2", {}, t("scores")), h("p", { class: "note" }, t("noVotes")));
    const low = Math.min(...rows.map((one) => one.low)),
      wide = Math.max(...rows.map((one) => one.high)) - low || 1,
      at = (value) => `${(100 * (value - low)) / wide}%`;
    return fill(
      table,
      h("h2", {}, t("scores")),
      h("p", { class: "note" }, t("scoresHow")),
      h(
        "div",
        { class: "wide-table" },
        h(
          "table",
          {},
          h(
            "thead",
            {},
            h(
              "tr",
              {},
              h("th", {}, t("contender")),
              h("th", { class: "n" }, t("strengthLog")),
              h("th", {}, t("interval")),
              h("th", { class: "n" }, t("votes")),
            ),
          ),
          h(
            "tbody",
            {},
            rows.map((one) =>
              h(
                "tr",
                {},
                h("td", {}, one.name),
                h("td", { class: "n" }, one.strength.toFixed(2)),
                h(
                  "td",
                  {},
                  h(
                    "div",
                    { class: "interval", role: "img", "aria-label": `${one.low.toFixed(2)} – ${one.high.toFixed(2)}` },
                    h("i", { style: `left:${at(one.low)};width:${(100 * (one.high - one.low)) / wide}%` }),
                    h("b", { style: `left:${at(one.strength)}` }),
                  ),
                  h("small", {}, `${one.low.toFixed(2)} – ${one.high.toFixed(2)}`),
                ),
                h("td", { class: "n" }, String(one.votes)),
              ),
            ),
          ),
        ),
      ),
      h("p", {}, h("a", { class: "button", href: api.scoresCsv(by), download: `ratings-${by}.csv` }, icon("download"), t("csv"))),
    );
  };
  const load = () =>
    tried(async () => {
      const about = by,
        found = await find();
      if (about !== by) return; // another question was chosen meanwhile
      pairs = found;
      given = 0;
      draw();
      await showScores();
    });
  const find = async () => {
    rated = new Set(kept.get(`rated.${by}`) ?? []);
    const name = NAMES[by];
    return pairsOf((await api.pictures({ limit: 500 })).pictures, name).filter((pair) => !rated.has(keyOf(pair)));
  };
  // Pairs that were asked for here come by themselves, behind those that wait.
  const stopPictures = onPictures(() =>
    tried(async () => {
      const about = by,
        found = await find();
      if (about !== by) return;
      const known = new Set([...rated, ...pairs.map(keyOf)]);
      const more = found.filter((pair) => !known.has(keyOf(pair)));
      pairs.push(...more);
      if (more.length && more.length === pairs.length) draw();
      else sayLeft();
    }),
  );
  const keys = (event) => {
    if (ANSWERS[event.key] && pairs.length && !typing(event) && !document.querySelector("dialog[open]")) {
      event.preventDefault();
      answer(ANSWERS[event.key]);
    }
  };
  addEventListener("keydown", keys);
  fill(main, h("div", { class: "panes" }, area, table));
  load();
  return () => {
    removeEventListener("keydown", keys);
    stopPictures();
  };
}

/** Nothing to rate, or nothing any more after `given` answers: make pictures of the same words from two sides. */
function makePairs(given, by) {
  const box = h(
    "div",
    { class: "empty" },
    rose({ share: given ? 1 : 0.5 }).element,
    h("h2", {}, given ? t("allRated", { n: given }) : t("needPairs")),
    h("p", {}, t(given ? "morePairsHint" : "needPairsHint")),
  );
  tried(async () => {
    const sides = await CONTENDERS[by]((await modelList()).filter(drawsFromWords));
    if (sides.length < 2) return;
    const chosen = sides.slice(0, 2);
    const words = h("textarea", { rows: 4, value: EXAMPLES[lang].slice(0, 4).join("\n"), "aria-label": t("prompts") });
    box.append(
      h(
        "div",
        { class: "pair" },
        chosen.map((name, i) =>
          labelled(
            `${t(by)} ${i + 1}`,
            select(
              sides.map((one) => [one, one]),
              name,
              (value) => {
                chosen[i] = value;
              },
            ),
          ),
        ),
      ),
      labelled(t("prompts"), words),
      h(
        "button",
        {
          type: "button",
          class: "main",
          onclick: () =>
            tried(async () => {
              const prompts = words.value
                .split("\n")
                .map((line) => line.trim())
                .filter(Boolean);
              if (!prompts.length) return toast(t("needPrompts"), { bad: true });
              if (chosen[0] === chosen[1]) return toast(t("needTwoSides"), { bad: true });
              for (const prompt of prompts) {
                const seed = newSeed(); // chance favours neither
                for (const side of chosen) await submit({ kind: "text_to_image", prompt, seed, [by]: side });
              }
              toast(t("pairsComing"));
              return undefined;
            }),
        },
        icon("create"),
        t("makePairs"),
      ),
    );
  });
  return box;
}
