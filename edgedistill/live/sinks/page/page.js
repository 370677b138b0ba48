// Takes the events of one stream and shows them. All names come from files of users, and reach the page as text only.

import { drawCursor, drawLatency, drawRaw, drawTrace, formatMicroseconds, formatNumber, formatWithReach, readColours, ROW } from "./drawing.js";
import { Cursor, Ring } from "./rings.js";

const SECONDS = 10; // of outputs
const RAW_SECONDS = 5;
const DECAY_S = 1;
const MOST_OUTPUTS = 8;
const MOST_LISTED = 24;
const SILENT_S = 1.5;
const WORDS = {
  frames: "frames decoded", bins: "bins decoded", lost_frames: "frames lost", gaps: "gaps",
  late_frames: "frames that came too late", duplicated_frames: "frames that came twice",
  dropped_frames: "frames dropped while decoding was behind", reordered_frames: "frames put in order",
  reconnects: "reconnections", clock_jumps: "jumps of the source's clock", late_bins: "outputs after the deadline",
  drift_ppm: "clock against nominal rate, ppm", jitter_ms: "jitter of time stamps, ms",
};
const HARMLESS = ["frames", "bins", "drift_ppm", "jitter_ms"];
const FLAGS = {
  WARMUP: "warming up", MASKED: "channels masked", GAP: "frames lost", INVALID: "invalid: do not act on it",
  SHIFTED: "amplitude shifted for 10 s",
};
const $ = (id) => document.getElementById(id);

let header = null, events = null, status = null, first = 0, paused = false, drawn = false;
let decoded = null, raw = null, cursor = null;
const ranges = { outputs: [], raw: {} };

// ---------------------------------------------------------------- connection

function connect() {
  events?.close();
  events = new EventSource(`events?first=${first}`);
  events.addEventListener("header", (event) => begin(JSON.parse(event.data)));
  events.addEventListener("bins", (event) => take(JSON.parse(event.data)));
  events.addEventListener("status", (event) => tell(JSON.parse(event.data)));
  events.onerror = () => {
    if (status?.counters.state === "ended") return;
    const given = events.readyState === EventSource.CLOSED; // the server refused
    showState("none", given ? "refused" : "no connection");
    notice(given
      ? "Too many browsers watch this stream, or it has ended."
      : "The connection to the stream is lost. This page tries again every second.");
    $("again").hidden = !given;
  };
}

function begin(found) {
  if (header && header.started !== found.started) {
    location.reload(); // another stream, perhaps of another bundle
    return;
  }
  notice("");
  if (header) return;
  header = found;
  const k = header.output_names.length;
  const binS = header.bin_s;
  decoded = new Ring(2 * k + 1, Math.ceil(SECONDS / binS) + 1);
  cursor = new Cursor(binS, DECAY_S, Math.ceil(1 / binS));
  startRaw();
  $("bundle").textContent = header.bundle;
  $("source").textContent =
    `${header.source}, ${header.channel_labels.length} channels at ${formatNumber(header.rate_hz)} Hz, engine ${header.engine}`;
  const level = `${Math.round(header.interval.level * 100)} %`;
  $("interval").textContent = `Bands are ${level} intervals: the decoded value plus and minus ${formatNumber(header.interval.deviations)} of its standard deviations.`;
  $("delay").textContent = `The filters delay the signal by another ${formatNumber(header.delay_ms)} ms.`;
  addOutputs();
  addManners();
}

function startRaw() {
  const channels = Math.min(header.channels_at_once, header.channel_labels.length - first);
  raw = new Ring(2 * channels, Math.ceil(RAW_SECONDS / header.bin_s) + 1);
  ranges.raw = {};
  $("raw").style.height = `${channels * ROW}px`;
  $("before").disabled = first === 0;
  $("after").disabled = first + header.channels_at_once >= header.channel_labels.length;
  $("shown").textContent = `${first + 1} to ${first + channels} of ${header.channel_labels.length}`;
}

function turn(by) {
  first = Math.max(0, first + by * header.channels_at_once);
  startRaw();
  connect();
}

// ---------------------------------------------------------------- events

function take(news) {
  if (!header) return;
  const k = header.output_names.length, { bin, value, deviation, flags } = news.decoded;
  const invalid = header.flags.INVALID | header.flags.WARMUP;
  bin.forEach((at, n) => {
    decoded.put(at, [...value[n], ...deviation[n], flags[n]]);
    const usable = !(flags[n] & invalid);
    const x = usable ? value[n][$("axis-x").value] : 0, y = usable ? value[n][$("axis-y").value] : 0;
    cursor.move(at, x ?? NaN, k > 1 ? y ?? NaN : 0, isVelocity());
  });
  if (news.raw.first === first) {
    news.raw.bin.forEach((at, n) => raw.put(at, [...news.raw.low[n], ...news.raw.high[n]]));
  }
  requestDrawing();
}

function tell(found) {
  status = found;
  if (!header) return;
  const { state, reason } = status.counters, silent = state === "streaming" && status.silent_s > SILENT_S;
  const words = { waiting: "waiting for the source", streaming: "streaming", ended: "ended" };
  if (silent) showState("waiting", `nothing for ${status.silent_s.toFixed(0)} s`);
  else showState(state, words[state] ?? state);
  $("reason").textContent = reason ?? "";
  $("time").textContent = status.time_s === null ? "" : formatTime(status.time_s);
  tellLatency();
  fill($("flags"), Object.entries(header.flags).map(([name, bit]) =>
    [[FLAGS[name] ?? name.toLowerCase(), status.flags & bit ? "yes" : "no", String(status.flagged[name])], Boolean(status.flags & bit)]));
  tellCounters();
  tellMasked();
  tellPictures();
  requestDrawing();
  if (state === "ended") {
    events.close(); // there is nothing to try again for
    notice("The stream has ended. The page shows its last seconds.");
    $("again").hidden = false;
  }
}

function tellLatency() {
  const { recent, outputs, late, max_us } = status.latency;
  $("latency-words").textContent = outputs
    ? `Last ${recent.outputs} outputs: half within ${formatMicroseconds(recent.p50_us)}, 99 % within ${formatMicroseconds(recent.p99_us)}, all within ${formatMicroseconds(recent.max_us)}. ` +
      `Since the start: ${late} of ${outputs} after the deadline, longest ${formatMicroseconds(max_us)}.`
    : "There is no output yet.";
}

function tellCounters() {
  const { sinks, state, reason, ...counters } = status.counters;
  fill($("counters"), Object.entries(counters).map(([name, value]) => {
    const shown = value === null ? "not known yet" : Number.isInteger(value) ? String(value) : value.toFixed(2);
    return [[WORDS[name] ?? name.replaceAll("_", " "), shown], Boolean(value) && !HARMLESS.includes(name)];
  }));
  fill($("sinks"), Object.entries(sinks ?? {}).map(([name, one]) => {
    const failed = one.failure !== null;
    return [[failed ? `${name} failed: ${one.failure}` : name, String(one.blocks), String(one.dropped_blocks)],
      failed || one.dropped_blocks > 0];
  }));
  $("viewers").textContent = `Browsers that watch: ${status.viewers}`;
}

function tellMasked() {
  const { count, channels } = status.masked;
  const which = channels === null ? "which ones is not known, because this page missed blocks" : listChannels(channels);
  const words = count ? `Masked (×), and filled in from the others: ${count} of ${header.channel_labels.length} (${which}).` : "No channel is masked.";
  const out = header.left_out.length ? ` Left out by the bundle: ${listChannels(header.left_out)}.` : "";
  if ($("masked").textContent !== words + out) $("masked").textContent = words + out;
}

function listChannels(channels) {
  const names = channels.slice(0, MOST_LISTED).map((at) => header.channel_labels[at]).join(", ");
  return channels.length > MOST_LISTED ? `${names} and ${channels.length - MOST_LISTED} more` : names;
}

// Says in words what the canvases show, for those who do not see them.
function tellPictures() {
  const last = decoded.newest, k = header.output_names.length;
  header.output_names.slice(0, MOST_OUTPUTS).forEach((name, i) => {
    const value = decoded.get(last, i), reach = header.interval.deviations * decoded.get(last, k + i);
    const words = formatWithReach(value, reach);
    $(`now-${i}`).textContent = `${words} ${header.output_units[i]}`;
    $(`output-${i}`).setAttribute("aria-label", `Trace of ${name} over ${SECONDS} s. It is now ${words}.`);
  });
  const unit = header.output_units[$("axis-x").value].replace(/\/s$/, "");
  const field = cursor.extent > 0.05 ? `The field is ± ${formatNumber(cursor.extent)} ${unit}.` : "It has not moved yet.";
  $("cursor-scale").textContent = field;
  $("cursor").setAttribute("aria-label", `The cursor is at ${formatNumber(cursor.x)} right, ${formatNumber(cursor.y)} up.`);
  $("latency").setAttribute("aria-label", `Histogram of the time to an output. ${$("latency-words").textContent}`);
  $("raw").setAttribute("aria-label", `Raw channels ${$("shown").textContent}. ${$("masked").textContent}`);
}

// ---------------------------------------------------------------- parts

function addOutputs() {
  const names = header.output_names;
  names.slice(0, MOST_OUTPUTS).forEach((name, i) => {
    const title = document.createElement("p"), now = document.createElement("span"), canvas = document.createElement("canvas");
    title.className = "figures";
    title.textContent = `${name}: `;
    now.id = `now-${i}`;
    title.append(now);
    canvas.id = `output-${i}`;
    canvas.className = "trace";
    canvas.setAttribute("role", "img");
    $("outputs").append(title, canvas);
    ranges.outputs.push({});
  });
  if (names.length > MOST_OUTPUTS) {
    const rest = document.createElement("p");
    rest.textContent = `${names.length - MOST_OUTPUTS} further outputs are not drawn: ${names.slice(MOST_OUTPUTS).join(", ")}.`;
    $("outputs").append(rest);
  }
  for (const [id, chosen] of [["axis-x", 0], ["axis-y", Math.min(1, names.length - 1)]]) {
    names.forEach((name, i) => $(id).add(new Option(name, String(i), i === chosen, i === chosen)));
    $(id).addEventListener("change", () => { cursor.restart(); tellCursor(); });
  }
  tellCursor();
}

function isVelocity() {
  return header.output_units[$("axis-x").value].endsWith("/s");
}

function tellCursor() {
  $("cursor-words").textContent = isVelocity()
    ? `The decoded velocity, added up and pulled back to the centre with a time constant of ${DECAY_S} s. It is not the position of the hand. A hollow cursor has no usable output.`
    : "The decoded values as they are. A hollow cursor has no usable output.";
}

function addManners() {
  const rows = header.real_time.map(({ name, in_force, detail }) => [[name, in_force ? "in force" : "not in force", detail], false]);
  fill($("manners"), rows);
  for (const warning of header.warnings) {
    const item = document.createElement("li");
    item.textContent = warning;
    $("warnings").append(item);
  }
}

// Puts rows of texts into a table's body. A row that is there is changed in place.
function fill(body, rows) {
  while (body.rows.length > rows.length) body.deleteRow(-1);
  rows.forEach(([texts, raised], n) => {
    const row = body.rows[n] ?? body.insertRow();
    row.className = raised ? "raised" : "";
    texts.forEach((text, i) => {
      let cell = row.cells[i];
      if (!cell) {
        cell = document.createElement(i ? "td" : "th");
        if (!i) cell.scope = "row";
        row.append(cell);
      }
      if (cell.textContent !== text) cell.textContent = text;
    });
  });
}

function showState(state, words) {
  const element = $("state");
  element.dataset.state = state;
  if (element.textContent === words) return;
  element.textContent = words;
  document.title = `${words}: ${header?.bundle ?? "edgedistill live"}`;
}

function notice(text) {
  $("notice").textContent = text;
  $("notice").hidden = !text;
}

function formatTime(seconds) {
  const whole = Math.floor(seconds), pad = (n) => String(n).padStart(2, "0");
  return `${pad(Math.floor(whole / 3600))}:${pad(Math.floor(whole / 60) % 60)}:${pad(whole % 60)}`;
}

// ---------------------------------------------------------------- drawing

function requestDrawing() {
  if (drawn || paused || document.hidden) return;
  drawn = true;
  requestAnimationFrame(() => {
    drawn = false;
    draw();
  });
}

function draw() {
  if (!header) return;
  const k = header.output_names.length, binS = header.bin_s, flags = header.flags;
  const look = { bins: Math.round(SECONDS / binS), binS, flags, deviations: header.interval.deviations };
  ranges.outputs.forEach((range, i) => drawTrace($(`output-${i}`), decoded, i, k, look, range));
  const now = decoded.get(decoded.newest, 2 * k);
  drawCursor($("cursor"), cursor, Number.isFinite(now) && !(now & (flags.INVALID | flags.WARMUP)));
  if (status) drawLatency($("latency"), header.edges_us, status.latency.counts, header.deadline_s * 1e6);
  const names = header.channel_labels.slice(first, first + header.channels_at_once);
  const bad = [...(status?.masked.channels ?? []), ...header.left_out];
  const masked = names.map((_, i) => bad.includes(first + i));
  const reach = drawRaw($("raw"), raw, names, masked, { bins: Math.round(RAW_SECONDS / binS) }, ranges.raw);
  $("raw-title").textContent = `Raw channels, ${RAW_SECONDS} s, each row ± ${formatNumber(reach)} µV`;
}

// ---------------------------------------------------------------- start

readColours();
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => { readColours(); requestDrawing(); });
addEventListener("resize", requestDrawing);
document.addEventListener("visibilitychange", requestDrawing);
$("before").addEventListener("click", () => turn(-1));
$("after").addEventListener("click", () => turn(1));
$("again").addEventListener("click", () => location.reload());
$("pause").addEventListener("click", () => {
  paused = !paused;
  $("pause").setAttribute("aria-pressed", String(paused));
  $("pause").textContent = paused ? "Go on drawing" : "Pause drawing";
  requestDrawing();
});
connect();
