// The picture and what is drawn over it. Gradio runs this once with `element`, `trigger`, `props`, `upload` and `watch`.
//
// props.value, from the server, is JSON of {picture, serial, busy, regions, points, labels, box, strokes}, in source pixels.
// To the server: 'prompt' {points, labels, box, strokes, serial}, 'picked' {path, name, serial}, 'closed' {serial},
// 'refused' {name}. What the user points at lives here and is sent whole, so that of quick clicks none is lost.

const SVG = "http://www.w3.org/2000/svg";
const CLICK_REACH = 6; // screen pixels that the pointer may move within a click
const MOST_STEPS = 100; // that can be undone
const TALLEST = 640; // of the picture, in screen pixels
const CROWD = 12; // regions, beyond which their outlines are thinner
const THINNEST = 28; // likewise, so that a picture of one row can be seen and clicked

const root = element.querySelector(".canvas");
const stage = root.querySelector(".stage");
const frame = root.querySelector(".frame");
const image = frame.querySelector("img");
const drawing = frame.querySelector(".drawing");
const marks = frame.querySelector(".marks");
const files = root.querySelector(".file");
const brushSize = root.querySelector(".brush input");

const nothing = () => ({ points: [], labels: [], box: null, strokes: [] });
let shown = { regions: [], serial: 0 };
let picture = null;
let prompt = nothing();
let steps = [];
let serial = 0;
let uploads = 0;
let tool = "select";
let gesture = null; // what the pointer is drawing
let cursor = null; // the keyboard's pointer, in source pixels
let corner = null; // of a box begun with the keyboard
let hot = "";

// ---- geometry

function fit() {
  if (!picture) return;
  const room = stage.clientWidth;
  const tallest = Math.min(TALLEST, window.innerHeight * 0.7);
  const scale = Math.min(room / picture.width, tallest / picture.height);
  frame.style.width = Math.min(room, Math.max(picture.width * scale, THINNEST)) + "px";
  frame.style.height = Math.max(picture.height * scale, THINNEST) + "px";
}

function source(event) {
  const box = frame.getBoundingClientRect();
  const clamp = (value, most) => Math.min(Math.max(value, 0), most);
  return [
    clamp(((event.clientX - box.left) / box.width) * picture.width, picture.width),
    clamp(((event.clientY - box.top) / box.height) * picture.height, picture.height),
  ];
}

function screenDistance(a, b) {
  const box = frame.getBoundingClientRect();
  return Math.hypot(((a[0] - b[0]) / picture.width) * box.width, ((a[1] - b[1]) / picture.height) * box.height);
}

function brushWidth() {
  return Math.max(1, (Math.max(picture.width, picture.height) * brushSize.value) / 500);
}

function boxOf(a, b) {
  return [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[0], b[0]), Math.max(a[1], b[1])];
}

// ---- drawing

function add(parent, tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) node.setAttribute(name, value);
  parent.append(node);
  return node;
}

function place(text, kind, point) {
  const mark = document.createElement("span");
  mark.className = kind;
  mark.textContent = text;
  mark.style.left = (point[0] / picture.width) * 100 + "%";
  mark.style.top = (point[1] / picture.height) * 100 + "%";
  marks.append(mark);
  return mark;
}

function drawRegion(region) {
  const name = region.name || "selection";
  const group = add(drawing, "g", { class: "region", "data-name": name });
  group.style.setProperty("--colour", region.colour);
  group.style.setProperty("--strength", region.strength);
  add(group, "path", { class: "outer", d: region.path });
  add(group, "path", { class: "inner", d: region.path });
  if (region.note || region.name) {
    add(group, "title", {}).textContent = [region.name, region.note].filter(Boolean).join(": ");
  }
  if (region.name) {
    const label = place(region.name.replace(/^region(?=\d+$)/, ""), "label", region.anchor);
    label.dataset.name = name;
    label.style.setProperty("--colour", region.colour);
  }
}

function drawStroke(stroke) {
  add(drawing, "polyline", {
    class: stroke.positive ? "stroke" : "stroke negative",
    points: (stroke.points.length > 1 ? stroke.points : [stroke.points[0], stroke.points[0]]).join(" "),
    "stroke-width": stroke.width,
  });
}

function drawBox(box) {
  const [x, y, x1, y1] = box;
  for (const kind of ["box outer", "box inner"]) add(drawing, "rect", { class: kind, x, y, width: x1 - x, height: y1 - y });
}

function draw() {
  drawing.replaceChildren();
  marks.replaceChildren();
  root.dataset.pending = String(shown.serial !== serial); // the server has not answered yet
  if (!picture) return;
  drawing.setAttribute("viewBox", "0 0 " + picture.width + " " + picture.height);
  root.classList.toggle("crowded", shown.regions.length > CROWD);
  shown.regions.forEach(drawRegion);
  const settled = shown.regions.some((region) => !region.name) && shown.serial === serial;
  if (!settled) prompt.strokes.forEach(drawStroke); // until their region is there
  if (gesture && gesture.stroke) drawStroke(gesture.stroke);
  const box = gesture && gesture.box ? gesture.box : prompt.box;
  if (box) drawBox(box);
  prompt.points.forEach((point, index) => {
    place(prompt.labels[index] ? "+" : "−", prompt.labels[index] ? "point positive" : "point negative", point);
  });
  if (cursor) place("", "cursor", cursor);
  highlight(hot);
  root.querySelector("[data-do=undo]").disabled = !steps.length;
  root.querySelector("[data-do=clear]").disabled = isEmpty(prompt);
}

function highlight(name) {
  hot = name;
  const known = [...drawing.querySelectorAll("[data-name]")].some((node) => node.dataset.name === name);
  root.classList.toggle("some-hot", known);
  for (const node of frame.querySelectorAll("[data-name]")) node.classList.toggle("hot", node.dataset.name === name);
  for (const node of document.querySelectorAll("[data-region]")) node.classList.toggle("hot", node.dataset.region === name);
}

// ---- what the user points at

function isEmpty(pointed) {
  return !pointed.points.length && !pointed.box && !pointed.strokes.length;
}

function send() {
  serial += 1;
  draw();
  trigger("prompt", { ...prompt, serial });
}

function pointAt(next) {
  steps = [...steps, prompt].slice(-MOST_STEPS);
  prompt = next;
  send();
}

function undo() {
  if (!steps.length) return;
  prompt = steps.pop();
  send();
}

function clear() {
  corner = null;
  if (!isEmpty(prompt)) pointAt(nothing());
  else draw();
}

function click(point, away) {
  const negative = away || tool === "exclude";
  const goesOn = (negative || tool === "add") && !prompt.strokes.length;
  const before = goesOn ? prompt : nothing();
  pointAt({ ...before, points: [...before.points, point], labels: [...before.labels, !negative], strokes: [] });
}

function finishBox(a, b) {
  if (screenDistance(a, b) >= CLICK_REACH) pointAt({ ...nothing(), box: boxOf(a, b) });
  else draw();
}

function finishStroke(stroke) {
  pointAt({ ...nothing(), strokes: [...prompt.strokes, stroke] });
}

// ---- pointer

function begin(event) {
  if (!picture || gesture || event.button === 1) return;
  const start = source(event);
  const away = event.shiftKey || event.button === 2;
  gesture = { id: event.pointerId, start, end: start, away };
  cursor = null;
  if (tool === "brush") gesture.stroke = { points: [start], width: brushWidth(), positive: !away };
  if (tool === "box" || tool === "brush") {
    frame.setPointerCapture(event.pointerId);
    draw();
  }
}

function move(event) {
  showBrush(event);
  if (!gesture || gesture.id !== event.pointerId) return;
  gesture.end = source(event);
  if (tool === "box" && !gesture.away) gesture.box = boxOf(gesture.start, gesture.end);
  if (gesture.stroke && screenDistance(gesture.stroke.points.at(-1), gesture.end) > 2) gesture.stroke.points.push(gesture.end);
  if (gesture.box || gesture.stroke) draw();
}

function end(event) {
  if (!gesture || gesture.id !== event.pointerId) return;
  const { start, stroke, away } = gesture;
  const stop = source(event);
  gesture = null;
  if (stroke) finishStroke(stroke);
  else if (tool === "box" && !away) finishBox(start, stop);
  else if (screenDistance(start, stop) < CLICK_REACH) click(start, away);
  else draw();
}

function abandon() {
  gesture = null;
  draw();
}

function showBrush(event) {
  if (tool !== "brush" || !picture) return;
  const box = frame.getBoundingClientRect();
  frame.style.setProperty("--x", event.clientX - box.left + "px");
  frame.style.setProperty("--y", event.clientY - box.top + "px");
  frame.style.setProperty("--brush", (brushWidth() / picture.width) * box.width + "px");
}

frame.addEventListener("pointerdown", begin);
frame.addEventListener("pointermove", move);
frame.addEventListener("pointerup", end);
frame.addEventListener("pointercancel", abandon);
frame.addEventListener("contextmenu", (event) => event.preventDefault());
frame.addEventListener("pointerover", (event) => {
  const region = event.target.closest("[data-name]");
  highlight(region && region.dataset.name !== "selection" ? region.dataset.name : "");
});
frame.addEventListener("pointerleave", () => highlight(""));

// ---- keyboard

function moveCursor(dx, dy, fine) {
  const step = Math.max(picture.width, picture.height) * (fine ? 0.002 : 0.02);
  const [x, y] = cursor || [picture.width / 2, picture.height / 2];
  cursor = [Math.min(Math.max(x + dx * step, 0), picture.width), Math.min(Math.max(y + dy * step, 0), picture.height)];
  if (corner) gesture = { id: -1, box: boxOf(corner, cursor) };
  draw();
}

function pressAtCursor(away) {
  cursor = cursor || [picture.width / 2, picture.height / 2];
  if (tool === "brush") finishStroke({ points: [cursor], width: brushWidth(), positive: !away });
  else if (tool !== "box" || away) click(cursor, away);
  else if (!corner) corner = cursor;
  else {
    const begun = corner;
    corner = gesture = null;
    finishBox(begun, cursor);
  }
}

frame.addEventListener("keydown", (event) => {
  const arrows = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };
  const keys = { 1: "select", 2: "add", 3: "exclude", 4: "box", 5: "brush" };
  if (arrows[event.key]) moveCursor(...arrows[event.key], event.altKey);
  else if (event.key === "Enter" || event.key === " ") pressAtCursor(event.shiftKey);
  else if (event.key === "Escape") (gesture = null), clear();
  else if (event.key === "z" && (event.ctrlKey || event.metaKey)) undo();
  else if (keys[event.key]) choose(keys[event.key]);
  else return;
  event.preventDefault();
});
frame.addEventListener("blur", () => {
  cursor = corner = gesture = null;
  draw();
});

// ---- tools and files

function choose(name) {
  tool = root.dataset.tool = name;
  corner = gesture = null;
  for (const button of root.querySelectorAll("button[data-tool]")) {
    button.setAttribute("aria-pressed", String(button.dataset.tool === name));
  }
}

function fileAddress(path) {
  const { root = "", api_prefix: prefix = "/gradio_api" } = window.gradio_config || {};
  return root.replace(/\/$/, "") + prefix + "/file=" + path.split("/").map(encodeURIComponent).join("/");
}

function setState(state, text) {
  root.dataset.state = state;
  root.querySelector(".reading span").textContent = text;
}

async function open(file) {
  if (!file) return;
  uploads += 1;
  const mine = uploads;
  const before = root.dataset.state;
  setState("busy", "Uploading " + file.name + " …");
  try {
    const { path } = await upload(file);
    if (mine !== uploads) return;
    serial += 1;
    trigger("picked", { path, name: file.name, serial });
  } catch (error) {
    setState(before, "");
    trigger("refused", { name: file.name });
  }
}

function close() {
  serial += 1;
  trigger("closed", { serial });
}

root.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (!button) return;
  if (button.dataset.tool) choose(button.dataset.tool);
  const acts = { undo, clear, close, replace: () => files.click() };
  if (button.dataset.do) acts[button.dataset.do]();
});
files.addEventListener("change", () => {
  open(files.files[0]);
  files.value = "";
});
stage.addEventListener("dragover", (event) => {
  event.preventDefault();
  root.classList.add("dropping");
});
stage.addEventListener("dragleave", () => root.classList.remove("dropping"));
stage.addEventListener("drop", (event) => {
  event.preventDefault();
  root.classList.remove("dropping");
  open(event.dataTransfer.files[0]);
});
document.addEventListener("paste", (event) => {
  if (element.isConnected) open([...event.clipboardData.files].find((file) => file.type.startsWith("image/")));
});

// ---- names of regions anywhere on the page

for (const kind of ["pointerover", "focusin"]) {
  document.addEventListener(kind, (event) => {
    if (!element.isConnected || frame.contains(event.target)) return;
    const name = event.target.closest && event.target.closest("[data-region]");
    highlight(name ? name.dataset.region : "");
  });
}

// ---- from the server

function show() {
  const value = JSON.parse(props.value);
  const other = !value.picture || !picture || value.picture.file !== picture.file;
  const current = value.serial >= serial; // otherwise it answers an earlier click, and the user has gone on
  shown = value;
  picture = value.picture;
  if (other) steps = [];
  if (other || current) {
    prompt = { points: value.points, labels: value.labels, box: value.box, strokes: value.strokes };
    serial = Math.max(serial, value.serial);
  }
  if (other && picture) image.src = fileAddress(picture.file);
  setState(picture ? "ready" : value.busy ? "busy" : "empty", value.busy || "");
  fit();
  draw();
}

choose("select");
new ResizeObserver(fit).observe(stage);
window.addEventListener("resize", fit);
watch("value", show);
show();
