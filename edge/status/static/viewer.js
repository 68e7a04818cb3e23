// The slice viewer. Slices arrive as HU (int16), so that the window is changed here, without the
// server; a few are kept, and the neighbours of the one that is shown are fetched ahead.
"use strict";

const KEEP = 96, AHEAD = 3, POLL_MS = 700;
const PLANES = {
  axial: { normal: 0, rows: 1, columns: 2, letters: "RLAP" },
  coronal: { normal: 1, rows: 0, columns: 2, letters: "RLHF" },
  sagittal: { normal: 2, rows: 0, columns: 1, letters: "APHF" },
};
const STEP = { level: 20, width: 50 };
const byId = name => document.getElementById(name);
const base = document.body.dataset.base;
const study = `${base}/study/${document.body.dataset.study}`;
const stage = byId("stage"), canvas = byId("slice"), overlay = byId("overlay"), slider = byId("slider");
const source = document.createElement("canvas");

let volume = null, slices = new Map(), chosen = null, pending = null;
const view = { plane: "axial", at: { axial: 0, coronal: 0, sagittal: 0 }, level: -600, width: 1500, marks: true };
const plane = () => PLANES[view.plane];
const count = () => volume.shape[plane().normal];

// --- opening

async function open() {
  let answer = await ask("GET");
  if (answer.state === "closed" || answer.state === "failed") answer = await ask("POST");
  while (answer.state === "reading") {
    say("The images are being read from this study's files.");
    await new Promise(done => setTimeout(done, POLL_MS));
    answer = await ask("GET");
  }
  if (answer.state !== "ready") return say(answer.reason || "The images cannot be shown.");
  volume = answer;
  for (const name of Object.keys(PLANES)) view.at[name] = Math.floor(volume.shape[PLANES[name].normal] / 2);
  byId("message").hidden = true;
  const number = Number(location.hash.slice(1));
  const first = volume.marks.find(mark => mark.number === number);
  if (first) jump(first.number); else choosePlane("axial");
}

async function ask(method) {
  const headers = method === "POST" ? { "X-Form-Token": document.body.dataset.token } : {};
  try {
    const answer = await fetch(`${study}/volume`, { method, headers });
    if (answer.status === 401) { location.href = `${base}/login?next=${encodeURIComponent(location.pathname.slice(base.length))}`; return { state: "failed", reason: "Log in first." }; }
    return answer.ok ? await answer.json() : { state: "failed", reason: (await answer.text()).slice(0, 200) };
  } catch {
    return { state: "failed", reason: "The agent does not answer." };
  }
}

function say(text) {
  const message = byId("message");
  message.hidden = false;
  message.firstElementChild.textContent = text;
}

// --- slices

function fetchSlice(name, index) {
  const key = `${name}/${index}`;
  if (slices.has(key)) {
    const known = slices.get(key);
    slices.delete(key);
    slices.set(key, known);  // it is the newest again
    return known;
  }
  const coming = fetch(`${study}/slice/${key}`).then(async answer => {
    if (!answer.ok) throw new Error(answer.status === 404 ? "The images of this study were removed from this machine." : `status ${answer.status}`);
    const hu = new Int16Array(await answer.arrayBuffer());
    return { hu, rows: Number(answer.headers.get("x-rows")), columns: Number(answer.headers.get("x-columns")) };
  });
  coming.catch(() => slices.delete(key));
  slices.set(key, coming);
  while (slices.size > KEEP) slices.delete(slices.keys().next().value);
  return coming;
}

async function show() {
  const name = view.plane, index = view.at[name], wanted = `${name}/${index}`;
  pending = wanted;
  describe();
  try {
    const slice = await fetchSlice(name, index);
    if (pending !== wanted) return;
    draw(slice);
    for (let away = 1; away <= AHEAD; away++)
      for (const next of [index + away, index - away])
        if (next >= 0 && next < count()) fetchSlice(name, next).catch(() => {});
  } catch (error) {
    if (pending === wanted) say(error.message);
  }
}

let shown = null;
function draw(slice) {
  shown = slice;
  const { hu, rows, columns } = slice;
  source.width = columns;
  source.height = rows;
  const context = source.getContext("2d"), image = context.createImageData(columns, rows);
  const pixels = new Uint32Array(image.data.buffer), scale = 255 / view.width, low = view.level - view.width / 2;
  for (let i = 0; i < hu.length; i++) {
    const value = (hu[i] - low) * scale, grey = value < 0 ? 0 : value > 255 ? 255 : value | 0;
    pixels[i] = 0xff000000 | (grey << 16) | (grey << 8) | grey;
  }
  context.putImageData(image, 0, 0);
  place();
}

// Fit the slice into the stage: millimetres are square, voxels may not be.
function place() {
  if (!shown) return;
  const [rowMm, columnMm] = [volume.spacing_mm[plane().rows], volume.spacing_mm[plane().columns]];
  const width = shown.columns * columnMm, height = shown.rows * rowMm, room = stage.getBoundingClientRect();
  const scale = Math.min(room.width / width, room.height / height), ratio = window.devicePixelRatio || 1;
  const box = { left: (room.width - width * scale) / 2, top: (room.height - height * scale) / 2, width: width * scale, height: height * scale };
  for (const part of [canvas, overlay])
    for (const side of Object.keys(box)) part.style[side] = `${box[side]}px`;
  canvas.width = Math.round(box.width * ratio);
  canvas.height = Math.round(box.height * ratio);
  const context = canvas.getContext("2d");
  context.imageSmoothingQuality = "high";
  context.drawImage(source, 0, 0, canvas.width, canvas.height);
  drawMarks(box.width / shown.columns, box.height / shown.rows, scale);
  describe();
}

// --- marks

function svg(name, attributes, text) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (text) made.textContent = text;
  return made;
}

// --- outlines: which voxels are inside, and the line around them in one slice

function unpack(outline) {
  const packed = Uint8Array.from(atob(outline.bits), letter => letter.charCodeAt(0));
  const [, rows, columns] = outline.shape, last = outline.start.map((first, axis) => first + outline.shape[axis]);
  return (z, y, x) => {
    if (z < outline.start[0] || y < outline.start[1] || x < outline.start[2] || z >= last[0] || y >= last[1] || x >= last[2]) return 0;
    const bit = ((z - outline.start[0]) * rows + y - outline.start[1]) * columns + x - outline.start[2];
    return (packed[bit >> 3] >> (7 - (bit & 7))) & 1;
  };
}

// Between four voxels: which edges of their square (top, right, bottom, left) the line joins.
const EDGES = [[0.5, 0], [1, 0.5], [0.5, 1], [0, 0.5]];
const LINES = ["", "32", "21", "31", "01", "0321", "02", "03", "03", "02", "0123", "01", "31", "12", "32", ""];

function lineAround(mark, perColumn, perRow) {
  const { normal, rows, columns } = plane(), { start, shape } = mark.outline, at = [0, 0, 0];
  mark.isInside ??= unpack(mark.outline);
  at[normal] = view.at[view.plane];
  const inside = (row, column) => { at[rows] = row; at[columns] = column; return mark.isInside(...at); };
  const flip = row => (view.plane === "axial" ? row : volume.shape[rows] - 1 - row);
  const point = (row, column) => `${((column + 0.5) * perColumn).toFixed(1)} ${((flip(row) + 0.5) * perRow).toFixed(1)}`;
  let path = "";
  for (let row = start[rows] - 1; row < start[rows] + shape[rows]; row++)
    for (let column = start[columns] - 1; column < start[columns] + shape[columns]; column++) {
      if (mark.possible && (row + column) & 2) continue;  // dashed, as its circle is
      const line = LINES[8 * inside(row, column) + 4 * inside(row, column + 1) + 2 * inside(row + 1, column + 1) + inside(row + 1, column)];
      for (let i = 0; i < line.length; i++) {
        const [right, down] = EDGES[line[i]];
        path += `${i % 2 ? "L" : "M"}${point(row + down, column + right)}`;
      }
    }
  return path;
}

function drawMarks(perColumn, perRow, scale) {
  overlay.replaceChildren();
  const { normal, rows, columns } = plane(), step = volume.spacing_mm[normal];
  for (const mark of volume.marks) {
    const radius = mark.diameter_mm / 2, away = (mark.index[normal] - view.at[view.plane]) * step;
    if (!mark.outline && Math.abs(away) > Math.max(radius, step / 2)) continue;
    const row = view.plane === "axial" ? mark.index[rows] : volume.shape[rows] - 1 - mark.index[rows];
    const x = (mark.index[columns] + 0.5) * perColumn, y = (row + 0.5) * perRow;
    const r = Math.max(Math.sqrt(Math.max(radius * radius - away * away, 0)) * scale, 5) + 3;
    const group = svg("g", { class: `${mark.possible ? "possible" : "sure"}${mark.number === chosen ? " chosen" : ""}`, "data-number": mark.number });
    const around = mark.outline ? lineAround(mark, perColumn, perRow) : "";
    if (mark.outline && !around && Math.abs(away) > step / 2) continue;
    group.append(around ? svg("path", { d: around }) : svg("circle", { cx: x, cy: y, r }));
    group.append(svg("text", { x: x + r * 0.75 + 3, y: y - r * 0.75 - 2 }, `${mark.number}${mark.possible ? "?" : ""}  ${mark.probability.toFixed(2)}`));
    overlay.append(group);
  }
  overlay.classList.toggle("off", !view.marks);
}

function describe() {
  const index = view.at[view.plane], total = count();
  const image = view.plane === "axial" ? volume.images[index] : null;
  const text = image ? `image ${image}, slice ${index + 1} of ${total}` : `slice ${index + 1} of ${total}`;
  slider.max = total - 1;
  slider.value = index;
  slider.setAttribute("aria-valuetext", text);
  byId("number").textContent = text;
  byId("where").textContent = view.plane[0].toUpperCase() + view.plane.slice(1);
  byId("window").textContent = `W ${Math.round(view.width)}  L ${Math.round(view.level)}`;
  ["left", "right", "top", "bottom"].forEach((side, i) => { document.querySelector(`.letter.${side}`).textContent = plane().letters[i]; });
  press("[data-plane]", button => button.dataset.plane === view.plane);
  press("[data-level]", button => Number(button.dataset.level) === view.level && Number(button.dataset.width) === view.width);
  for (const entry of document.querySelectorAll(".entry")) entry.setAttribute("aria-current", String(Number(entry.dataset.number) === chosen));
}

function press(selector, is) {
  for (const button of document.querySelectorAll(selector)) button.setAttribute("aria-pressed", String(is(button)));
}

// --- what a person does

function goTo(index) {
  if (!volume) return;
  const next = Math.min(Math.max(Math.round(index), 0), count() - 1);
  if (next !== view.at[view.plane]) { view.at[view.plane] = next; show(); }
}
const scroll = by => volume && goTo(view.at[view.plane] + by);

function choosePlane(name) {
  if (!volume) return;
  view.plane = name;
  shown = null;
  show();
}

function setWindow(level, width) {
  view.level = Math.min(Math.max(level, -1500), 3000);
  view.width = Math.min(Math.max(width, 1), 5000);
  if (shown) draw(shown);
}

function jump(number) {
  const mark = volume && volume.marks.find(one => one.number === number);
  if (!mark) return;
  chosen = number;
  for (const [name, { normal }] of Object.entries(PLANES))
    view.at[name] = Math.min(Math.max(Math.round(mark.index[normal]), 0), volume.shape[normal] - 1);
  const entry = document.querySelector(`.entry[data-number="${number}"]`);
  if (entry) entry.scrollIntoView({ block: "nearest" });
  show();
}

function jumpBy(by) {
  if (!volume || !volume.marks.length) return;
  const at = volume.marks.findIndex(mark => mark.number === chosen);
  const next = at < 0 ? (by > 0 ? 0 : volume.marks.length - 1) : (at + by + volume.marks.length) % volume.marks.length;
  jump(volume.marks[next].number);
}

function toggleMarks() {
  view.marks = !view.marks;
  byId("marks").setAttribute("aria-pressed", String(view.marks));
  place();
}

const KEYS = {
  ArrowUp: () => scroll(1), ArrowDown: () => scroll(-1), PageUp: () => scroll(10), PageDown: () => scroll(-10),
  Home: () => goTo(0), End: () => goTo(Infinity), n: () => jumpBy(1), p: () => jumpBy(-1),
  a: () => choosePlane("axial"), c: () => choosePlane("coronal"), s: () => choosePlane("sagittal"), m: toggleMarks,
  ArrowRight: () => setWindow(view.level + STEP.level, view.width), ArrowLeft: () => setWindow(view.level - STEP.level, view.width),
  "+": () => setWindow(view.level, view.width + STEP.width), "-": () => setWindow(view.level, view.width - STEP.width),
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.metaKey || event.altKey || event.target === slider) return;
  const preset = document.querySelectorAll("[data-level]")[Number(event.key) - 1];
  const action = preset ? () => preset.click() : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action) return;
  event.preventDefault();
  action();
});

let wheel = 0;
stage.addEventListener("wheel", event => {
  event.preventDefault();
  wheel += event.deltaMode === 0 ? event.deltaY / 40 : event.deltaY;
  const steps = Math.trunc(wheel);
  if (steps) { wheel -= steps; scroll(-steps); }
}, { passive: false });

// A mouse changes the window; one finger scrolls, two change the window.
const fingers = new Map();
let drag = null;
stage.addEventListener("pointerdown", event => {
  stage.setPointerCapture(event.pointerId);
  fingers.set(event.pointerId, event);
  drag = { x: event.clientX, y: event.clientY, level: view.level, width: view.width, at: volume ? view.at[view.plane] : 0 };
});
stage.addEventListener("pointermove", event => {
  readHu(event);
  if (!fingers.has(event.pointerId) || !drag || !volume) return;
  const dx = event.clientX - drag.x, dy = event.clientY - drag.y;
  if (event.pointerType === "touch" && fingers.size === 1) goTo(drag.at - dy / 6);
  else if (event.pointerType !== "touch" || event.pointerId === [...fingers.keys()][0]) setWindow(Math.round(drag.level + dy * 2), Math.round(drag.width + dx * 4));
});
for (const name of ["pointerup", "pointercancel"])
  stage.addEventListener(name, event => { fingers.delete(event.pointerId); if (!fingers.size) drag = null; });

function readHu(event) {
  const box = canvas.getBoundingClientRect();
  const column = Math.floor((event.clientX - box.left) / box.width * (shown ? shown.columns : 0));
  const row = Math.floor((event.clientY - box.top) / box.height * (shown ? shown.rows : 0));
  const inside = shown && row >= 0 && column >= 0 && row < shown.rows && column < shown.columns;
  byId("hu").textContent = inside ? `${shown.hu[row * shown.columns + column]} HU` : "";
}

slider.addEventListener("input", () => goTo(Number(slider.value)));
for (const button of document.querySelectorAll("[data-plane]")) button.addEventListener("click", () => choosePlane(button.dataset.plane));
for (const button of document.querySelectorAll("[data-level]"))
  button.addEventListener("click", () => { setWindow(Number(button.dataset.level), Number(button.dataset.width)); if (volume) describe(); });
for (const entry of document.querySelectorAll(".entry")) entry.addEventListener("click", () => jump(Number(entry.dataset.number)));
byId("marks").addEventListener("click", toggleMarks);
new ResizeObserver(place).observe(stage);
open();
