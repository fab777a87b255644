"use strict";
// Everything that a model wrote reaches the page through textContent alone.

const { groups: GROUPS } = JSON.parse(document.getElementById("data").textContent);
const EVALUATED = GROUPS.some((group) => group.label); // samples of an evaluation, in the benchmark's order
const AT_ONCE = 10; // groups drawn before one asks for more
const SHORT = 400; // tokens of a completion whose text is shown at once
const STRONGEST = 6;
const $ = (id) => document.getElementById(id);

function make(tag, className, text) {
  const element = document.createElement(tag);
  if (tag === "button") element.type = "button";
  if (className) element.className = className;
  if (text !== undefined) element.textContent = text;
  return element;
}

// ── drawing ──

function colours() {
  const style = getComputedStyle(document.documentElement);
  const of = (name) => style.getPropertyValue(name).trim();
  return { pos: of("--pos"), neg: of("--neg"), neutral: of("--neutral"), strip: of("--strip"), line: of("--line") };
}

const toneOf = (value, measure) => (measure === "entropy" ? "neutral" : value < 0 ? "neg" : "pos");

/** A bar a token, or the largest of those that share a pixel: up and blue for +, down and orange for −. */
function drawStrip(canvas, values, scale, measure, longest) {
  const width = canvas.clientWidth, height = canvas.clientHeight, dots = window.devicePixelRatio || 1;
  canvas.width = width * dots;
  canvas.height = height * dots;
  const pen = canvas.getContext("2d"), tones = colours();
  pen.scale(dots, dots);
  const cell = Math.min(18, width / longest), middle = measure === "entropy" ? height - 1 : height / 2;
  pen.fillStyle = tones.strip;
  pen.fillRect(0, 0, cell * values.length, height);
  const step = Math.max(1, Math.floor(1 / cell));
  for (let first = 0; first < values.length; first += step) {
    let value = 0;
    for (let k = first; k < Math.min(first + step, values.length); k++)
      if (Math.abs(values[k] ?? 0) > Math.abs(value)) value = values[k];
    const share = scale ? Math.abs(value) / scale : 0, size = share * (measure === "entropy" ? height - 1 : height / 2);
    pen.fillStyle = `rgb(${tones[toneOf(value, measure)]} / ${0.45 + 0.55 * share})`;
    pen.fillRect(first * cell, value < 0 ? middle : middle - size, Math.max(0.7, cell * step - (cell > 4 ? 1 : 0)), size);
  }
  pen.fillStyle = tones.line;
  pen.fillRect(0, middle - 0.5, cell * values.length, 1);
}

function paint(span, value, scale, measure) {
  const share = scale && value ? Math.abs(value) / scale : 0, tone = toneOf(value ?? 0, measure);
  span.style.backgroundColor = share > 0.02 ? `rgb(var(--${tone}) / ${(0.06 + 0.5 * share).toFixed(3)})` : "";
  span.style.borderBottom = share > 0.05 ? `2px ${tone === "neg" ? "dashed" : "solid"} rgb(var(--${tone}) / ${(0.3 + 0.7 * share).toFixed(3)})` : "";
}

function tokenSpans(view) {
  const { completion, values, scale, measure, variant } = view;
  const box = make("div", "tokens");
  box.setAttribute("role", "group");
  box.setAttribute("aria-label", "tokens: left and right move, n and p go to the strongest");
  const clipped = new Set((measure === "credit" && completion.variants[variant]?.clipped) || []);
  completion.texts.forEach((text, k) => {
    if (completion.left_out && k === completion.left_out[0])
      box.append(make("i", "gap", `\n… ${completion.left_out[1]} tokens left out …\n`));
    const span = make("span", clipped.has(k) ? "clipped" : "", inText(text));
    span.dataset.k = k;
    span.tabIndex = k ? -1 : 0;
    if (values) paint(span, values[k], scale, measure);
    box.append(span);
  });
  return box;
}

// ── one completion ──

function stripsOf(view, chosen) {
  const { group, completion, measure, longest } = view;
  const names = measure === "credit" ? chosen : [view.variant];
  return names.map((name) => {
    const row = make("div", "strip"), canvas = make("canvas");
    const values = valuesOf(completion, measure, name), scale = scaleOf(group, measure, name);
    const label = measure === "credit" ? readable(name) : measure === "entropy" ? "entropy" : "change";
    row.append(make("span", "", `${label} ${measure === "entropy" ? "≤ " : "±"}${plain(scale)}`), canvas);
    canvas.setAttribute("role", "img");
    canvas.setAttribute("aria-label", `${label} along the completion's ${completion.length} tokens`);
    view.redraw.push(() => drawStrip(canvas, values, scale, measure, longest));
    const tokenAt = (event) => {
      const k = Math.floor(event.offsetX / Math.min(18, canvas.clientWidth / longest));
      return k >= 0 && k < values.length ? k : null;
    };
    canvas.addEventListener("mousemove", (event) => tokenAt(event) !== null && showToken(view, tokenAt(event)));
    canvas.addEventListener("click", (event) => tokenAt(event) !== null && goTo(view, tokenAt(event)));
    return row;
  });
}

function strongestOf(view) {
  const row = make("div", "strongest"), { values, completion } = view;
  if (values.every((value) => value === values[0])) {
    row.append(make("span", "quiet", `every token: ${signed(values[0])}`));
    return row;
  }
  row.append(make("span", "quiet", "strongest:"));
  for (const k of view.order.slice(0, STRONGEST)) {
    const button = make("button", values[k] < 0 ? "neg" : "pos", `${inLine(completion.texts[k])} ${signed(values[k])}`);
    button.title = `token ${placeOf(completion, k)}`;
    button.addEventListener("click", () => goTo(view, k));
    row.append(button);
  }
  return row;
}

function factsOf(completion, times) {
  const row = make("div", "facts");
  if (times > 1) row.append(make("b", "", `${times} times the same:`));
  const add = (name, value) => row.append(make("span", "", `${name} `), make("b", "", value));
  add("reward", plain(completion.reward));
  add("advantage", signed(completion.advantage));
  for (const [name, value] of Object.entries(completion.scores)) if (value !== completion.reward) add(name, plain(value));
  add("tokens", String(completion.length));
  if (completion.finish === "length") row.append(make("span", "quiet", "cut off at the limit"));
  if (!completion.took_part) row.append(make("span", "quiet", "no advantage or masked: no part in the update, no credit"));
  return row;
}

function completionOf(group, completion, times, settings) {
  const element = make("section", "completion"), { measure, variant } = settings;
  const longest = Math.max(...group.completions.map((each) => each.texts.length), 1);
  const values = valuesOf(completion, measure, variant), scale = scaleOf(group, measure, variant);
  const view = { element, group, completion, measure, variant, values, scale, longest, redraw: [], box: null };
  view.order = values ? strongest(values) : [];
  element.append(factsOf(completion, times));
  if (values) element.append(...stripsOf(view, settings.strips), strongestOf(view));
  if (completion.texts.length <= SHORT) open(view);
  else {
    const button = make("button", "open", `show the text of ${completion.texts.length} tokens`);
    button.addEventListener("click", () => open(view));
    element.append(button);
  }
  VIEWS.set(element, view);
  return view;
}

function open(view) {
  if (view.box) return;
  view.element.querySelector(".open")?.remove();
  view.box = tokenSpans(view);
  view.element.append(view.box);
}

const spanOf = (view, k) => view.box.querySelector(`[data-k="${k}"]`);

function goTo(view, k) {
  open(view);
  const span = spanOf(view, k);
  span.scrollIntoView({ block: "center" });
  span.focus({ preventScroll: true });
}

// ── the panel ──

function lines(table, rows) {
  for (const [name, value, className] of rows) {
    const row = make("tr", className);
    const head = make("th", "", name);
    head.scope = "row";
    row.append(head, make("td", "", value));
    table.append(row);
  }
}

let marked = null;

function showToken(view, k) {
  const { completion } = view, panel = $("panel");
  marked?.classList.remove("now");
  marked = view.box && spanOf(view, k);
  marked?.classList.add("now");
  panel.replaceChildren(make("div", "word", inLine(completion.texts[k])));
  panel.append(make("div", "quiet", `token ${placeOf(completion, k)} of ${completion.length}`));
  if (!completion.took_part) {
    panel.append(make("p", "", "This completion took no part in the update."));
    return;
  }
  const credit = make("table"), rest = make("table"), grpo = at(completion.variants.grpo.credit, k);
  lines(credit, Object.entries(completion.variants).map(([name, each]) => {
    const value = at(each.credit, k), times = grpo && name !== "grpo" ? ` (${timesOf(value / grpo)}×)` : "";
    const mark = each.clipped?.includes(k) ? ", clipped" : "";
    return [readable(name) + (name === view.group.variant && !EVALUATED ? " (this run)" : ""), signed(value) + times + mark, name === view.variant ? "chosen" : ""];
  }));
  const old = at(completion.old_log_prob, k), change = at(completion.log_ratio, k), own = completion.variants[view.variant];
  lines(rest, [
    ["log-probability before", plain(old)],
    ["change by the updates", signed(change)],
    ["probability before → after", `${plain(100 * Math.exp(old))} → ${plain(100 * Math.exp(old + change))} %`],
    ["ratio", plain(Math.exp(change))],
    ...("z" in own ? [[`z of ${readable(view.variant)}`, signed(at(own.z, k))], ["accumulated ratio", plain(Math.exp(at(own.z, k)))]] : []),
    ["entropy", plain(at(completion.entropy, k))],
  ]);
  panel.append(make("b", "", "credit (and times GRPO's)"), credit, make("b", "", "the policy at this token"), rest);
}

function explain() {
  $("panel").replaceChildren(
    make("b", "", "Point at a token, or tap it."),
    make("p", "", "Its numbers stand here: the credit that each variant gives it, its probability before and after, its entropy."),
    make("p", "", "Keys: ← → move from token to token, n and p to the next strongest and back. Click into a strip to jump to its token."),
  );
}

// ── filters ──

const VIEWS = new Map();
let drawn = AT_ONCE;

function settingsNow(group) {
  const has = (name) => group.completions.some((each) => name in each.variants);
  const wanted = $("variant").value, variant = wanted && has(wanted) ? wanted : group.variant;
  const beside = $("beside").value;
  const every = Object.keys(group.completions.find((each) => each.took_part)?.variants ?? {});
  const strips = beside === "all" ? every : [...new Set([has(beside) ? beside : "grpo", variant])];
  return { measure: $("measure").value, variant, strips };
}

const bound = (id, otherwise) => ($(id).value === "" ? otherwise : Number($(id).value));

/** What of a group the filters leave: its completions; none hides it. */
function kept(group) {
  const low = bound("low", -Infinity), high = bound("high", Infinity), words = $("text").value.toLowerCase();
  if ($("iteration").value && group.iteration !== Number($("iteration").value)) return [];
  const fits = (text) => text.toLowerCase().includes(words);
  const found = group.completions.filter(({ reward }) => reward === null ? low === -Infinity && high === Infinity : reward >= low && reward <= high);
  return fits(group.problem) ? found : found.filter((each) => fits(each.texts.join("")));
}

/** Completions of the same tokens have the same numbers: they are shown once. */
function distinct(completions) {
  const found = new Map();
  for (const each of completions) {
    const key = JSON.stringify([each.texts, each.reward, each.length]);
    found.set(key, [...(found.get(key) ?? []), each]);
  }
  return found;
}

function groupOf(group, completions) {
  const element = make("article", "group"), settings = settingsNow(group);
  element.append(make("h2", "", shown(group.problem)));
  const hidden = group.size - completions.length;
  element.append(make("div", "quiet", `${group.label} · gold answer ${shown(group.answer)} · ${completions.length} of ${group.size} completions${hidden ? " shown" : ""}`));
  const views = [...distinct(completions).values()].map((same) => completionOf(group, same[0], same.length, settings));
  element.append(...views.map((view) => view.element));
  return [element, views];
}

function draw() {
  VIEWS.clear();
  const found = GROUPS.map((group) => [group, kept(group)]).filter(([, completions]) => completions.length);
  const shownNow = found.slice(0, drawn).map(([group, completions]) => groupOf(group, completions));
  $("groups").replaceChildren(...shownNow.map(([element]) => element));
  if (found.length > drawn) {
    const more = make("button", "more", `${found.length - drawn} more problems`);
    more.addEventListener("click", () => { drawn += AT_ONCE; draw(); });
    $("groups").append(more);
  }
  $("count").textContent = `${found.length} of ${GROUPS.length} problems`;
  if (!found.length) $("groups").append(make("p", "", GROUPS.length ? "Nothing fits: widen the filters." : "Nothing was recorded yet."));
  $("variant").disabled = $("beside").disabled = $("measure").value !== "credit";
  redraw();
}

const redraw = () => VIEWS.forEach((view) => view.redraw.forEach((each) => each()));

function restart() {
  drawn = AT_ONCE;
  explain();
  draw();
}

function options(select, pairs) {
  select.replaceChildren(...pairs.map(([value, text]) => {
    const option = make("option", "", text);
    option.value = value;
    return option;
  }));
}

// ── keys and pointers ──

function viewOf(target) {
  const element = target.closest?.(".completion"), k = target.dataset?.k;
  return element && k !== undefined ? [VIEWS.get(element), Number(k)] : null;
}

function press(event) {
  const found = viewOf(event.target);
  if (!found || event.ctrlKey || event.metaKey || event.altKey) return;
  const [view, k] = found, last = view.completion.texts.length - 1, place = view.order.indexOf(k);
  const targets = {
    ArrowRight: k + 1, ArrowLeft: k - 1, Home: 0, End: last,
    n: view.order[(place + 1) % view.order.length], p: view.order[Math.max(0, place - 1)],
  };
  const next = targets[event.key];
  if (next === undefined || next < 0 || next > last) return;
  event.preventDefault();
  goTo(view, next);
}

function nameTheme(dark) {
  $("theme").textContent = dark ? "light" : "dark";
  $("theme").setAttribute("aria-pressed", String(dark));
}

function changeTheme() {
  const theme = $("theme").textContent;
  document.documentElement.dataset.theme = theme;
  nameTheme(theme === "dark");
  redraw();
}

function start() {
  const newest = GROUPS[GROUPS.length - 1];
  for (const group of GROUPS) group.label ??= `iteration ${group.iteration}`;
  if (!EVALUATED) GROUPS.reverse(); // the newest first
  $("iteration").parentElement.hidden = EVALUATED;
  const variants = newest ? Object.keys(newest.completions.find((each) => each.took_part)?.variants ?? {}) : [];
  options($("variant"), variants.map((name) => [name, readable(name) + (name === newest.variant && !EVALUATED ? " (this run)" : "")]));
  if (newest) $("variant").value = newest.variant;
  options($("beside"), [...variants.map((name) => [name, readable(name)]), ["all", "every variant"]]);
  $("beside").value = newest && newest.variant === "grpo" ? "trace_both" : "grpo";
  const iterations = [...new Set(GROUPS.map((group) => group.iteration))];
  options($("iteration"), [["", "all"], ...iterations.map((each) => [each, each])]);
  if (newest) $("settings").textContent = `${EVALUATED ? "No update was made: ratios are 1 and the verdict is the reward" : `This run: ${readable(newest.variant)}`}, q = γ·λ = ${plain(newest.q)}.`;
  const system = matchMedia("(prefers-color-scheme: dark)");
  nameTheme(system.matches);
  system.addEventListener("change", redraw);
  $("theme").addEventListener("click", changeTheme);
  $("controls").addEventListener("input", restart);
  $("controls").addEventListener("submit", (event) => event.preventDefault());
  const onToken = (event) => { const found = viewOf(event.target); if (found) showToken(...found); };
  for (const kind of ["focusin", "click"]) $("groups").addEventListener(kind, onToken);
  let place = "";
  $("groups").addEventListener("pointermove", (event) => {
    const now = `${event.screenX} ${event.screenY}`;
    if (now !== place) onToken(event); // a page that scrolls under a resting pointer asks for nothing
    place = now;
  });
  $("groups").addEventListener("keydown", press);
  window.addEventListener("resize", redraw);
  restart();
}

start();
