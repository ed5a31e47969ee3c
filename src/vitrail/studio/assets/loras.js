// LoRAs that settings ask for, in tags among the words or by name: which of them are missing, and settings without them.
const TAG = /\s*<(?:lora|lyco|hypernet):([^<>:]*)[^<>]*>/gi;
const WORDS = ["prompt", "negative_prompt"];

/** A LoRA's name, whichever folder it lies in and however another program writes it. */
const called = (name) =>
  name
    .trim()
    .replace(/\s*\[[0-9a-f]{6,64}\]$/i, "")
    .replace(/^.*[\\/]/, "")
    .replace(/\.(safetensors|ckpt|pt|pth|bin)$/i, "")
    .toLowerCase();
/** Of the field `lora`, which holds "name", "name:weight" or { name, weight }. */
const nameOf = (one) => (typeof one === "string" ? one.replace(/:[-+.\d]*$/, "") : one.name).trim();

/** Names of all LoRAs that `settings` ask for. */
export function lorasOf(settings) {
  const tags = WORDS.flatMap((field) => [...(settings[field] ?? "").matchAll(TAG)].map(([, name]) => name.trim()));
  return [...new Set([...tags, ...(settings.lora ?? []).map(nameOf)])];
}

/** Those of them that are not among the `models` of this machine. */
export function missingLoras(settings, models) {
  const here = new Set(models.filter((one) => one.here && one.kind === "lora").map((one) => called(one.name)));
  return lorasOf(settings).filter((name) => !here.has(called(name)));
}

/** `settings` without the LoRAs called `names`. */
export function withoutLoras(settings, names) {
  const rest = { ...settings };
  for (const field of WORDS) {
    const words = rest[field]?.replace(TAG, (tag, name) => (names.includes(name.trim()) ? "" : tag));
    if (words === rest[field]) continue;
    rest[field] = words.replace(/,(\s*,)+/g, ",").replace(/^[\s,]+|[\s,]+$/g, "");
    if (!rest[field]) delete rest[field];
  }
  if (rest.lora) rest.lora = rest.lora.filter((one) => !names.includes(nameOf(one)));
  if (!rest.lora?.length) delete rest.lora;
  return rest;
}
