// The visible lines of text of a page: [text, left, top, right, bottom] in CSS pixels, in the order of the document.
// A line is what stands on one line in one run of text; runs that touch (a word in bold, a link) are joined.
() => {
  const wide = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;
  const pieces = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]+/g;
  const silent = new Set(["SCRIPT", "STYLE", "NOSCRIPT", "TEMPLATE", "TEXTAREA", "OPTION", "TITLE", "RP"]);
  const width = innerWidth, height = innerHeight;
  const range = document.createRange();
  const lines = [];

  const shown = (text, style) => {
    if (style.textTransform === "uppercase") return text.toUpperCase();
    if (style.textTransform === "lowercase") return text.toLowerCase();
    if (style.textTransform === "capitalize") return text.replace(/(^|\s)(\S)/g, (_, a, b) => a + b.toUpperCase());
    return text;
  };

  const add = (text, box, space, block) => {
    const last = lines[lines.length - 1];
    if (last && last.block === block) {
      const overlap = Math.min(last.bottom, box.bottom) - Math.max(last.top, box.top);
      const low = Math.min(last.bottom - last.top, box.bottom - box.top);
      const gap = box.left - last.right;
      if (overlap > 0.5 * low && gap > -2 && gap < 0.6 * low) {
        last.text += (space ? " " : "") + text;
        last.top = Math.min(last.top, box.top);
        last.bottom = Math.max(last.bottom, box.bottom);
        last.right = Math.max(last.right, box.right);
        return;
      }
    }
    lines.push({ text, block, left: box.left, top: box.top, right: box.right, bottom: box.bottom, probe: null });
  };

  const blockOf = (element) => {
    while (element && getComputedStyle(element).display.startsWith("inline")) element = element.parentElement;
    return element;
  };

  let node, spaceBefore = false;
  const walker = document.createTreeWalker(document.body || document.documentElement, NodeFilter.SHOW_TEXT);
  while ((node = walker.nextNode())) {
    const data = node.data, parent = node.parentElement;
    if (!parent || silent.has(parent.tagName)) continue;
    if (!/\S/.test(data)) { spaceBefore = true; continue; }
    range.selectNodeContents(node);
    const whole = range.getBoundingClientRect();
    if (!whole.width || whole.bottom <= 0 || whole.top >= height || whole.right <= 0 || whole.left >= width) continue;
    const style = getComputedStyle(parent);
    if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (/^rgba.*, 0\)$/.test(style.color) || parseFloat(style.fontSize) < 5) continue;
    if (style.writingMode !== "horizontal-tb" || style.webkitTextSecurity !== "none") continue;
    const block = blockOf(parent);
    let end = 0;
    for (const found of data.matchAll(pieces)) {
      const space = found.index > end || (found.index === 0 && spaceBefore);
      end = found.index + found[0].length;
      range.setStart(node, found.index);
      range.setEnd(node, end);
      const boxes = range.getClientRects();
      if (boxes.length === 1) {
        if (boxes[0].width) add(shown(found[0], style), boxes[0], space, block);
      } else {  // a word broken over lines: letter by letter
        for (let k = found.index; k < end; k++) {
          range.setStart(node, k);
          range.setEnd(node, k + 1);
          const box = range.getClientRects()[0];
          if (box && box.width) add(shown(data[k], style), box, space && k === found.index, block);
        }
      }
      const last = lines[lines.length - 1];
      if (last) last.probe = last.probe || parent;
    }
    spaceBefore = /\s$/.test(data);
  }

  const kept = lines.filter((line) => {
    if (line.left < -1 || line.top < -1 || line.right > width + 1 || line.bottom > height + 1) return false;
    if (line.bottom - line.top > 2 * (line.right - line.left) && line.text.length > 2) return false;  // turned by CSS
    const hit = document.elementFromPoint((line.left + line.right) / 2, (line.top + line.bottom) / 2);
    return hit && line.probe && (line.block.contains(hit) || hit.contains(line.probe));  // else something covers it
  });
  // The window is cut below the last thing of the page; body itself fills the window where there is no doctype.
  const things = document.body ? [...document.body.children].map((e) => e.getBoundingClientRect().bottom) : [];
  const bottom = Math.max(8, ...things, ...kept.map((line) => line.bottom)) + 8;
  const clip = (value, limit) => Math.min(Math.max(value, 0), limit);
  return {
    height: Math.ceil(bottom),
    lines: kept.map((l) => [l.text, clip(l.left, width), clip(l.top, height), clip(l.right, width), clip(l.bottom, height)]),
  };
}
