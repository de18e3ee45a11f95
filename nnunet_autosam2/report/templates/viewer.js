"use strict";

const report = JSON.parse(document.getElementById("report").textContent);
const element = (id) => document.getElementById(id);
const AXES = [["Axial", 2], ["Coronal", 1], ["Sagittal", 0]];
const { MULTIPLANAR, AXIAL, CORONAL, SAGITTAL, RENDER } = niivue.SLICE_TYPE;
const VIEWS = [["All", MULTIPLANAR], ["Axial", AXIAL], ["Coronal", CORONAL], ["Sagittal", SAGITTAL], ["3D", RENDER]];
const COLOURS = {
  R: [0, ...report.labels.map((label) => label.colour[0])],
  G: [0, ...report.labels.map((label) => label.colour[1])],
  B: [0, ...report.labels.map((label) => label.colour[2])],
  A: [0, ...report.labels.map(() => 255)],
  labels: ["background", ...report.labels.map((label) => label.title)],
};

const nv = new niivue.Niivue({
  backColor: [0, 0, 0, 1],
  crosshairColor: [0.45, 0.65, 0.75, 1],
  crosshairGap: 8,
  crosshairWidth: 0.4,
  dragAndDropEnabled: false,
  isRadiologicalConvention: true,
  loadingText: "",
  logLevel: "error",
  multiplanarForceRender: true,
  multiplanarLayout: niivue.MULTIPLANAR_TYPE.GRID,
  multiplanarPadPixels: 4,
  onLocationChange: showLocation,
});

let current; // The case that is open
let channel; // Its background, an NVImage
let overlays = []; // Of the case, each with title, image, shown and outlined
let opening = 0; // Counts, so that an older case that arrives late is dropped

// Volumes are scripts that call `receive`: a page that was opened as a file may load scripts, but not fetch files.
const awaited = new Map();

function receive(file, base64) {
  awaited.get(file)(base64);
}

function load(file) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    awaited.set(file, resolve);
    script.onload = () => script.remove();
    script.onerror = () => reject(new Error(`${file} is missing beside this page.`));
    script.src = file;
    document.head.append(script);
  });
}

async function loadImage(file) {
  return niivue.NVImage.loadFromBase64({ base64: await load(file), name: "volume.nii.gz", colormap: "gray" });
}

async function loadOverlay({ title, file, dice }, index) {
  const overlay = { title, dice, image: null, shown: index < 2, outlined: index === 0 };
  if (file === null) return overlay;
  overlay.image = await loadImage(file);
  overlay.image.setColormapLabel(COLOURS);
  overlay.filled = overlay.image.img;
  return overlay;
}

// Voxels with a neighbour of another label
function outlineOf({ filled, image }) {
  const [, width, height] = image.hdr.dims;
  const steps = [1, -1, width, -width, width * height, -width * height];
  return filled.map((label, voxel) => (label && steps.some((step) => filled[voxel + step] !== label) ? label : 0));
}

async function guarded(work) {
  const ticket = ++opening;
  element("message").textContent = "Loading …";
  try {
    await work(() => ticket === opening);
    if (ticket === opening) element("message").textContent = "";
  } catch (error) {
    if (ticket === opening) element("message").textContent = error.message;
  }
}

function openCase(number) {
  return guarded(async (isCurrent) => {
    const opened = report.cases[number];
    const name = channel?.name;
    const wanted = opened.channels.find(({ title }) => title === name) ?? opened.channels[0];
    const settings = new Map(overlays.map((overlay) => [overlay.title, overlay]));
    const [image, ...loaded] = await Promise.all([loadImage(wanted.file), ...opened.overlays.map(loadOverlay)]);
    if (!isCurrent()) return;
    for (const overlay of loaded) {
      const { shown, outlined } = settings.get(overlay.title) ?? overlay;
      Object.assign(overlay, { shown, outlined });
    }
    [current, channel, overlays] = [opened, { name: wanted.title, image }, loaded];
    element("case").value = number;
    history.replaceState(null, "", `#${number}`);
    listChannels();
    listOverlays();
    stack();
    if (current.centre) nv.scene.crosshairPos = nv.vox2frac(nv.frac2vox(nv.mm2frac(current.centre)));
    limitSliders();
    moved();
  });
}

function openChannel({ title, file }) {
  return guarded(async (isCurrent) => {
    const image = await loadImage(file);
    if (!isCurrent()) return;
    channel = { name: title, image };
    stack();
    moved();
  });
}

function stack() {
  for (const overlay of overlays.filter(({ image }) => image)) {
    overlay.image.img = overlay.outlined ? (overlay.outline ??= outlineOf(overlay)) : overlay.filled;
    overlay.image.opacity = overlay.shown ? (overlay.outlined ? 1 : element("opacity").value / 100) : 0;
  }
  nv.volumes = [channel.image, ...overlays.flatMap(({ image }) => image ?? [])];
  nv.setVolume(channel.image, 0);
}

function slice(axis) {
  return nv.frac2vox(nv.scene.crosshairPos)[axis];
}

function moveTo(axis, number) {
  const voxel = [...nv.frac2vox(nv.scene.crosshairPos)];
  voxel[axis] = Math.min(Math.max(number, 0), channel.image.dimsRAS[axis + 1] - 1);
  nv.scene.crosshairPos = nv.vox2frac(voxel);
  moved();
}

function moved() {
  nv.createOnLocationChange();
  nv.drawScene();
}

function showLocation({ mm, values }) {
  for (const [title, axis] of AXES) {
    const [slider, output] = sliders[axis];
    slider.value = slice(axis);
    output.value = `${slice(axis) + 1} / ${channel.image.dimsRAS[axis + 1]}`;
    slider.setAttribute("aria-valuetext", `${title} slice ${output.value}`);
  }
  const position = [...mm].slice(0, 3).map((value) => value.toFixed(0)).join(", ");
  const rows = [["Position", `${position} mm`], [channel.name, values[0].value.toPrecision(4)]];
  for (const overlay of overlays.filter(({ image, shown }) => image && shown)) {
    rows.push([overlay.title, COLOURS.labels[labelAt(overlay)]]);
  }
  element("location").replaceChildren(...rows.flatMap(([term, text]) => [make("dt", term), make("dd", text)]));
}

function labelAt({ image, filled }) {
  const voxel = nv.frac2vox(nv.scene.crosshairPos);
  return filled[voxel.reduce((index, place, axis) =>
    index + image.img2RASstart[axis] + place * image.img2RASstep[axis], 0)];
}

function make(tag, ...content) {
  const made = document.createElement(tag);
  made.append(...content);
  return made;
}

function input(type, attributes) {
  return Object.assign(document.createElement("input"), { type, ...attributes });
}

function choices(container, name, titles, chosen, choose) {
  const labels = titles.map((title, index) => {
    const radio = input("radio", { name, checked: index === chosen });
    radio.addEventListener("change", () => choose(index));
    return make("label", radio, title);
  });
  container.replaceChildren(...labels);
}

function chooseNext(container) {
  const radios = [...container.querySelectorAll("input")];
  radios[(radios.findIndex(({ checked }) => checked) + 1) % radios.length].click();
}

function listChannels() {
  const titles = current.channels.map(({ title }) => title);
  choices(element("channels"), "channel", titles, titles.indexOf(channel.name), (index) =>
    openChannel(current.channels[index]));
}

function listOverlays() {
  const rows = overlays.map((overlay) => {
    const shown = input("checkbox", { checked: overlay.shown && overlay.image !== null, disabled: !overlay.image });
    const outlined = input("checkbox", { checked: overlay.outlined, disabled: !overlay.image, ariaLabel: `Outline of ${overlay.title}` });
    shown.addEventListener("change", () => { overlay.shown = shown.checked; stack(); moved(); });
    outlined.addEventListener("change", () => { overlay.outlined = outlined.checked; stack(); moved(); });
    const heading = make("th", make("label", shown, overlay.title));
    heading.scope = "row";
    if (overlay.image === null) heading.append(Object.assign(make("div", "no prediction"), { className: "missing" }));
    const dices = report.regions.map((region) => make("td", overlay.dice ? percent(overlay.dice[region]) : ""));
    return make("tr", heading, ...dices, make("td", outlined));
  });
  element("overlays").replaceChildren(...rows);
}

function percent(share) {
  return share === null ? "–" : (100 * share).toFixed(1);
}

const sliders = [];

function listSliders() {
  for (const [title, axis] of AXES) {
    const slider = input("range", { min: 0, value: 0 });
    const output = document.createElement("output");
    slider.addEventListener("input", () => moveTo(axis, Number(slider.value)));
    sliders[axis] = [slider, output];
    element("slices").append(Object.assign(make("label", title, slider, output), { className: "slider" }));
  }
}

function limitSliders() {
  for (const [, axis] of AXES) sliders[axis][0].max = channel.image.dimsRAS[axis + 1] - 1;
}

function nextCase(step) {
  openCase((report.cases.indexOf(current) + step + report.cases.length) % report.cases.length);
}

function mainAxis() {
  return AXES.find(([title]) => title === VIEWS.find(([, type]) => type === nv.opts.sliceType)[0])?.[1] ?? 2;
}

const KEYS = {
  ArrowUp: () => moveTo(mainAxis(), slice(mainAxis()) + 1),
  ArrowDown: () => moveTo(mainAxis(), slice(mainAxis()) - 1),
  c: () => chooseNext(element("channels")),
  v: () => chooseNext(element("views")),
  "[": () => nextCase(-1),
  "]": () => nextCase(1),
};

// In the capturing phase, before NiiVue's own keys
document.addEventListener("keydown", (event) => {
  if (!current || event.ctrlKey || event.metaKey || event.altKey) return;
  const typed = event.target.matches("select, input[type=range], input[type=radio]");
  const action = /^[1-9]$/.test(event.key)
    ? () => element("overlays").querySelectorAll("th input")[event.key - 1]?.click()
    : KEYS[event.key.length === 1 ? event.key.toLowerCase() : event.key];
  if (!action || (typed && event.key.startsWith("Arrow")) || event.target.matches("select")) return;
  event.preventDefault();
  event.stopPropagation();
  action();
}, true);

async function start() {
  if (!document.createElement("canvas").getContext("webgl2")) {
    element("message").textContent = "This browser has no WebGL 2, which the viewer needs.";
    return;
  }
  await nv.attachToCanvas(element("canvas"));
  listSliders();
  choices(element("views"), "view", VIEWS.map(([title]) => title), 0, (index) => nv.setSliceType(VIEWS[index][1]));
  element("previous").addEventListener("click", () => nextCase(-1));
  element("next").addEventListener("click", () => nextCase(1));
  element("case").addEventListener("change", (event) => openCase(Number(event.target.value)));
  element("opacity").addEventListener("input", ({ target }) => {
    target.nextElementSibling.value = `${target.value} %`;
    stack();
    moved();
  });
  const asked = Number(location.hash.slice(1));
  await openCase(asked in report.cases ? asked : 0);
}

start();
