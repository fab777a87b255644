"use strict";
// Numbers of a completion, and texts of tokens, as they are shown. Nothing here touches the page.

// ── numbers ──

const at = (list, k) => (list === null || list === undefined ? 0 : list[k]);

function signed(value) {
  if (value === null || value === undefined) return "–";
  const size = Math.abs(value);
  const digits = size !== 0 && (size < 0.001 || size >= 10000) ? size.toExponential(1) : String(+size.toPrecision(3));
  return (value > 0 ? "+" : value < 0 ? "−" : "") + digits;
}

const plain = (value) => (value === null || value === undefined ? "–" : String(+value.toPrecision(3)).replace("-", "−"));

const timesOf = (share) => (share !== 0 && Math.abs(share) < 0.001 ? "<0.001" : plain(share));

const readable = (variant) => (variant === "grpo" ? "GRPO" : variant.replaceAll("_", " "));

/** The numbers by which a completion's tokens are coloured; null where there are none, for it took no part. */
function valuesOf(completion, measure, variant) {
  if (!completion.took_part) return null;
  const list = measure === "credit" ? completion.variants[variant].credit : completion[measure];
  return list ?? new Array(completion.texts.length).fill(0);
}

/** The largest size in a group: one scale for all its completions. */
function scaleOf(group, measure, variant) {
  let largest = 0;
  for (const completion of group.completions)
    for (const value of valuesOf(completion, measure, variant) ?? []) largest = Math.max(largest, Math.abs(value ?? 0));
  return largest;
}

/** The place of kept token k in the whole completion, from 1. */
const placeOf = (completion, k) =>
  1 + k + (completion.left_out && k >= completion.left_out[0] ? completion.left_out[1] : 0);

function strongest(values) {
  const order = values.map((value, k) => [Math.abs(value ?? 0), k]).filter(([size]) => size > 0);
  return order.sort((one, other) => other[0] - one[0] || one[1] - other[1]).map(([, k]) => k);
}

// ── text ──

/** A token's text with what cannot be seen made visible; control characters and halves of characters never act. */
function shown(text) {
  const safe = text
    .replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f]/g, (c) => String.fromCharCode(0x2400 + c.charCodeAt(0)))
    .replace(/[\u007f-\u009f\u202a-\u202e\u2066-\u2069\u200e\u200f]/g, "�");
  return safe.isWellFormed && !safe.isWellFormed() ? safe.toWellFormed() : safe;
}

const inText = (text) => (text === "" ? "·" : shown(text).replace(/\r?\n|\r/g, "↵\n"));

const inLine = (text) => (text === "" ? "(part of a character)" : shown(text).replace(/\s/g, (c) => (c === " " ? "␣" : c === "\t" ? "⇥" : "↵")));

