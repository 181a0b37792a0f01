// What is on the screen. Only the lines of images that can be seen are in the document.
const PART = 500; // thumbnails in a folder
const GAP = 10, LEAST_WIDTH = 132, TILE = 188, HEADING = 44, BEYOND = 400; // pixels
const MOST_CLASSES = 200; // buttons; typing finds the others
const ORIGINAL_AFTER = 200; // ms on an image before its original is loaded

const $ = (id) => document.getElementById(id);
const sheet = $("sheet"), canvas = $("canvas");
const percent = (share) => (share < 0.005 ? "<1 %" : `${Math.round(100 * share)} %`);
const count = (number) => number.toLocaleString("en");

const view = { section: null, order: [], lines: [], columns: 1, cursor: 0, parts: null };
const tiles = new Map(); // position in the order -> its element

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

function thumbnail(section, i) {
  const part = String(Math.floor(i / PART)).padStart(5, "0");
  return `${section.thumbnails}/${part}/${String(i % PART).padStart(3, "0")}.jpg`;
}

// The address of an image itself, null where there is none below the folder of images.
function original(section, i) {
  const parts = section.files[i].split("/");
  if (!section.images || parts.some((part) => part === "" || part === "." || part === "..")) return null;
  return section.images + parts.map(encodeURIComponent).join("/");
}

// --- which images, in which order

function arrange() {
  const { section } = view;
  const wanted = $("class").value, which = $("which").value;
  const belongs = {
    all: () => true,
    open: (i) => section.decided(i) === undefined,
    done: (i) => section.decided(i) !== undefined,
    corrected: (i) => section.decided(i) !== undefined && section.decided(i) !== section.label(i),
  }[which];
  const shown = (i) => (wanted === "" || section.labels[i] === Number(wanted)) && belongs(i);
  const how = $("order").value;
  view.parts = { class: byClass, alike: byGroup }[how] ?? null;
  if (how === "alike") {
    view.order = section.groups.filter((group) => group.some(shown)).flat(); // the most telling first, and each whole
  } else {
    view.order = [...Array(section.length).keys()].filter(shown);
    view.order.sort(
      (a, b) =>
        (view.parts && section.labels[a] - section.labels[b]) || section.confidences[a] - section.confidences[b] || a - b,
    );
  }
  view.cursor = 0;
  sheet.scrollTop = 0;
  layOut();
}

// Under which headings images stand: which of them belong together, and what is said above them.
const byClass = {
  of: (i) => view.section.labels[i],
  heading: (items) => `${view.section.label(items[0])} · ${count(items.length)}`,
};
const byGroup = {
  of: (i) => view.section.group(i),
  heading: (items) => {
    const named = (labels) => [...new Set(labels.filter((label) => label !== undefined))].join(", ");
    const given = items.map(view.section.given), predicted = `predicted ${named(items.map(view.section.label))}`;
    return `${count(items.length)} alike · ${named(given) ? `given ${named(given)}; ` : ""}${predicted}`;
  },
};

function layOut() {
  const width = canvas.clientWidth;
  view.columns = Math.max(1, Math.floor((width + GAP) / (LEAST_WIDTH + GAP)));
  view.width = (width - GAP * (view.columns - 1)) / view.columns;
  view.lines = [];
  let top = 0;
  const add = (line, height) => {
    view.lines.push({ top, height, ...line });
    top += height;
  };
  for (let start = 0; start < view.order.length; ) {
    let end = view.order.length;
    if (view.parts) {
      const part = view.parts.of(view.order[start]);
      for (end = start; end < view.order.length && view.parts.of(view.order[end]) === part; ) end++;
      add({ heading: view.parts.heading(view.order.slice(start, end)) }, HEADING);
    }
    for (; start < end; start += view.columns) add({ start, end: Math.min(start + view.columns, end) }, TILE + GAP);
    start = end;
  }
  canvas.style.height = `${Math.max(0, top)}px`;
  canvas.replaceChildren();
  tiles.clear();
  if (!view.order.length) canvas.append(make("p", "empty", emptyText()));
  render();
  select(Math.min(view.cursor, Math.max(0, view.order.length - 1)));
}

function emptyText() {
  const { section } = view;
  if ($("order").value === "alike" && !section.groups.length) return "No two images are alike.";
  if (section.length) return "No image is left here. Choose another class, or show all.";
  return section.name === "given" ? "Every label that was asked about was found." : "No predictions.";
}

// --- the sheet

function lineAt(offset) {
  let low = 0, high = view.lines.length - 1;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (view.lines[middle].top <= offset) low = middle;
    else high = middle - 1;
  }
  return low;
}

function lineOf(position) {
  let low = 0, high = view.lines.length - 1;
  const first = (number) => view.lines[number].start ?? view.lines[number + 1].start - 0.5;
  while (low < high) {
    const middle = (low + high + 1) >> 1;
    if (first(middle) <= position) low = middle;
    else high = middle - 1;
  }
  return low;
}

function render() {
  if (!view.lines.length) return;
  const from = lineAt(sheet.scrollTop - BEYOND), to = lineAt(sheet.scrollTop + sheet.clientHeight + BEYOND);
  const shown = new Set(), headings = [];
  for (const line of view.lines.slice(from, to + 1)) {
    if (line.heading !== undefined) headings.push(line);
    for (let position = line.start; position < line.end; position++) {
      shown.add(position);
      if (!tiles.has(position)) place(position, line);
    }
  }
  for (const [position, tile] of tiles) {
    if (!shown.has(position)) {
      tile.remove();
      tiles.delete(position);
    }
  }
  for (const old of canvas.querySelectorAll(".heading")) old.remove();
  for (const { top, heading } of headings) {
    const element = make("div", "heading", heading);
    element.setAttribute("role", "presentation");
    element.style.top = `${top}px`;
    canvas.append(element);
  }
}

function place(position, line) {
  const i = view.order[position], tile = make("div", "tile");
  tile.id = `tile-${position}`;
  tile.setAttribute("role", "option");
  tile.setAttribute("aria-setsize", view.order.length);
  tile.setAttribute("aria-posinset", position + 1);
  tile.style.cssText = `top:${line.top}px;left:${(position - line.start) * (view.width + GAP)}px;width:${view.width}px`;
  const image = make("img");
  image.alt = "";
  image.decoding = "async";
  image.addEventListener("error", () => image.replaceWith(make("span", "missing", "no thumbnail")));
  image.src = thumbnail(view.section, i);
  tile.append(image, make("span", "label"), make("span", "state"));
  tile.addEventListener("click", () => select(position));
  tiles.set(position, tile);
  canvas.append(tile);
  describe(position);
}

function stateOf(section, i) {
  const label = section.decided(i);
  if (label === undefined) return "open";
  return label === section.label(i) ? "accepted" : "corrected";
}

function describe(position) {
  const tile = tiles.get(position);
  if (!tile) return;
  const { section } = view, i = view.order[position], state = stateOf(section, i);
  const label = section.decided(i) ?? section.label(i);
  const doubt = section.name === "given" ? `${percent(section.other_confidences[i])} ${section.other(i)}?` : "";
  const said = { open: doubt || percent(section.confidences[i]), accepted: "✓ accepted", corrected: `✎ was ${section.label(i)}` };
  tile.className = `tile ${state}${position === view.cursor ? " selected" : ""}`;
  tile.querySelector(".label").textContent = label;
  tile.querySelector(".state").textContent = said[state];
  tile.setAttribute("aria-selected", position === view.cursor);
  tile.setAttribute("aria-label", `${label}, ${said[state]}, ${section.files[i]}`);
}

function select(position) {
  const before = view.cursor;
  view.cursor = position;
  const line = view.lines[lineOf(position)];
  if (line?.start !== undefined) {
    const above = view.parts && position === 0 ? HEADING : 0;
    if (line.top - above < sheet.scrollTop) sheet.scrollTop = line.top - above;
    else if (line.top + line.height > sheet.scrollTop + sheet.clientHeight)
      sheet.scrollTop = line.top + line.height - sheet.clientHeight;
    render();
  }
  describe(before);
  describe(position);
  if (view.order.length) sheet.setAttribute("aria-activedescendant", `tile-${position}`);
  else sheet.removeAttribute("aria-activedescendant");
  showSelected();
}

// --- beside the sheet

let waiting = 0;

function showSelected() {
  const { section } = view, i = view.order[view.cursor], large = $("large"), facts = $("facts");
  clearTimeout(waiting);
  facts.replaceChildren();
  const link = $("open");
  const address = i === undefined ? null : original(section, i);
  link.hidden = address === null;
  for (const id of ["accept", "accept-screen"]) $(id).disabled = i === undefined;
  $("file").textContent = i === undefined ? "" : section.files[i];
  markClasses();
  if (i === undefined) return large.removeAttribute("src");
  const fact = (name, text) => facts.append(make("dt", "", name), make("dd", "", text));
  if (section.name === "given") {
    fact("Given", `${section.label(i)}, ${percent(section.confidences[i])}`);
    fact("Answered", `${section.other(i)}, ${percent(section.other_confidences[i])}`);
  } else {
    fact("Predicted", `${section.label(i)}, ${percent(section.confidences[i])}`);
    fact("Second", section.other(i));
    if (section.given(i) !== undefined) fact("Given", section.given(i));
    if (section.nearest && section.nearest[i] >= 0) fact("Nearest", DATA.classes[section.nearest[i]]);
  }
  const alike = section.group(i);
  $("same").hidden = alike === undefined;
  if (alike) $("same").firstElementChild.textContent = `Same for ${count(alike.length - 1)} alike`;
  if (section.decided(i) !== undefined) fact("Decided", section.decided(i));
  large.src = thumbnail(section, i);
  if (address === null) return;
  link.href = address;
  waiting = setTimeout(() => {
    const image = new Image(); // a format that browsers do not know stays a thumbnail
    image.onload = () => i === view.order[view.cursor] && section === view.section && (large.src = address);
    image.src = address;
  }, ORIGINAL_AFTER);
}

function showProgress() {
  const { section } = view;
  let done = 0, corrected = 0;
  for (let i = 0; i < section.length; i++) {
    const state = stateOf(section, i);
    done += state !== "open";
    corrected += state === "corrected";
  }
  $("progress").textContent = `${count(done)} of ${count(section.length)} decided, ${count(corrected)} corrected`;
}

function tell(text) {
  $("status").textContent = text;
}
