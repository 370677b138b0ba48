// Draws the pictures of the page on canvases, in the colours of the page's style.

const FONT = "12px system-ui, sans-serif";
const STRIP = 12; // height of the letters of flags below a trace
let colours = {};

export function readColours() {
  const style = getComputedStyle(document.documentElement);
  for (const name of ["ink", "soft", "rule", "grid", "warn", "card", "s0", "s1", "s2", "s3", "s4"]) {
    colours[name] = style.getPropertyValue(`--${name}`).trim();
  }
}

// Returns the context of a canvas that has as many pixels as the screen gives it.
function begin(canvas) {
  const scale = window.devicePixelRatio || 1;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  if (canvas.width !== Math.round(width * scale) || canvas.height !== Math.round(height * scale)) {
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
  }
  const pen = canvas.getContext("2d");
  pen.setTransform(scale, 0, 0, scale, 0, 0);
  pen.clearRect(0, 0, width, height);
  pen.font = FONT;
  pen.lineJoin = "round";
  return { pen, width, height };
}

function write(pen, text, x, y, colour, align = "left") {
  pen.fillStyle = colour;
  pen.textAlign = align;
  pen.fillText(text, x, y);
}

function line(pen, x0, y0, x1, y1, colour, width = 1, dash = []) {
  pen.strokeStyle = colour;
  pen.lineWidth = width;
  pen.setLineDash(dash);
  pen.beginPath();
  pen.moveTo(x0, y0);
  pen.lineTo(x1, y1);
  pen.stroke();
  pen.setLineDash([]);
}

export function formatNumber(value) {
  if (!Number.isFinite(value)) return "none";
  if (value === 0) return "0";
  const size = Math.abs(value);
  return withMinus(size >= 1e5 || size < 1e-3 ? value.toExponential(1) : String(Number(value.toPrecision(3))));
}

// Returns a value and what it may be off by, with as many digits as the latter deserves.
export function formatWithReach(value, reach) {
  if (!Number.isFinite(value) || !Number.isFinite(reach)) return "no value";
  const digits = Math.min(6, Math.max(0, 1 - Math.floor(Math.log10(reach || 1))));
  return `${withMinus(value.toFixed(digits))} ± ${reach.toFixed(digits)}`;
}

function withMinus(text) {
  return text.replace("-", "−");
}

export function formatMicroseconds(us) {
  if (!Number.isFinite(us)) return "none";
  if (us < 1000) return `${formatNumber(us)} µs`;
  return us < 1e6 ? `${formatNumber(us / 1000)} ms` : `${formatNumber(us / 1e6)} s`;
}

// Returns the step of 1, 2 or 5 times a power of ten that gives about `count` steps over `range`.
function chooseStep(range, count) {
  const rough = range / count, power = 10 ** Math.floor(Math.log10(rough));
  return power * ([1, 2, 5].find((factor) => factor * power >= rough) ?? 10);
}

// ---------------------------------------------------------------- outputs

// Draws output `i` of a ring with rows of values, then of deviations, then one of flags. `range` remembers the axis.
export function drawTrace(canvas, ring, i, outputs, look, range) {
  const { pen, width, height } = begin(canvas);
  const left = 52, right = width - 8, top = 8, bottom = height - 18 - STRIP;
  const last = ring.newest, first = last - look.bins + 1;
  let low = Infinity, high = -Infinity;
  for (let bin = Math.max(first, 0); bin <= last; bin++) {
    const value = ring.get(bin, i), reach = look.deviations * ring.get(bin, outputs + i);
    if (Number.isFinite(value) && Number.isFinite(reach)) {
      low = Math.min(low, value - reach);
      high = Math.max(high, value + reach);
    }
  }
  if (low > high) [low, high] = [-1, 1];
  if (high - low < 1e-12) [low, high] = [low - 1, high + 1];
  // The axis grows at once and shrinks slowly, so that it does not jump.
  range.low = Math.min(low, (range.low ?? low) + 0.02 * (high - low));
  range.high = Math.max(high, (range.high ?? high) - 0.02 * (high - low));
  const x = (bin) => left + ((bin - first + 0.5) / look.bins) * (right - left);
  const y = (value) => bottom - ((value - range.low) / (range.high - range.low)) * (bottom - top);

  const step = chooseStep(range.high - range.low, 5);
  for (let at = Math.ceil(range.low / step) * step; at <= range.high; at += step) {
    line(pen, left, y(at), right, y(at), colours.grid);
    write(pen, formatNumber(Math.abs(at) < step / 1e6 ? 0 : at), left - 6, y(at) + 4, colours.soft, "right");
  }
  const seconds = look.bins * look.binS;
  for (const share of [0, 0.5, 1]) {
    const text = share === 1 ? "now" : `−${formatNumber(seconds * (1 - share))} s`;
    write(pen, text, left + share * (right - left), height - 4, colours.soft, ["left", "center", "right"][share * 2]);
  }
  const colour = colours[`s${i % 5}`];
  drawBand(pen, ring, i, outputs, look, x, y, first, last, colour);
  drawLine(pen, ring, i, x, y, first, last, colour);
  drawFlags(pen, ring, 2 * outputs, look, x, first, last, { top, bottom });
}

function drawBand(pen, ring, i, outputs, look, x, y, first, last, colour) {
  pen.fillStyle = colour;
  pen.globalAlpha = 0.2;
  forRuns(ring, i, first, last, (from, to) => {
    pen.beginPath();
    for (let bin = from; bin < to; bin++) {
      pen.lineTo(x(bin), y(ring.get(bin, i) + look.deviations * ring.get(bin, outputs + i)));
    }
    for (let bin = to - 1; bin >= from; bin--) {
      pen.lineTo(x(bin), y(ring.get(bin, i) - look.deviations * ring.get(bin, outputs + i)));
    }
    pen.fill();
  });
  pen.globalAlpha = 1;
}

function drawLine(pen, ring, i, x, y, first, last, colour) {
  pen.strokeStyle = colour;
  pen.lineWidth = 1.6;
  forRuns(ring, i, first, last, (from, to) => {
    pen.beginPath();
    for (let bin = from; bin < to; bin++) pen.lineTo(x(bin), y(ring.get(bin, i)));
    pen.stroke();
  });
}

// Calls `draw` for each run of bins [from, to) that have a finite value.
function forRuns(ring, i, first, last, draw) {
  let from = -1;
  for (let bin = Math.max(first, 0); bin <= last + 1; bin++) {
    const there = bin <= last && Number.isFinite(ring.get(bin, i));
    if (there && from < 0) from = bin;
    if (!there && from >= 0) {
      draw(from, bin);
      from = -1;
    }
  }
}

// Marks bins by letters in strips below the trace, and invalid ones by hatching.
function drawFlags(pen, ring, row, look, x, first, last, box) {
  const letters = [["GAP", "G", "warn"], ["WARMUP", "W", "soft"], ["SHIFTED", "S", "s3"], ["MASKED", "M", "s1"]];
  const half = (x(1) - x(0)) / 2;
  let from = Math.max(first, 0), before = null;
  for (let bin = from; bin <= last + 1; bin++) {
    const flags = bin <= last && ring.has(bin) ? ring.get(bin, row) : 0;
    const found = letters.find(([name]) => flags & look.flags[name]);
    const key = `${found?.[1] ?? ""}${flags & look.flags.INVALID ? "!" : ""}`;
    if (key === before) continue;
    if (before) markRun(pen, x(from) - half, x(bin) - half, before, letters, box);
    before = key;
    from = bin;
  }
}

function markRun(pen, x0, x1, key, letters, box) {
  if (key.endsWith("!")) {
    pen.save();
    pen.beginPath();
    pen.rect(x0, box.top, x1 - x0, box.bottom - box.top);
    pen.clip();
    for (let at = x0 - (box.bottom - box.top); at < x1; at += 8) line(pen, at, box.bottom, at + box.bottom - box.top, box.top, colours.warn);
    pen.restore();
  }
  const found = letters.find(([, letter]) => key.startsWith(letter));
  if (!found) return;
  pen.fillStyle = colours[found[2]];
  pen.globalAlpha = 0.35;
  pen.fillRect(x0, box.bottom + 2, Math.max(1, x1 - x0), STRIP - 1);
  pen.globalAlpha = 1;
  if (x1 - x0 > 12) write(pen, found[1], x0 + 3, box.bottom + STRIP, colours.ink);
}

// ---------------------------------------------------------------- cursor

export function drawCursor(canvas, cursor, solid) {
  const { pen, width, height } = begin(canvas);
  const size = Math.min(width, height), reach = size / 2 - 6, unit = reach / (cursor.extent || 1);
  const x = (value) => width / 2 + value * unit, y = (value) => height / 2 - value * unit;
  pen.strokeStyle = colours.rule;
  pen.strokeRect(width / 2 - reach, height / 2 - reach, 2 * reach, 2 * reach);
  line(pen, x(0) - reach, y(0), x(0) + reach, y(0), colours.grid);
  line(pen, x(0), y(0) - reach, x(0), y(0) + reach, colours.grid);
  const path = cursor.path;
  for (let bin = Math.max(path.newest - path.slots + 2, 1); bin <= path.newest; bin++) {
    if (!path.has(bin) || !path.has(bin - 1)) continue;
    pen.globalAlpha = 1 - (path.newest - bin) / path.slots;
    line(pen, x(path.get(bin - 1, 0)), y(path.get(bin - 1, 1)), x(path.get(bin, 0)), y(path.get(bin, 1)), colours.s0, 2);
  }
  pen.globalAlpha = 1;
  pen.beginPath();
  pen.arc(x(cursor.x), y(cursor.y), 9, 0, 2 * Math.PI);
  pen.fillStyle = solid ? colours.s0 : colours.card;
  pen.fill();
  pen.strokeStyle = solid ? colours.ink : colours.warn;
  pen.lineWidth = 2;
  pen.stroke();
}

// ---------------------------------------------------------------- latency

export function drawLatency(canvas, edges, counts, deadline) {
  const { pen, width, height } = begin(canvas);
  const left = 10, right = width - 10, top = 18, bottom = height - 20;
  const low = Math.log10(edges[0]), high = Math.log10(edges[edges.length - 1]);
  const x = (us) => left + ((Math.log10(us) - low) / (high - low)) * (right - left);
  for (let power = Math.ceil(low); power <= high; power++) {
    line(pen, x(10 ** power), top, x(10 ** power), bottom, colours.grid);
    if (width < 420 && (power - Math.ceil(low)) % 2) continue;
    const align = power === Math.ceil(low) ? "left" : power + 1 > high ? "right" : "center";
    write(pen, formatMicroseconds(10 ** power), x(10 ** power), height - 5, colours.soft, align);
  }
  line(pen, left, bottom, right, bottom, colours.rule);
  const most = Math.max(1, ...counts);
  counts.forEach((count, i) => {
    if (!count) return;
    const tall = Math.sqrt(count / most) * (bottom - top);
    pen.fillStyle = edges[i] >= deadline ? colours.warn : colours.s0;
    pen.fillRect(x(edges[i]) + 0.5, bottom - tall, x(edges[i + 1]) - x(edges[i]) - 1, tall);
  });
  line(pen, x(deadline), top - 6, x(deadline), bottom, colours.warn, 1.5, [6, 4]);
  const near = x(deadline) > width - 130;
  write(pen, `deadline ${formatMicroseconds(deadline)}`, x(deadline) + (near ? -5 : 5), top - 6, colours.warn, near ? "right" : "left");
}

// ---------------------------------------------------------------- raw channels

export const ROW = 26; // pixels of a channel

// Draws the envelopes of a ring with rows of lowest samples, then of highest. Returns the µV of a row's half height.
export function drawRaw(canvas, ring, names, masked, look, range) {
  const { pen, width, height } = begin(canvas);
  const left = Math.min(110, width * 0.28), right = width - 8;
  const last = ring.newest, first = last - look.bins + 1;
  const reaches = [], middles = [];
  for (let i = 0; i < names.length; i++) {
    let low = Infinity, high = -Infinity;
    for (let bin = Math.max(first, 0); bin <= last; bin++) {
      if (ring.get(bin, i) < low) low = ring.get(bin, i);
      if (ring.get(bin, names.length + i) > high) high = ring.get(bin, names.length + i);
    }
    middles.push(low > high ? 0 : (low + high) / 2);
    if (high > low && !masked[i]) reaches.push((high - low) / 2);
  }
  reaches.sort((a, b) => a - b);
  // One scale for all rows: that of the median channel, so that one wild channel does not flatten the others.
  const wanted = (reaches[Math.floor(reaches.length / 2)] || 1);
  range.reach = range.reach ? range.reach + 0.1 * (wanted - range.reach) : wanted;
  const columns = Math.max(1, Math.floor((right - left) * 0.75));
  const perColumn = Math.max(1, Math.ceil(look.bins / columns));
  for (let i = 0; i < names.length; i++) {
    const middle = (i + 0.5) * ROW;
    const y = (uv) => middle - Math.max(-1.2, Math.min(1.2, (uv - middles[i]) / range.reach)) * (ROW / 2 - 1);
    line(pen, left, (i + 1) * ROW, right, (i + 1) * ROW, colours.grid);
    const label = masked[i] ? `× ${names[i]}` : names[i];
    write(pen, shorten(pen, label, left - 14), 6, middle + 4, masked[i] ? colours.warn : colours.ink);
    pen.strokeStyle = masked[i] ? colours.warn : colours.soft;
    pen.setLineDash(masked[i] ? [2, 2] : []);
    pen.lineWidth = 1;
    pen.beginPath();
    for (let from = Math.max(first - (first % perColumn), 0); from <= last; from += perColumn) {
      let low = Infinity, high = -Infinity;
      for (let bin = from; bin < from + perColumn; bin++) {
        if (ring.get(bin, i) < low) low = ring.get(bin, i);
        if (ring.get(bin, names.length + i) > high) high = ring.get(bin, names.length + i);
      }
      if (low > high) continue;
      const at = Math.max(left, left + ((from - first + perColumn / 2) / look.bins) * (right - left));
      pen.moveTo(at, y(low) + 0.6);
      pen.lineTo(at, y(high) - 0.6);
    }
    pen.stroke();
    pen.setLineDash([]);
  }
  return range.reach;
}

function shorten(pen, text, room) {
  if (pen.measureText(text).width <= room) return text;
  let kept = text;
  while (kept.length > 1 && pen.measureText(`${kept}…`).width > room) kept = kept.slice(0, -1);
  return `${kept}…`;
}
