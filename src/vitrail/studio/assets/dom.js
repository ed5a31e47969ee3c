// Elements are made here and nowhere else; text only ever becomes a text node, so script in it stays text.
export function h(tag, props = {}, ...children) {
  const e = document.createElement(tag);
  for (const [key, value] of Object.entries(props ?? {})) {
    if (value == null || value === false) continue;
    if (key.startsWith("on")) e.addEventListener(key.slice(2), value);
    else if (key === "style") e.style.cssText = value; // an attribute would need 'unsafe-inline' in the CSP
    else if (key === "class") e.className = value;
    else if (key === "value" || key === "checked" || key === "disabled") e[key] = value;
    else e.setAttribute(key, value === true ? "" : value);
  }
  e.append(...children.flat(Infinity).filter((c) => c != null && c !== false));
  return e;
}
export const fill = (e, ...children) => { e.replaceChildren(...children.flat(Infinity).filter((c) => c != null && c !== false)); return e; };
export function toast(text) {
  const e = h("div", { class: "toast", role: "status" }, text);
  document.body.append(e);
  setTimeout(() => e.remove(), 5000);
}
/** Run `work` and show the one-line reason where it fails. */
export const tried = async (work) => { try { return await work(); } catch (error) { toast(error.message); return undefined; } };
