// Create: words on the left, the picture on the right, the latest ones below it.
import * as api from "./api.js";
import { chips, labelled, select, setting } from "./controls.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { fitted, withSize } from "./fitted.js";
import { EXAMPLES, lang, t } from "./i18n.js";
import { icon } from "./icons.js";
import { jobs, onJob, submit } from "./jobs.js";
import { fits, GROUPS } from "./setting_groups.js";
import { drawsFromWords, modelList } from "./shelf.js";
import { stage } from "./stage.js";
import { latestStrip } from "./strip.js";

let values = kept.get("form", sessionStorage) ?? { n: 1 };
const store = () => kept.set("form", values, sessionStorage);
/** Put settings into the form; the page shows them when it is drawn next. */
function fillForm(settings) {
  values = { n: 1, ...settings };
  store();
}

const PROGRAMS = { a1111: "A1111", comfyui: "ComfyUI", invokeai: "InvokeAI", fooocus: "Fooocus", novelai: "NovelAI" };

const chosen = (models) => models.find((one) => one.name === (values.model ?? "default")) ?? models[0];

/** Put what the server found in a picture into the form, as the model that is to draw it can serve it. */
export async function fillFrom({ program, settings, notes }) {
  const models = (await modelList()).filter(drawsFromWords);
  let fit;
  if (program === "vitrail") {
    // Its own settings are possible; the size of a picture that was enlarged or extended may not be.
    const model = models.find((one) => one.name === (settings.model ?? "default"));
    fit = model?.sizes?.length ? withSize(settings, model) : { settings, notes: [] };
  } else {
    // The other program's model is not here, so the one that was chosen stays and has to serve what it can.
    const model = chosen(models);
    fit = fitted(settings, model);
    if (values.model) fit.settings = { ...fit.settings, model: model?.name };
  }
  fillForm(fit.settings);
  return [...fit.notes, ...notes];
}

/** Take the settings of a picture file, whichever program made it, into the form; `show()` draws it then. */
export const fillFromPicture = (file, show) =>
  tried(async () => {
    const found = await api.settingsOf(file);
    const notes = await fillFrom(found);
    show();
    const from = t("filled", { program: PROGRAMS[found.program] ?? found.program });
    toast([from, ...notes].join(" "), { seconds: 8 + 2 * notes.length });
  });

let schema;
const loadSchema = () =>
  (schema ??= api.form().catch((error) => {
    schema = undefined;
    throw error;
  }));

export function createView(main, model) {
  if (model) {
    values = { ...values, model };
    store();
    history.replaceState(null, "", "#create");
  }
  const form = h("form", {
    class: "pane form",
    "aria-label": t("create"),
    onsubmit: (event) => {
      event.preventDefault();
      start();
    },
  });
  const shown = stage({ title: t("emptyStage"), hint: t("emptyStageHint") });
  const strip = latestStrip((id) => shown.showPicture(id));
  fill(main, h("div", { class: "panes work" }, form, h("div", { class: "panes rows" }, shown.element, strip.element)));

  const start = () =>
    tried(async () => {
      const request = {
        kind: "text_to_image",
        ...Object.fromEntries(Object.entries(values).filter(([, value]) => value != null && value !== "")),
      };
      shown.follow(await submit(request));
    });
  tried(async () => {
    const [{ fields, samplers, schedules }, models] = await Promise.all([loadSchema(), modelList()]);
    drawForm(form, fields, { sampler: samplers, schedule: schedules }, models.filter(drawsFromWords));
  });
  // Counted, because a job that ends at once is told by the list alone, without an event for each picture.
  const counts = new Map([...jobs.values()].map((job) => [job.id, job.pictures.length]));
  let soon = null;
  const stop = onJob(({ id, pictures }) => {
    if ((counts.get(id) ?? 0) >= pictures.length) return;
    counts.set(id, pictures.length);
    soon ??= setTimeout(() => {
      soon = null;
      strip.refresh();
    }, 60);
  });
  return () => {
    shown.stop();
    stop();
    clearTimeout(soon);
  };
}

function drawForm(form, fields, labels, models) {
  const set = (name, value) => {
    if (value == null || value === "") delete values[name];
    else values[name] = value;
    store();
    count();
  };
  const redraw = () => drawForm(form, fields, labels, models);
  const model = chosen(models);
  if (values.style && model?.styles?.length && ![...model.styles, "none"].includes(values.style)) delete values.style;

  const prompt = h("textarea", {
    id: "prompt",
    value: values.prompt ?? "",
    maxlength: 2000,
    required: true,
    rows: 3,
    placeholder: t("promptPlaceholder"),
    oninput: (event) => set("prompt", event.target.value),
    onkeydown: (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
        event.preventDefault();
        form.requestSubmit();
      }
    },
  });
  const idea = () => {
    const others = EXAMPLES[lang].filter((one) => one !== prompt.value);
    prompt.value = others[Math.floor(Math.random() * others.length)];
    set("prompt", prompt.value);
    prompt.focus();
  };
  const file = h("input", {
    type: "file",
    id: "settings-file",
    class: "skip",
    accept: "image/png,image/jpeg,image/webp",
    onchange: () => file.files[0] && fillFromPicture(file.files[0], redraw),
  });
  const rest = Object.entries(GROUPS).map(([group, names]) => [
    group,
    fields.filter((field) => names.includes(field.name) && fits(field.name, model)),
  ]);
  const changed = h("small");
  const count = () => {
    const n = rest.flatMap(([, shown]) => shown).filter((field) => values[field.name] != null).length;
    changed.textContent = n ? t("changed", { n }) : "";
  };
  const folded = h(
    "details",
    {
      id: "more",
      open: kept.get("more", sessionStorage) ?? false,
      ontoggle: () => kept.set("more", folded.open, sessionStorage),
    },
    h("summary", {}, h("span", {}, t("advanced")), changed),
    rest
      .filter(([, shown]) => shown.length)
      .map(([group, shown]) =>
        h(
          "fieldset",
          {},
          h("legend", {}, t(group)),
          shown.map((field) =>
            setting(field, values[field.name], (value) => set(field.name, value), labels[field.name]),
          ),
        ),
      ),
    h(
      "button",
      {
        type: "button",
        class: "quiet",
        onclick: () => {
          for (const name of Object.values(GROUPS).flat()) delete values[name];
          store();
          redraw();
        },
      },
      icon("undo"),
      t("resetAll"),
    ),
  );

  fill(
    form,
    h(
      "div",
      { class: "scroll" },
      h(
        "div",
        { class: "field" },
        h(
          "div",
          { class: "label-row" },
          h("label", { for: "prompt" }, t("prompt")),
          h("button", { type: "button", class: "quiet small", onclick: idea }, icon("idea"), t("surprise")),
        ),
        prompt,
      ),
      model?.styles?.length
        ? chips(
            t("style"),
            [["", t("anyStyle")], ...model.styles.map((style) => [style, style])],
            values.style ?? "",
            (value) => set("style", value),
          )
        : null,
      sizeChips(model, set),
      chips(
        t("count"),
        [1, 2, 4, 8].map((n) => [n, String(n)]),
        values.n,
        (n) => set("n", n),
      ),
      h(
        "div",
        { class: "pair" },
        seedField(set),
        labelled(
          t("model"),
          select(
            models.map((one) => [one.name, one.name]),
            model?.name ?? "",
            (name) => {
              set("model", name === "default" ? null : name);
              const sized = withSize(values, chosen(models));
              values = sized.settings;
              store();
              redraw();
              for (const note of sized.notes) toast(note);
            },
            { id: "model" },
          ),
        ),
      ),
      folded,
      h(
        "div",
        {},
        file,
        h("label", { for: "settings-file", class: "button quiet small" }, icon("folder"), t("fromPicture")),
      ),
    ),
    h(
      "div",
      { class: "foot" },
      h(
        "button",
        { class: "main", id: "go" },
        icon("create"),
        t("go"),
        h("kbd", { "aria-hidden": "true" }, t("goHint")),
      ),
    ),
  );
  count();
}

function sizeChips(model, set) {
  const { width, height } = values;
  const now = width && height ? `${width}x${height}` : "";
  const sizes = [...(model?.sizes ?? [])];
  // A size that is not on the list, of a dropped picture or from More settings, is seen where sizes are looked for.
  if (now && sizes.length && !sizes.some(([w, h]) => w === width && h === height)) sizes.push([width, height]);
  if (sizes.length < 2) return null;
  const square = sizes.every(([w, h]) => w === h);
  return chips(
    t("pixelSize"),
    [["", t("anySize")], ...sizes.map(([w, h]) => [`${w}x${h}`, square ? String(w) : `${w} × ${h}`])],
    now,
    (value) => {
      const [wide, high] = value ? value.split("x").map(Number) : [null, null];
      set("width", wide);
      set("height", high);
    },
  );
}

function seedField(set) {
  const input = h("input", {
    id: "seed",
    inputmode: "numeric",
    value: values.seed ?? "",
    placeholder: t("random"),
    oninput: () => set("seed", /^\d+$/.test(input.value) ? Number(input.value) : null),
  });
  const put = (value) => {
    input.value = value ?? "";
    set("seed", value);
  };
  return h(
    "div",
    { class: "field" },
    h("label", { for: "seed" }, t("seed")),
    h(
      "div",
      { class: "with-buttons" },
      input,
      h(
        "button",
        {
          type: "button",
          class: "quiet",
          "aria-label": t("dice"),
          title: t("dice"),
          onclick: () => put(crypto.getRandomValues(new Uint32Array(1))[0]),
        },
        icon("dice"),
      ),
      h(
        "button",
        { type: "button", class: "quiet", "aria-label": t("noDice"), title: t("noDice"), onclick: () => put(null) },
        icon("close"),
      ),
    ),
  );
}
