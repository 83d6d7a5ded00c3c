// Returns what a reader sees of the page as it stands: sizes of figures, contrast of texts, what sticks out.
const channels = (colour) => {
  const found = colour.match(/rgba?\(([^)]+)\)/);
  if (!found) return null;
  const parts = found[1].split(/[ ,/]+/).map(Number);
  return [...parts.slice(0, 3), parts.length > 3 ? parts[3] : 1];
};
const luminance = ([r, g, b]) => {
  const linear = [r, g, b].map((c) => (c / 255 <= 0.04045 ? c / 255 / 12.92 : ((c / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
};
const over = (top, below) => [0, 1, 2].map((i) => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
const contrast = (a, b) => {
  const [light, dark] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (light + 0.05) / (dark + 0.05);
};
// What lies under a point of an element: the paint of all that stands below it, on the page's own.
const ground = (element, x, y) => {
  const stack = document.elementsFromPoint(x, y);
  const below = stack.slice(stack.indexOf(element) + 1).reverse();
  let colour = channels(getComputedStyle(document.body).backgroundColor);
  const own = channels(getComputedStyle(element).backgroundColor);
  for (const part of below) {
    if (part.closest("text")) continue;
    const style = getComputedStyle(part);
    const svg = part instanceof SVGGeometryElement || part instanceof SVGUseElement;
    const paint = channels(svg ? style.fill : style.backgroundColor);
    if (!paint || (svg && style.fill === "none")) continue;
    paint[3] *= svg ? Number(style.fillOpacity) * Number(style.opacity) : 1;
    colour = over(paint, colour);
  }
  return own && !(element instanceof SVGElement) ? over(own, colour) : colour;
};
const texts = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode;
  if (!node.textContent.trim()) continue;
  const range = document.createRange();
  range.selectNodeContents(node);
  const box = range.getBoundingClientRect();
  const element = node.parentElement;
  const [x, y] = [box.x + box.width / 2, box.y + box.height / 2];
  if (!box.width || !box.height || !document.elementsFromPoint(x, y).includes(element)) continue;
  const style = getComputedStyle(element);
  const paint = channels(element instanceof SVGElement ? style.fill : style.color);
  const svg = element.closest("svg");
  const scale = svg ? svg.getBoundingClientRect().width / svg.viewBox.baseVal.width : 1;
  texts.push([node.textContent.trim(), contrast(paint, ground(element, x, y)), parseFloat(style.fontSize) * scale]);
}
const size = (element) => {
  const box = element.getBoundingClientRect();
  return [box.width, box.height];
};
return {
  texts,
  figures: [...document.querySelectorAll("figure svg, .images img, .grid img")].map((element) => [
    element.closest("figure")?.id || element.getAttribute("alt"),
    ...size(element),
    element.naturalWidth ?? element.getBBox().width,
  ]),
  tables: [...document.querySelectorAll("table")].map((table) => [table.caption.textContent.trim(), ...size(table)]),
  resources: performance.getEntriesByType("resource").map((entry) => entry.name),
  background: getComputedStyle(document.body).backgroundColor,
  overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
};
