// What a page must not have, as far as a program can tell: a list of complaints.
() => {
  const found = [];
  const seen = (element) => element.checkVisibility({ opacityProperty: true, visibilityProperty: true });
  const ids = [...document.querySelectorAll('[id]')].map((element) => element.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) found.push(`two elements have the id ${id}`);
  for (const kind of ['aria-labelledby', 'aria-describedby', 'aria-controls', 'for'])
    for (const element of document.querySelectorAll(`[${kind}]`))
      if (!document.getElementById(element.getAttribute(kind))) found.push(`${kind}=${element.getAttribute(kind)} leads nowhere`);
  for (const element of document.querySelectorAll('button, a, input')) {
    const name = element.labels?.length ? element.labels[0].textContent : element.textContent;
    if (seen(element) && !name.trim()) found.push(`no name: ${element.outerHTML}`);
    if (element.tabIndex > 0) found.push(`an order of its own: ${element.outerHTML}`);
  }
  for (const element of document.querySelectorAll('img:not([alt]), svg:not([aria-hidden]):not([role=img][aria-label])'))
    found.push(`no alternative: ${element.outerHTML}`);
  for (const table of document.querySelectorAll('table'))
    if (table.querySelectorAll('thead th[scope=col]').length !== table.tHead.rows[0].cells.length) found.push(`a column without a head: #${table.id}`);
  let level = 0;
  for (const heading of document.querySelectorAll('h1, h2, h3')) {
    if (Number(heading.tagName[1]) > level + 1) found.push(`a level is left out: ${heading.textContent}`);
    level = Number(heading.tagName[1]);
  }
  if (!document.documentElement.lang) found.push('no language');

  const parse = (color) => {
    const [red, green, blue, alpha = 1] = color.match(/[\d.]+/g).map(Number);
    return { rgb: [red, green, blue], alpha };
  };
  const over = (top, below) => top.rgb.map((part, i) => part * top.alpha + below[i] * (1 - top.alpha));
  const ground = (element) => {
    if (!element) return matchMedia('(prefers-color-scheme: dark)').matches ? [18, 18, 18] : [255, 255, 255];
    const color = parse(getComputedStyle(element).backgroundColor);
    return color.alpha === 1 ? color.rgb : over(color, ground(element.parentElement));
  };
  const luminance = (rgb) => {
    const [red, green, blue] = rgb.map((part) => part / 255).map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
  };
  const contrast = (one, other) => {
    const [lighter, darker] = [luminance(one), luminance(other)].sort((a, b) => b - a);
    return (lighter + 0.05) / (darker + 0.05);
  };
  const texts = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  let compared = 0;
  while (texts.nextNode()) {
    const element = texts.currentNode.parentElement;
    if (!texts.currentNode.data.trim() || !seen(element)) continue;
    const behind = ground(element);
    const ratio = contrast(over(parse(getComputedStyle(element).color), behind), behind);
    compared += 1;
    if (ratio < 4.5) found.push(`contrast ${ratio.toFixed(2)}: ${texts.currentNode.data.trim()}`);
  }
  for (const element of document.querySelectorAll('input, .line, .mode-icon')) {
    const style = getComputedStyle(element);
    const ratio = contrast(parse(element.matches('input') ? style.borderTopColor : style.color).rgb, ground(element.parentElement));
    if (seen(element) && ratio < 3) found.push(`contrast ${ratio.toFixed(2)}: ${element.outerHTML}`);
  }
  if (compared < 30) found.push(`only ${compared} texts were compared`);
  return found;
}
