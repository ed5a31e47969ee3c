// Create: words on the left, the picture on the right, the latest ones below it.
import * as api from "./api.js";
import { chips, labelled, newSeed, select, setting } from "./controls.js";
import { fill, h, kept, toast, tried } from "./dom.js";
import { fitted, listed, withSize } from "./fitted.js";
import { EXAMPLES, lang, sentence, t } from "./i18n.js";
import { icon } from "./icons.js";
import { onPictures, submit } from "./jobs.js";
import { missingLoras, withoutLoras } from "./loras.js";
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

const named = (models, name) => models.find((one) => one.name === name);
const chosen = (models) => named(models, values.model) ?? named(models, "default") ?? models[0];

/** Put what the server found in a picture into the form, as the model that is to draw it can serve it. */
export async function fillFrom({ program, settings, notes }) {
  const shelf = await modelList(),
    models = shelf.filter(drawsFromWords);
  const own = program === "vitrail" && models.find((one) => one.name === (settings.model ?? "default"));
  let fit;
  if (own) {
    // Its own settings are possible; the size of a picture that was enlarged or extended may not be.
    fit = own.sizes?.length ? withSize(settings, own) : { settings, notes: [] };
  } else {
    // The model that drew it is not here, so the one that was chosen stays and has to serve what it can.
    const { model: gone, ...rest } = settings,
      model = chosen(models);
    fit = fitted(rest, model, shelf, { strange: program !== "vitrail" });
    if (gone && model) fit.notes.unshift(t("modelGone", { name: gone, model: model.name }));
    if (values.model) fit.settings = { ...fit.settings, model: model?.name };
  }
  fillForm(fit.settings);
  return [...fit.notes, ...notes.map(sentence)];
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
  const shown = stage({ title: t("emptyStage"), hint: t("emptyStageHint"), mend });
  const strip = latestStrip((id) => shown.showPicture(id));
  fill(main, h("div", { class: "panes work" }, form, h("div", { class: "panes rows" }, shown.element, strip.element)));

  const start = () =>
    tried(async () => {
      if (!values.prompt?.trim()) return toast(t("needPrompt"), { bad: true }); // blanks pass for words in a browser
      const request = {
        kind: "text_to_image",
        ...Object.fromEntries(Object.entries(values).filter(([, value]) => value != null && value !== "")),
      };
      shown.follow(await submit(request));
      return undefined;
    });
  // A LoRA that is not here, named in a tag: the picture can be drawn without it.
  async function mend({ request }) {
    const names = missingLoras(request, await modelList());
    if (!names.length) return null;
    return h(
      "button",
      {
        type: "button",
        onclick: () => {
          fillForm(withoutLoras(values, names));
          redraw();
          tried(async () => shown.follow(await submit(withoutLoras(request, names))));
        },
      },
      icon("create"),
      t("withoutLora", { names: listed(names) }),
    );
  }
  let redraw = () => {};
  tried(async () => {
    const [{ fields, samplers, schedules }, shelf] = await Promise.all([loadSchema(), modelList()]);
    const models = shelf.filter(drawsFromWords),
      name = values.model;
    if (name && models.length && chosen(models).name !== name) {
      // It was removed since, or the address names one that is not here.
      fillForm({ ...values, model: null });
      toast(t("modelGone", { name, model: chosen(models).name }));
    }
    redraw = () => drawForm(form, fields, { sampler: samplers, schedule: schedules }, models);
    redraw();
  });
  const stop = onPictures(strip.refresh);
  return () => {
    shown.stop();
    stop();
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
    required: true,
    rows: 3,
    placeholder: t("promptPlaceholder"),
    // In the page's language, which need not be the browser's.
    oninvalid: () => prompt.setCustomValidity(t("needPrompt")),
    oninput: () => {
      prompt.setCustomValidity("");
      set("prompt", prompt.value);
    },
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
    prompt.dispatchEvent(new Event("input"));
    prompt.focus();
  };
  const file = h("input", {
    type: "file",
    id: "settings-file",
    class: "unseen",
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

  // A browser says nothing of a value that cannot be, where it lies folded away, and sends nothing either.
  folded.addEventListener(
    "invalid",
    () => {
      folded.open = true;
    },
    true,
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
    oninput: () => take(input.value.trim()),
  });
  // What is no seed must not draw by chance as if nothing stood there.
  const take = (text) => {
    const fine = /^\d*$/.test(text) && Number(text) <= Number.MAX_SAFE_INTEGER;
    input.setCustomValidity(fine ? "" : t("notSeed", { most: Number.MAX_SAFE_INTEGER }));
    set("seed", fine && text ? Number(text) : null);
  };
  const put = (value) => {
    input.value = value ?? "";
    take(input.value);
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
          onclick: () => put(newSeed()),
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
