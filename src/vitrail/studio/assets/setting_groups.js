// What stands above the fold; everything else comes from the schema, in these groups.
export const GROUPS = {
  groupWords: ["negative_prompt", "clip_skip"],
  groupSampling: [
    "steps",
    "cfg_scale",
    "sampler",
    "schedule",
    "shift",
    "cfg_rescale",
    "guidance_interval",
    "truncation",
    "noise_strength",
    "noise",
    "fast",
  ],
  groupCodes: ["temperature", "top_k", "top_p", "choice_temperature"],
  groupSurface: [
    "width",
    "height",
    "hires_scale",
    "hires_strength",
    "hires_steps",
    "hires_upscaler",
    "seamless",
    "tile",
    "panorama",
  ],
  groupVariation: ["subseed", "subseed_strength"],
  groupAddons: ["lora", "embedding", "vae"],
};
// Settings that a kind of model has no use for are not shown with it.
const CODES = new Set(GROUPS.groupCodes),
  GANS = new Set(["truncation", "noise_strength", "noise"]);
const FOREIGN = new Set([...GROUPS.groupAddons, "clip_skip", "fast"]);
export const fits = (name, model) => {
  if (CODES.has(name)) return model?.kind === "token_transformer";
  if (GANS.has(name)) return /gan|vae/.test(model?.kind ?? "");
  return !FOREIGN.has(name) || model?.foreign === true;
};
