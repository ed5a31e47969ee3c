// Run in a page: what is wrong with it for people who read, see little, or listen. Returns a list of lines.
(() => {
  const channel = (v) => (v / 255 <= 0.03928 ? v / 255 / 12.92 : ((v / 255 + 0.055) / 1.055) ** 2.4);
  const light = ([r, g, b]) => 0.2126 * channel(r) + 0.7152 * channel(g) + 0.0722 * channel(b); // WCAG 2.2
  const pen = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
  const read = (colour) => {
    pen.clearRect(0, 0, 1, 1);
    pen.fillStyle = colour;
    pen.fillRect(0, 0, 1, 1);
    return [...pen.getImageData(0, 0, 1, 1).data];
  };
  const behind = (element) => {
    for (let e = element; e; e = e.parentElement) {
      const colour = read(getComputedStyle(e).backgroundColor);
      if (colour[3] === 255) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [...document.querySelectorAll("body *")].flatMap((e) => {
    const says = [...e.childNodes].some((node) => node.nodeType === Node.TEXT_NODE && node.data.trim());
    if (!says || !e.checkVisibility({ opacityProperty: true })) return [];
    if (e.closest(":disabled, svg, option, .skip, .compare")) return [];
    const style = getComputedStyle(e), size = parseFloat(style.fontSize);
    const [low, high] = [light(read(style.color)), light(behind(e))].sort((a, b) => a - b);
    const ratio = (high + 0.05) / (low + 0.05);
    const large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
    return ratio >= (large ? 3 : 4.5) ? [] : [`${e.tagName}.${e.className} ${e.textContent.trim().slice(0, 20)} ${ratio.toFixed(2)}`];
  });
  const nameless = [...document.querySelectorAll("button, a[href], input, select, textarea, img")].filter((e) => {
    if (!e.checkVisibility()) return false;
    if (e.tagName === "IMG") return !e.hasAttribute("alt");
    return !(e.getAttribute("aria-label") || e.textContent.trim() || e.labels?.length || e.title);
  });
  return [...faint, ...nameless.map((e) => `without a name: ${e.outerHTML.slice(0, 90)}`)];
})()
