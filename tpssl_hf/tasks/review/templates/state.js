// What was decided, how it is kept, and the tables that come of it. Names come from users: they are only ever texts.
const DATA = window.REVIEW;
const STORED = DATA ? `tpssl-review-${DATA.id}` : "";

// Row of a data set ("p" and its number; "g" for given labels of other images) -> the label that somebody decided on.
const decisions = new Map();
const undoable = []; // lists of [key, label before or undefined]

function makeSection(name, columns, prefix) {
  const groupOf = new Map(); // item -> its near-duplicates and itself
  for (const group of columns.groups ?? []) for (const i of group) groupOf.set(i, group);
  return {
    ...columns,
    name,
    group: (i) => groupOf.get(i),
    given: (i) => givenLabels.get(columns.rows[i]),
    length: columns.rows.length,
    key: (i) => prefix + columns.rows[i],
    label: (i) => DATA.classes[columns.labels[i]],
    other: (i) => DATA.classes[columns.others[i]],
    decided: (i) => decisions.get(prefix + columns.rows[i]),
  };
}

const sections = {};
const givenLabels = new Map(); // row of the predicted images -> the label it was given
if (DATA) {
  if (DATA.given?.same_images) {
    DATA.given.all.rows.forEach((row, i) => givenLabels.set(row, DATA.classes[DATA.given.all.labels[i]]));
  }
  sections.predictions = makeSection("predictions", DATA.predictions, "p");
  if (DATA.given) sections.given = makeSection("given", DATA.given, DATA.given.same_images ? "p" : "g");
}

// Read what was decided before. Returns whether this browser keeps anything.
function restore() {
  try {
    const kept = JSON.parse(localStorage.getItem(STORED) || "{}");
    for (const [key, label] of Object.entries(kept)) if (typeof label === "string") decisions.set(key, label);
    return keep();
  } catch {
    return false;
  }
}

function keep() {
  try {
    localStorage.setItem(STORED, JSON.stringify(Object.fromEntries(decisions)));
    return true;
  } catch {
    return false;
  }
}

// Decide on images of a section: [[item, label], ...]. One undo takes all of it back.
function decide(section, choices) {
  undoable.push(choices.map(([i]) => [section.key(i), section.decided(i)]));
  for (const [i, label] of choices) decisions.set(section.key(i), label);
  return keep();
}

// Take the last decision back; returns the keys that it was about.
function undo() {
  const last = undoable.pop();
  if (!last) return [];
  for (const [key, before] of last) {
    if (before === undefined) decisions.delete(key);
    else decisions.set(key, before);
  }
  keep();
  return last.map(([key]) => key);
}

// Where the given labels are of the same images, one file holds them as well, as they are now.
function savedAs(section) {
  return section.name === "given" && !DATA.given.same_images ? "given_labels.csv" : "labels.csv";
}

// The table that a section saves: [[file or row, label], ...] below its header, a line for each image.
function tableOf(section) {
  const found = new Map();
  const withGiven = DATA.given && (section.name === "given" || DATA.given.same_images);
  if (withGiven) {
    const { rows, files, labels } = DATA.given.all;
    const prefix = DATA.given.same_images ? "p" : "g";
    rows.forEach((row, i) => found.set(row, [files[i], decisions.get(prefix + row) ?? DATA.classes[labels[i]]]));
  }
  if (savedAs(section) === "labels.csv") {
    const { rows, files } = DATA.predictions;
    rows.forEach((row, i) => {
      const label = decisions.get(`p${row}`);
      if (label !== undefined) found.set(row, [files[i], label]);
    });
  }
  const byRow = section.column === "row";
  const lines = [...found].sort((a, b) => a[0] - b[0]).map(([row, [file, label]]) => [byRow ? String(row) : file, label]);
  return [[section.column, "label"], ...lines];
}

function asCsv(table) {
  const cell = (text) => (/[",;|\t\r\n]|^\s|\s$/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
  return table.map((cells) => `${cells.map(cell).join(",")}\n`).join("");
}

function download(section) {
  const address = URL.createObjectURL(new Blob([asCsv(tableOf(section))], { type: "text/csv" }));
  const link = document.createElement("a");
  link.href = address;
  link.download = savedAs(section);
  link.click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}
