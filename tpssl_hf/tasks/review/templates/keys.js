// Keys, buttons, and the start of the page.
const CLASS_KEYS = "1234567890abcdefghijklmnopqrtvwxyz"; // without s and u
const names = []; // classes, and names that somebody typed
const NOT_KEPT = "This browser keeps no progress for this page: download the table before you close it.";

function addName(name) {
  if (!names.includes(name)) names.push(name);
}

// --- classes

const matches = (text) => names.filter((name) => name.toLowerCase().includes(text.toLowerCase()));

function listClasses() {
  const text = $("find").value.trim(), found = matches(text);
  const buttons = found.slice(0, MOST_CLASSES).map((name) => {
    const key = CLASS_KEYS[names.indexOf(name)], button = make("button", "", name);
    button.type = "button";
    if (key) button.prepend(make("kbd", "", key.toUpperCase()), " ");
    button.dataset.number = names.indexOf(name);
    button.addEventListener("click", () => choose(name));
    return button;
  });
  if (text && !names.some((name) => name.toLowerCase() === text.toLowerCase())) {
    const button = make("button", "new", `New class: ${text}`);
    button.type = "button";
    button.addEventListener("click", () => choose(text));
    buttons.push(button);
  }
  if (found.length > MOST_CLASSES) buttons.push(make("span", "more", `${count(found.length - MOST_CLASSES)} more: type`));
  $("classes").replaceChildren(...buttons);
  markClasses();
}

function markClasses() {
  const i = view.order[view.cursor];
  const label = i === undefined ? undefined : view.section.decided(i) ?? view.section.label(i);
  for (const button of $("classes").querySelectorAll("[data-number]")) {
    button.setAttribute("aria-pressed", names[button.dataset.number] === label);
    button.disabled = i === undefined;
  }
}

function choose(name) {
  const changed = $("find").value !== "" || !names.includes(name);
  addName(name);
  $("find").value = "";
  if (changed) listClasses();
  sheet.focus();
  settle([[view.order[view.cursor], name]]);
}

// --- decisions

// Note decisions on images, [[item, label], ...], say what was done, and go on to the image after the last.
function settle(choices, what, last = view.cursor) {
  if (!choices.length || choices[0][0] === undefined) return;
  const { section } = view, [i, label] = choices[0];
  const kept = decide(section, choices);
  const said = what ?? `${section.files[i]}: ${label}`;
  tell(kept ? said : `${said}. ${NOT_KEPT}`);
  showProgress();
  for (const position of tiles.keys()) describe(position);
  select(Math.min(last + 1, view.order.length - 1));
}

const accept = () => {
  const i = view.order[view.cursor];
  if (i !== undefined) settle([[i, view.section.label(i)]]);
};

// Accept every image that is wholly on the screen and not decided yet.
function acceptScreen() {
  const bottom = sheet.scrollTop + sheet.clientHeight;
  const seen = view.lines.filter(
    (line) => line.start !== undefined && line.top >= sheet.scrollTop - GAP && line.top + TILE <= bottom,
  );
  const items = seen.flatMap((line) => view.order.slice(line.start, line.end));
  const open = items.filter((i) => view.section.decided(i) === undefined);
  const last = Math.max(...open.map((i) => view.order.indexOf(i)));
  if (open.length === 1) settle([[open[0], view.section.label(open[0])]], undefined, last);
  else if (open.length) settle(open.map((i) => [i, view.section.label(i)]), `${count(open.length)} images accepted`, last);
  else tell("Every image on the screen is decided.");
}

// Give the near-duplicates of the selected image the label that it has, and itself.
function decideAlike() {
  const { section } = view, i = view.order[view.cursor], group = i === undefined ? undefined : section.group(i);
  if (!group) return tell("No other image is a near-duplicate of this one.");
  const label = section.decided(i) ?? section.label(i), where = new Set(group);
  let last = view.cursor;
  while (view.parts === byGroup && where.has(view.order[last + 1])) last++;
  settle(group.map((item) => [item, label]), `${count(group.length)} images alike: ${label}`, last);
}

function undoLast() {
  const keys = new Set(undo());
  if (!keys.size) return tell("There is nothing to undo.");
  for (const position of tiles.keys()) describe(position);
  showProgress();
  const position = view.order.findIndex((i) => keys.has(view.section.key(i)));
  select(position < 0 ? view.cursor : position);
  tell(keys.size > 1 ? `${count(keys.size)} decisions taken back` : "Decision taken back");
}

function save() {
  download(view.section);
  const lines = tableOf(view.section).length - 1;
  tell(`${savedAs(view.section)}: ${count(lines)} ${lines === 1 ? "label" : "labels"}`);
}

// --- keys

function move(event) {
  const line = lineOf(view.cursor), { start } = view.lines[line], page = Math.floor(sheet.clientHeight / (TILE + GAP));
  const across = (step) => {
    let target = line;
    for (let left = Math.abs(step); left; left--) {
      let next = target + Math.sign(step);
      if (view.lines[next]?.heading !== undefined) next += Math.sign(step);
      if (view.lines[next] === undefined) break;
      target = next;
    }
    return target === line ? view.cursor : Math.min(view.lines[target].start + view.cursor - start, view.lines[target].end - 1);
  };
  const target = {
    ArrowLeft: () => view.cursor - 1,
    ArrowRight: () => view.cursor + 1,
    ArrowUp: () => across(-1),
    ArrowDown: () => across(1),
    PageUp: () => across(-Math.max(1, page)),
    PageDown: () => across(Math.max(1, page)),
    Home: () => 0,
    End: () => view.order.length - 1,
  }[event.key];
  if (!target) return false;
  select(Math.max(0, Math.min(target(), view.order.length - 1)));
  return true;
}

function pressed(event) {
  const at = event.target.tagName, key = event.key.toLowerCase();
  if (event.ctrlKey || event.metaKey || event.altKey || event.isComposing) return;
  if (key === "escape") {
    $("find").value = "";
    listClasses();
    sheet.focus();
  } else if (event.target === $("find")) {
    const text = $("find").value.trim();
    if (key !== "enter" || !text) return;
    choose(names.find((name) => name.toLowerCase() === text.toLowerCase()) ?? matches(text)[0] ?? text);
  } else if (at === "SELECT" || ((at === "BUTTON" || at === "A") && (key === "enter" || key === " "))) {
    return;
  } else if (key === "enter") {
    event.shiftKey ? acceptScreen() : accept();
  } else if (key === "/") {
    $("find").focus();
  } else if (key === "=") {
    decideAlike();
  } else if (key === "u") {
    undoLast();
  } else if (key === "s") {
    save();
  } else if (key.length === 1 && CLASS_KEYS.includes(key) && CLASS_KEYS.indexOf(key) < names.length) {
    if (view.order.length) choose(names[CLASS_KEYS.indexOf(key)]);
  } else if (!view.order.length || !move(event)) {
    return;
  }
  event.preventDefault();
}

// --- start

function noteOf(section) {
  if (section.name === "predictions") {
    const { groups, disagreeing } = section;
    const differ = disagreeing ? `, ${count(disagreeing)} of them with different given labels` : "";
    const alike = groups.length ? ` Groups of near-duplicates: ${count(groups.length)}${differ} (see Order).` : "";
    const about = `${count(section.length)} predictions, with the model's confidence.`;
    return `${DATA.given ? "" : `${DATA.given_unknown} `}${about}${alike}`;
  }
  const shown = section.found > section.length ? `; the ${count(section.length)} least probable are here` : "";
  return (
    `Possible errors: networks finetuned without the given labels answered ${count(section.found)} of ` +
    `${count(section.asked)} otherwise${shown}. Accept what is right, correct what is wrong.`
  );
}

function show(name) {
  const section = (view.section = sections[name]);
  for (const each of ["given", "predictions"]) $(`show-${each}`).setAttribute("aria-pressed", each === name);
  const sizes = new Map();
  for (const label of section.labels) sizes.set(label, (sizes.get(label) ?? 0) + 1);
  const options = [...sizes].sort((a, b) => a[0] - b[0]).map(([label, size]) => {
    const option = make("option", "", `${DATA.classes[label]} (${count(size)})`);
    option.value = label;
    return option;
  });
  const all = make("option", "", "all");
  all.value = "";
  $("class").replaceChildren(all, ...options);
  const alike = $("order").querySelector("[value=alike]");
  alike.disabled = !section.groups?.length;
  if (alike.disabled && $("order").value === "alike") $("order").value = "doubt";
  $("note").textContent = noteOf(section);
  $("save").firstElementChild.textContent = `Download ${savedAs(section)}`;
  showProgress();
  arrange();
}

function start() {
  if (!DATA) return void ($("note").textContent = "data.js is missing beside this page: run tpssl-hf review again.");
  DATA.classes.forEach(addName);
  if (!restore()) tell(NOT_KEPT);
  decisions.forEach((label) => addName(label));
  document.title = `Review: ${DATA.title}`;
  $("title").textContent = DATA.title;
  for (const name of ["given", "predictions"]) {
    const button = $(`show-${name}`);
    button.disabled = !sections[name];
    button.lastElementChild.textContent = sections[name] ? count(sections[name].length) : "–";
    button.addEventListener("click", () => show(name));
  }
  for (const id of ["order", "class", "which"]) $(id).addEventListener("change", arrange);
  const buttons = { save, accept, "accept-screen": acceptScreen, same: decideAlike, undo: undoLast };
  for (const [id, action] of Object.entries(buttons)) $(id).addEventListener("click", action);
  $("find").addEventListener("input", listClasses);
  sheet.addEventListener("scroll", render, { passive: true });
  document.addEventListener("keydown", pressed);
  listClasses();
  show(sections.given?.length ? "given" : "predictions");
  let width = canvas.clientWidth;
  new ResizeObserver(() => {
    if (canvas.clientWidth === width) return render();
    width = canvas.clientWidth;
    layOut();
  }).observe(sheet);
  sheet.focus();
}

start();
