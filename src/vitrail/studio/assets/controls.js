// Parts of a form: chips, sliders, and the controls that a setting of the schema becomes.
import { h } from "./dom.js";
import { fieldName, lang, t } from "./i18n.js";

let numbered = 0;
export const freshId = (name) => `${name}-${(numbered += 1)}`;

export const labelled = (label, control, note = null) =>
  h(
    "div",
    { class: "field" },
    h("label", { for: (control.id ||= freshId("field")) }, label),
    control,
    note && h("small", {}, note),
  );

/** One of several values, all of them visible. `choices`: [value, label] each. */
export function chips(label, choices, current, set, { named = true } = {}) {
  const group = h(
    "div",
    { class: "chips", role: "radiogroup", "aria-label": label },
    choices.map(([value, text]) => {
      const input = h("input", {
        type: "radio",
        name: `chips-${numbered}`,
        checked: value === current,
        onchange: () => set(value),
      });
      return h("label", { class: "chip" }, input, h("span", {}, text));
    }),
  );
  numbered += 1;
  return named
    ? h("div", { class: "field" }, h("span", { class: "label", "aria-hidden": "true" }, label), group)
    : group;
}

export const select = (choices, current, set, props = {}) =>
  h(
    "select",
    { ...props, onchange: (event) => set(event.target.value) },
    choices.map(([value, text]) => h("option", { value, selected: value === current }, text)),
  );

/** An `input` or a `textarea` (`tag`) whose value is kept in `record[name]` while it is written. */
export const remembered = (tag, record, name, props = {}) =>
  h(tag, {
    ...props,
    value: props.value ?? record[name],
    oninput: (event) => {
      record[name] = event.target.value;
    },
  });

/** A seed by chance. */
export const newSeed = () => crypto.getRandomValues(new Uint32Array(1))[0];

/** A slider with its value beside it. */
export function slider(label, { min, max, step = 1, value, id, show = (v) => v, oninput }) {
  const out = h("output", {}, String(show(value)));
  const input = h("input", {
    type: "range",
    id: id ?? freshId("slider"),
    min,
    max,
    step,
    value,
    oninput: () => {
      out.textContent = show(Number(input.value));
      oninput(Number(input.value));
    },
  });
  return {
    input,
    element: h("div", { class: "field slider" }, h("label", { for: input.id }, label), out, input),
    put(next) {
      input.value = next;
      out.textContent = show(next);
    },
  };
}

const asNumber = (text) => (text.trim() === "" || !Number.isFinite(Number(text)) ? null : Number(text));
const asList = (text) => {
  const parts = text
    .split(/[,，]/)
    .map((part) => part.trim())
    .filter(Boolean);
  return parts.length ? parts : null;
};

function number(field, now, set, props = {}) {
  return h("input", {
    type: "number",
    step: "any",
    min: field.low,
    max: field.high,
    value: now ?? "",
    placeholder: field.default ?? t("ownDefault"),
    ...props,
    oninput: (event) => set(asNumber(event.target.value)),
  });
}

function interval(field, now, set, id) {
  const ends = [now?.[0] ?? null, now?.[1] ?? null];
  const end = (i) =>
    number(
      { ...field, default: i },
      ends[i],
      (value) => {
        ends[i] = value;
        set(ends.every((one) => one == null) ? null : [ends[0] ?? 0, ends[1] ?? 1]);
      },
      i ? { "aria-label": `${fieldName(field.name)} ${t("after")}` } : { id },
    );
  return h("div", { class: "pair" }, end(0), end(1));
}

/** The control of one setting as the schema describes it; `set(null)` means the model's own. */
export function settingControl(field, now, set, labels) {
  const id = `f-${field.name}`;
  if (typeof field.default === "boolean") {
    return h(
      "label",
      { class: "check" },
      h("input", {
        type: "checkbox",
        id,
        checked: now ?? field.default,
        onchange: (event) => set(event.target.checked || null),
      }),
      fieldName(field.name),
    );
  }
  if (field.choices.length) {
    const rest = field.choices
      .filter((choice) => choice !== field.default)
      .map((choice) => [choice, labels?.[choice] ?? choice]);
    return select([["", field.default ?? t("ownDefault")], ...rest], now ?? "", (value) => set(value || null), { id });
  }
  if (field.name === "guidance_interval") return interval(field, now, set, id);
  if (Array.isArray(field.default)) {
    const text = (now ?? []).map((one) => (typeof one === "string" ? one : `${one.name}:${one.weight}`)).join(", ");
    return h("input", {
      id,
      value: text,
      placeholder: t("listHint"),
      oninput: (event) => set(asList(event.target.value)),
    });
  }
  if (field.low != null || field.high != null) return number(field, now, set, { id });
  if (field.name.includes("prompt"))
    return h("textarea", { id, rows: 2, value: now ?? "", oninput: (event) => set(event.target.value || null) });
  return h("input", {
    id,
    value: now ?? "",
    placeholder: field.default ?? t("ownDefault"),
    oninput: (event) => set(event.target.value.trim() || null),
  });
}

/** A setting with its name and its help from the schema. */
export function setting(field, now, set, labels) {
  const control = settingControl(field, now, set, labels);
  const help = h("small", {}, lang === "zh" ? field.zh : field.en);
  if (control.classList.contains("check")) return h("div", { class: "field" }, control, help);
  return h("div", { class: "field" }, h("label", { for: `f-${field.name}` }, fieldName(field.name)), control, help);
}
