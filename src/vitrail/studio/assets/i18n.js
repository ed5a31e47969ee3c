// The page's two languages: which one is spoken, and the texts in it.
import { kept } from "./dom.js";
import { LAB } from "./texts_lab.js";
import { FIELDS, TEXTS } from "./texts.js";

const ALL = { ...TEXTS, ...LAB };
const asked = new URLSearchParams(location.search).get("lang");
const known = (language) => (["en", "zh"].includes(language) ? language : null);

export let lang = known(asked) ?? known(kept.get("lang")) ?? (navigator.language.startsWith("zh") ? "zh" : "en");

export function setLang(next) {
  lang = next;
  kept.set("lang", next);
}

const inLang = (pair) => pair[lang === "zh" ? 1 : 0];

/** The text called `key`; `{name}` in it is filled from `values`. */
export function t(key, values = {}) {
  return inLang(ALL[key]).replace(/\{(\w+)\}/g, (whole, name) => values[name] ?? whole);
}

/** What a kind of work is called; one without a row goes by its own name. */
export const kindName = (kind) => (ALL[`kind_${kind}`] ? t(`kind_${kind}`) : kind.replaceAll("_", " "));

/** What a setting is called; one without a row goes by its own name. */
export const fieldName = (name) => (FIELDS[name] ? inLang(FIELDS[name]) : name.replaceAll("_", " "));

/** A line of the server as a sentence among others. */
export const sentence = (line) =>
  line.charAt(0).toUpperCase() + line.slice(1) + (/[.!?。！？]$/.test(line) ? "" : lang === "zh" ? "。" : ".");

/** A time span for people, from seconds. */
export function span(seconds) {
  if (seconds == null || !Number.isFinite(seconds)) return "";
  const whole = Math.ceil(seconds);
  if (whole < 90) return t("seconds", { n: whole });
  const minutes = Math.round(seconds / 60);
  return minutes < 90 ? t("minutes", { n: minutes }) : t("hours", { n: (minutes / 60).toFixed(1) });
}

export const when = (text) =>
  new Date(text).toLocaleString(lang === "zh" ? "zh-CN" : "en-GB", { dateStyle: "medium", timeStyle: "short" });

export function size(bytes) {
  const units = [
    ["GB", 1e9],
    ["MB", 1e6],
    ["kB", 1e3],
  ];
  const [unit, factor] = units.find(([, least]) => bytes >= least) ?? ["B", 1];
  return `${(bytes / factor).toFixed(factor > 1e3 && bytes / factor < 100 ? 1 : 0)} ${unit}`;
}

export const EXAMPLES = {
  en: [
    "a cat sitting in a garden",
    "a red apple",
    "night sky over a city",
    "a smiling sun",
    "a blue heart",
    "an owl reading",
  ],
  zh: ["一只猫坐在花园里", "红苹果", "城市夜景", "微笑的太阳", "蓝色的心", "看书的猫头鹰"],
};
