// Where a page paints something else than letters: frames [outer, inner, element], boxes of [left, top, right, bottom] between
// which colours may change; inner is null where they may change anywhere. What lies outside of outer or inside of inner
// has one ground, so that a change of colour there is a letter. `may(element)` says whether the line below the letters of
// an element has their colour. null: a page with anything that is not known here to be plain; nothing is told of it.
() => {
  const tags = new Set(("A ABBR ACRONYM ADDRESS ARTICLE ASIDE B BDI BDO BIG BLOCKQUOTE BODY BR CAPTION CENTER CITE CODE "
    + "COL COLGROUP DATA DD DEL DFN DIR DIV DL DT EM FIGCAPTION FIGURE FONT FOOTER FORM H1 H2 H3 H4 H5 H6 HEADER HGROUP "
    + "HTML I INS KBD LABEL LI MAIN MARK MENU NAV NOBR OL P PRE Q RB RP RT RTC RUBY S SAMP SEARCH SECTION SMALL SPAN "
    + "STRIKE STRONG SUB SUP TABLE TBODY TD TFOOT TH THEAD TIME TR TT U UL VAR WBR").split(" "));
  const layout = "--.*|align-.*|animation-.*|border-image-(slice|width|outset|repeat)|bottom|box-sizing|break-.*|caption-side|caret-color|clear|color|color-scheme|column-gap"
    + "|counter-.*|cursor|direction|display|empty-cells|flex-.*|float|font-.*|grid-.*|height|hyphens|inset.*|justify-.*"
    + "|left|letter-spacing|line-break|line-height|list-style-(type|position)|margin.*|max-.*|min-.*|opacity|order|orphans"
    + "|overflow-([xy]|wrap|anchor)|padding.*|page-break-.*|pointer-events|position|quotes|right|row-gap|table-layout"
    + "|tab-size|text-(align.*|indent|rendering|shadow|size-adjust|transform|wrap.*)|top|transition-.*|unicode-bidi"
    + "|user-select|vertical-align|visibility|white-space.*|widows|width|word-.*|z-index|border-(collapse|spacing)"
    + "|border-.*-spacing|-webkit-(border-.*-spacing|box-(orient|align|flex|pack|direction|ordinal-group)|font-smoothing"
    + "|locale|tap-highlight-color|text-fill-color|text-size-adjust|user-select)";
  const paint = "background-.*|border-(top|right|bottom|left|block|inline)-.*|border-.*-radius|box-shadow|outline-.*"
    + "|text-decoration-(line|style|color)";
  const plainly = new RegExp(`^(${layout}|${paint})$`), emptily = new RegExp(`^(${layout})$`);
  const nothing = /^(initial|none|auto|normal|inherit|unset|revert|revert-layer)$/;
  const pseudo = /::|:(before|after|first-l)/;
  const seen = new Set();

  // Whether every declaration is known; of elements that no program finds (::before) only those that paint nothing are.
  const known = (style, hidden) => {
    for (const name of style) {
      const value = style.getPropertyValue(name);
      if (nothing.test(value)) continue;
      if (hidden && name === "content" && /^"[^"]*"$/.test(value)) continue;
      if (!(hidden ? emptily : plainly).test(name)) return false;
      seen.add(name);
    }
    return true;
  };
  const knownRules = (rules, inPseudo) => [...rules].every((rule) => {
    const hidden = inPseudo || pseudo.test(rule.selectorText || "");
    if (rule instanceof CSSFontFaceRule || rule instanceof CSSKeyframesRule) return true;  // keyframes: `animation` is not
    if (rule.styleSheet && !knownRules(rule.styleSheet.cssRules, hidden)) return false;
    return (!rule.style || known(rule.style, hidden)) && (!rule.cssRules || knownRules(rule.cssRules, hidden));
  });
  try {
    if (![...document.styleSheets].every((sheet) => knownRules(sheet.cssRules, false))) return null;
  } catch { return null; }  // a sheet that may not be read
  const styles = new Set();
  for (const element of document.querySelectorAll("[style]")) {
    const text = element.getAttribute("style");
    if (styles.has(text)) continue;
    styles.add(text);
    if (!element.style || !known(element.style, false)) return null;
  }
  if (document.getAnimations().length) return null;

  const has = (part) => [...seen].some((name) => name.includes(part));
  const radius = has("radius"), shadow = has("shadow"), outline = has("outline");
  const pixels = (text) => (text.match(/-?[\d.]+px/g) || []).reduce((sum, part) => sum + Math.abs(parseFloat(part)), 0);
  const sides = ["borderTopWidth", "borderRightWidth", "borderBottomWidth", "borderLeftWidth"];
  const corners = ["borderTopLeftRadius", "borderTopRightRadius", "borderBottomLeftRadius", "borderBottomRightRadius"];
  const frames = [], lines = new Map();
  for (const element of document.querySelectorAll("*")) {
    const style = getComputedStyle(element);
    const above = lines.get(element.parentElement) || "";
    const own = style.textDecorationLine === "none" ? "" : style.textDecorationColor;
    lines.set(element, !own || own === above ? above : above ? "several" : own);
    const boxes = element.getClientRects();
    if (!boxes.length) continue;
    const focused = element === document.activeElement && element !== document.body;
    let whole = !tags.has(element.tagName) || focused, inside = 0, outside = whole ? 4 : 1;
    if (style.backgroundImage !== "none") {
      if (element === document.body || element === document.documentElement) return null;  // lies under everything
      whole = true;
    }
    const border = Math.max(...sides.map((side) => parseFloat(style[side])));
    let painted = whole || border > 0 || style.backgroundColor !== "rgba(0, 0, 0, 0)" || style.overflowX !== "visible"
      || style.overflowY !== "visible" || /^T[DH]$/.test(element.tagName);  // grounds of rows are painted in cells
    inside += border;
    outside += border;
    if (radius && painted) {
      if (corners.some((corner) => style[corner].includes("%"))) whole = true;
      inside += Math.max(...corners.map((corner) => pixels(style[corner])));
    }
    if (shadow && style.boxShadow !== "none") {
      painted = true;
      outside += pixels(style.boxShadow);
      inside += style.boxShadow.includes("inset") ? pixels(style.boxShadow) : 0;
    }
    if (outline && style.outlineStyle !== "none") {
      painted = true;
      const reach = parseFloat(style.outlineWidth) + Math.abs(parseFloat(style.outlineOffset));
      outside += reach;
      inside += reach;
    }
    if (!painted) continue;
    for (const b of boxes) {
      const outer = [b.left - outside, b.top - outside, b.right + outside, b.bottom + outside];
      const inner = whole ? null : [b.left + inside, b.top + inside, b.right - inside, b.bottom - inside];
      frames.push([outer, inner, element]);
    }
  }
  const may = (element) => {
    const line = lines.get(element);
    return !line || line === getComputedStyle(element).webkitTextFillColor;
  };
  return { frames, may };
}
