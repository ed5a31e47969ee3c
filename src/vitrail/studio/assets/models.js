import * as api from "./api.js";
import { h, fill, tried } from "./dom.js";
import { lang, t } from "./i18n.js";

const size = (bytes) => (bytes > 1e9 ? `${(bytes / 1e9).toFixed(1)} GB` : `${(bytes / 1e6).toFixed(1)} MB`);
export function modelsView(main) {
  tried(async () => {
    const rows = await api.models();
    fill(main, h("section", { class: "card", style: "overflow:auto" }, h("table", {},
      h("thead", {}, h("tr", {}, [t("model"), t("size2"), t("licence"), t("source")].map((x) => h("th", {}, x)))),
      h("tbody", {}, rows.map((m) => h("tr", {},
        h("td", {}, h("strong", {}, m.name), h("br"), h("small", { class: m.problem ? "bad" : "" }, m.problem ?? m[lang] ?? m.kind)),
        h("td", {}, m.size ? size(m.size) : ""), h("td", {}, m.licence ?? ""),
        h("td", {}, m.here ? t("here") : [t("fetch"), " ", h("code", {}, `vitrail models pull ${m.name}`)], m.sources ? h("div", {}, h("small", {}, m.sources.join(", "))) : null)))))));
  });
}
