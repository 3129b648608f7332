// The reading page. STUDY comes from study.js; volumes/set001_1.js calls volume(index, base64 of a NIfTI file).
"use strict";
const $ = (id) => document.getElementById(id);
const questions = Object.keys(STUDY.questions);
const views = []; // a NiiVue for each contrast
let reader = null; // 1, 2, ...
let kept = null; // {at: place in the order, scores: {set: {question: score, notes: text}}}
let question = 0, slice = 0, large = -1, attached = false, ready = false, level = 0, width = 0;
const arrived = {};
window.volume = (index, base64) => { arrived[index] = base64; };

const order = () => STUDY.orders[reader - 1];
const set = () => order()[kept.at];
const given = () => (kept.scores[set()] ??= {});
const storage = () => `reader-study ${STUDY.seal} R${reader}`;
const keep = () => localStorage.setItem(storage(), JSON.stringify(kept));
const lacking = (number) => questions.filter((name) => !(kept.scores[number] ?? {})[name]).length;
const say = (text) => { $("state").textContent = text; };

function ask() {
  STUDY.orders.forEach((_, place) => {
    const item = document.createElement("li");
    item.textContent = `press ${place + 1} for reader R${place + 1}`;
    $("readers").append(item);
  });
}

async function begin(number) {
  reader = number;
  kept = JSON.parse(localStorage.getItem(storage()) ?? "null") ?? { at: 0, scores: {} };
  $("readers").remove();
  $("notes").hidden = false;
  say("loading …");
  for (const contrast of STUDY.contrasts) {
    const frame = document.createElement("div"), canvas = document.createElement("canvas");
    const label = document.createElement("span");
    label.textContent = contrast;
    frame.append(canvas, label);
    $("images").append(frame);
    const view = new niivue.Niivue({
      crosshairWidth: 0, isColorbar: false, isAntiAlias: false, forceDevicePixelRatio: 1, isRadiologicalConvention: true,
      dragAndDropEnabled: false, loadingText: "", backColor: [0, 0, 0, 1],
    });
    views.push(view);
  }
  layout();
  try {
    for (const [place, view] of views.entries()) {
      await view.attachToCanvas($("images").children[place].firstChild, false);
      view.setSliceType(view.sliceTypeAxial);
    }
  } catch (error) {
    say(`the images cannot be shown (${error.message}): use a browser with WebGL 2`);
    return;
  }
  attached = true;
  await show();
}

function layout() {
  const shown = large < 0 ? views.length : 1, columns = Math.ceil(Math.sqrt(shown));
  const rows = Math.ceil(shown / columns), grid = $("images");
  grid.style.gridTemplate = `repeat(${rows}, minmax(0, 1fr)) / repeat(${columns}, minmax(0, 1fr))`;
  [...grid.children].forEach((frame, place) => { frame.style.display = large < 0 || large === place ? "" : "none"; });
  if (attached) for (const place of shownViews()) views[place].resizeListener();
}

const shownViews = () => views.map((_, place) => place).filter((place) => large < 0 || large === place);

function load(path) {
  return new Promise((resolve, reject) => {
    const script = document.createElement("script");
    script.src = path;
    script.onload = () => { script.remove(); resolve(); };
    script.onerror = () => reject(new Error(`${path} is missing: copy the whole folder again`));
    document.body.append(script);
  });
}

async function show() {
  ready = false;
  const name = `set${String(set()).padStart(3, "0")}`;
  $("where").textContent = `R${reader}: reading ${kept.at + 1} of ${order().length}`;
  question = Math.max(0, questions.findIndex((one) => !given()[one]));
  $("notes").value = given().notes ?? "";
  drawQuestions();
  say("loading …");
  try {
    for (const [place, view] of views.entries()) {
      await load(`volumes/${name}_${place + 1}.js`);
      const image = await niivue.NVImage.loadFromBase64({ base64: arrived[place + 1], name: `${name}.nii` });
      delete arrived[place + 1];
      image.cal_min = 0;
      image.cal_max = STUDY.window;
      for (const old of [...view.volumes]) view.removeVolume(old);
      view.addVolume(image);
    }
  } catch (error) {
    say(error.message);
    return;
  }
  resetWindow();
  slice = Math.floor(slices() / 2);
  draw();
  ready = true;
  progress();
}

// slices of the first contrast that is shown; the others follow to the same place in the patient
const leader = () => views[shownViews()[0]];
const slices = () => leader().volumes[0].dimsRAS[3];

function draw() {
  const first = leader(), mm = first.frac2mm([0.5, 0.5, (slice + 0.5) / slices()]);
  for (const place of shownViews()) {
    const view = views[place];
    view.scene.crosshairPos = view.mm2frac(mm.slice(0, 3));
    view.drawScene();
  }
}

function step(by) {
  slice = Math.min(slices() - 1, Math.max(0, slice + by));
  draw();
}

function resetWindow() {
  level = STUDY.window / 2;
  width = STUDY.window;
  for (const view of views) view.scene.pan2Dxyzmm = [0, 0, 0, 1];
  rewindow();
}

function rewindow() {
  for (const view of views) {
    view.volumes[0].cal_min = level - width / 2;
    view.volumes[0].cal_max = level + width / 2;
    view.updateGLVolume();
  }
}

function zoom(factor, x = 0, y = 0) {
  for (const view of views) {
    const [across, up, through, scale] = view.scene.pan2Dxyzmm;
    view.scene.pan2Dxyzmm = [across + x, up + y, through, Math.min(8, Math.max(1, scale * factor))];
  }
  draw();
}

function drawQuestions() {
  $("questions").replaceChildren(...questions.map((name, place) => {
    const row = document.createElement("tr"), score = given()[name];
    row.className = place === question ? "here" : "";
    row.insertCell().textContent = STUDY.questions[name];
    const cell = row.insertCell();
    for (let value = 1; value <= 5; value++) {
      const mark = document.createElement(value === score ? "b" : "span");
      mark.textContent = value;
      cell.append(mark);
    }
    return row;
  }));
}

function progress() {
  const left = order().filter(lacking).length, here = lacking(set());
  say(left ? `${here} scores to give here; ${left} sets are not complete` : "every set is complete: e exports");
}

function score(value) {
  if (value) given()[questions[question]] = value;
  else delete given()[questions[question]];
  if (value) question = Math.min(questions.length - 1, question + 1);
  keep();
  drawQuestions();
  progress();
}

function go(place) {
  kept.at = Math.min(order().length - 1, Math.max(0, place));
  keep();
  return show();
}

function nextLacking() {
  const after = order().map((_, place) => (kept.at + 1 + place) % order().length);
  const next = after.find((place) => lacking(order()[place]));
  if (next === undefined) progress();
  else go(next);
}

function exported() {
  return JSON.stringify({ seal: STUDY.seal, reader: `R${reader}`, scores: kept.scores }, null, 1);
}

function exportedTable() {
  const quoted = (value) => `"${String(value ?? "").replaceAll('"', '""')}"`;
  const rows = Object.entries(kept.scores).map(([number, told]) =>
    [STUDY.seal, `R${reader}`, number, ...questions.map((name) => told[name]), told.notes].map(quoted).join(","));
  return [["seal", "reader", "set", ...questions, "notes"].join(","), ...rows].join("\r\n") + "\r\n";
}

function save(text, name, type) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

$("opened").addEventListener("change", async (event) => {
  try {
    const told = JSON.parse(await event.target.files[0].text());
    if (told.seal !== STUDY.seal || told.reader !== `R${reader}`) throw new Error("it is of another study or reader");
    kept.scores = told.scores;
    keep();
    await show();
  } catch (error) {
    say(`this export cannot be used: ${error.message}`);
  }
});

$("notes").addEventListener("input", () => { given().notes = $("notes").value; keep(); });

const keys = {
  ArrowUp: () => step(1), ArrowDown: () => step(-1), PageUp: () => step(5), PageDown: () => step(-5),
  ArrowLeft: () => go(kept.at - 1), ArrowRight: () => go(kept.at + 1), u: nextLacking,
  w: () => { width = Math.max(20, width / 1.15); rewindow(); }, W: () => { width *= 1.15; rewindow(); },
  b: () => { level -= width / 15; rewindow(); }, B: () => { level += width / 15; rewindow(); },
  "+": () => zoom(1.2), "-": () => zoom(1 / 1.2), i: () => zoom(1, 0, -8), k: () => zoom(1, 0, 8),
  j: () => zoom(1, 8, 0), l: () => zoom(1, -8, 0), r: () => { resetWindow(); draw(); },
  f: () => { large = large + 1 < views.length ? large + 1 : -1; layout(); slice = Math.min(slice, slices() - 1); draw(); },
  n: () => $("notes").focus(), o: () => $("opened").click(),
  e: () => save(exported(), `scores_R${reader}.json`, "application/json"),
  E: () => save(exportedTable(), `scores_R${reader}.csv`, "text/csv"),
};

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey) return;
  if (event.target === $("notes")) {
    if (event.key === "Escape") $("notes").blur();
    return;
  }
  if (reader === null) {
    const number = Number(event.key);
    if (number >= 1 && number <= STUDY.orders.length) begin(number);
    return;
  }
  if (event.key === "Tab") {
    question = (question + (event.shiftKey ? questions.length - 1 : 1)) % questions.length;
    drawQuestions();
  } else if (/^[0-5]$/.test(event.key)) score(Number(event.key));
  else if (ready && keys[event.key]) keys[event.key]();
  else return;
  event.preventDefault();
}, true);

$("images").addEventListener("wheel", (event) => {
  event.preventDefault();
  event.stopPropagation();
  if (ready) step(event.deltaY < 0 ? 1 : -1);
}, { capture: true, passive: false });

// milliseconds of a step until its pixels are there, for `python -m dpmtrain.study.page_time`
window.timedStep = (by) => {
  const start = performance.now();
  step(by);
  for (const place of shownViews()) {
    const gl = views[place].gl;
    gl.readPixels(0, 0, 1, 1, gl.RGBA, gl.UNSIGNED_BYTE, new Uint8Array(4));
  }
  return performance.now() - start;
};
window.isReady = () => ready;

ask();
