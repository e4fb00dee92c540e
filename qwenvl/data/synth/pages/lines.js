// The visible lines of text of a page: [text, left, top, right, bottom, word] in CSS pixels, in the order of the document.
// A line is what stands on one line in one run of text; runs that touch (a word in bold, a link) are joined. `word` is the
// box of one of its words where nothing but its letters can change the colour, by what `plain` tells of the page; or null.
(plain) => {
  const wide = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]/;
  const pieces = /[\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]|[^\s\u2e80-\u9fff\uac00-\ud7af\uf900-\ufaff\uff00-\uffef]+/g;
  const ordinary = /^[\t\n\f\r\x20-\x7e\u00a1-\u00ac\u00ae-\u024f\u0370-\u052f\u1e00-\u1eff\u2010-\u2027\u2e80-\u9fff\uff01-\uff60]*$/;
  const letter = /[\p{L}\p{N}]/u;
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

  // Whether a space is never so wide that it ends a line of ours.
  const evenly = (style) => style.textAlign !== "justify" && style.wordSpacing === "0px" && style.letterSpacing === "normal"
    && /^(normal|nowrap)$/.test(style.whiteSpace);

  const add = (text, box, space, block, parent) => {
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
        last.words.push({ text, box, parent });
        return;
      }
    }
    const words = [{ text, box, parent }];
    lines.push({ text, block, words, left: box.left, top: box.top, right: box.right, bottom: box.bottom, probe: parent });
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
    const parts = [...range.getClientRects()];
    if (!parts.some((part) => part.width && part.bottom > 0 && part.top < height && part.right > 0 && part.left < width)) continue;
    const style = getComputedStyle(parent);
    if (!parent.checkVisibility({ opacityProperty: true, visibilityProperty: true })) continue;
    if (/^rgba.*, 0\)$/.test(style.color) || parseFloat(style.fontSize) < 5) continue;
    if (style.writingMode !== "horizontal-tb" || style.webkitTextSecurity !== "none") continue;
    const block = blockOf(parent);
    const words = [...data.matchAll(pieces)].map((found) => [found.index, found.index + found[0].length]);
    const spaced = (k) => words[k][0] > (k ? words[k - 1][1] : 0) || (words[k][0] === 0 && spaceBefore);
    const boxes = [];
    const boxesOf = (k) => {
      if (!boxes[k]) { range.setStart(node, words[k][0]); range.setEnd(node, words[k][1]); boxes[k] = range.getClientRects(); }
      return boxes[k];
    };
    const letters = (k) => {  // a word broken over lines
      for (let at = words[k][0]; at < words[k][1]; at++) {
        range.setStart(node, at);
        range.setEnd(node, at + 1);
        const box = range.getClientRects()[0];
        if (box && box.width) add(shown(data[at], style), box, spaced(k) && at === words[k][0], block, parent);
      }
    };
    const place = (first, last) => {  // where both ends of a run lie on one line, nothing between them is asked for
      const ends = [...boxesOf(first), ...(first === last ? [] : boxesOf(last))], { top, bottom } = ends[0] || {};
      if (ends.length && ends.every((end) => end.top === top && end.bottom === bottom)) {
        const box = { left: Math.min(...ends.map((end) => end.left)), top, right: Math.max(...ends.map((end) => end.right)), bottom };
        const text = data.slice(words[first][0], words[last][1]).replace(/\s+/g, " ");
        if (box.right > box.left) add(shown(text, style), box, spaced(first), block, parent);
      } else if (first === last) letters(first);
      else {
        const middle = (first + last) >> 1;
        place(first, middle);
        place(middle + 1, last);
      }
    };
    if (ordinary.test(data) && evenly(style) && new Set(parts.map((part) => part.top)).size === parts.length) {
      place(0, words.length - 1);
    } else for (const k of words.keys()) place(k, k);
    spaceBefore = /\s$/.test(data);
  }

  const page = plain && plain();
  const holds = ([left, top, right, bottom], x, y) => left <= x && x <= right && top <= y && y <= bottom;
  // Whether nothing lies over the middle of a line: on a plain page only what is painted can, else whatever is found there.
  const uncovered = (line) => {
    const x = (line.left + line.right) / 2, y = (line.top + line.bottom) / 2;
    const alone = page && page.frames.every(([outer, , element]) => !holds(outer, x, y) || element.contains(line.probe))
      && lines.every((l) => l === line || !holds([l.left, l.top, l.right, l.bottom], x, y));
    const hit = alone ? line.probe : document.elementFromPoint(x, y);
    return hit && (line.block.contains(hit) || hit.contains(line.probe));
  };
  const kept = lines.filter((line) => {
    if (line.left < -1 || line.top < -1 || line.right > width + 1 || line.bottom > height + 1) return false;
    if (line.bottom - line.top > 2 * (line.right - line.left) && line.text.length > 2) return false;  // turned by CSS
    return uncovered(line);
  });
  // The window is cut below the last thing of the page; body itself fills the window where there is no doctype.
  const things = document.body ? [...document.body.children].map((e) => e.getBoundingClientRect().bottom) : [];
  const bottom = Math.max(8, ...things, ...kept.map((line) => line.bottom)) + 8;
  const clip = (value, limit) => Math.min(Math.max(value, 0), limit);
  const clipped = (b) => [clip(b.left, width), clip(b.top, height), clip(b.right, width), clip(b.bottom, height)];

  const apart = (a, b) => a.right <= b[0] || a.left >= b[2] || a.bottom <= b[1] || a.top >= b[3];
  const inside = (a, b) => a.left >= b[0] && a.right <= b[2] && a.top >= b[1] && a.bottom <= b[3];
  const lone = (line) => {
    const near = page.frames.filter(([outer, inner]) => !apart(line, outer) && !(inner && inside(line, inner)));
    const clean = ({ text, box, parent }) => letter.test(text) && page.may(parent)
      && near.every(([outer, inner]) => apart(box, outer) || (inner && inside(box, inner)));
    const word = line.words.find(clean);
    return word ? clipped(word.box) : null;
  };
  return { height: Math.ceil(bottom), lines: kept.map((l) => [l.text, ...clipped(l), page ? lone(l) : null]) };
}
