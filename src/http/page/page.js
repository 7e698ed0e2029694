// The page: asks the relay for its status and its last hours, and shows them. It changes nothing there.
// All text comes in by textContent: names and messages are chosen by others.
import { Plot, clock, element, lasting, rate, setText, shape, size } from "./plot.js";

const EVERY = 5000;
const PATIENCE = 10000;
const NODES = 12;
const LINES = 8;

const $ = (id) => document.getElementById(id);
// Without the login that a page's own address may hold: nothing may be fetched with one in its address, and the browser knows it.
const HERE = Object.assign(new URL(".", location.href), { username: "", password: "" });
let status = null;
let away = null;
let failed = 0;
let range = 0;
let history = null;

// ---- asking

async function ask(path) {
  const answer = await fetch(new URL(path, HERE), { cache: "no-store", signal: AbortSignal.timeout(PATIENCE) });
  const told = await answer.json().catch(() => null);
  if (told === null) throw new Error(`the answer was ${answer.status}`);
  return { starting: answer.status === 503 ? told : null, told };
}

async function round() {
  let answer;
  try {
    answer = await ask("api/status");
    if (!answer.starting) await askHistory();
  } catch (error) {
    failed += 1;
    away ??= new Date();
    schedule();
    return showAway(error);
  }
  failed = 0;
  away = null;
  // A fault of the page itself is for the browser's console, and the next answer may do.
  schedule();
  if (answer.starting) return showStarting(answer.starting);
  status = answer.told;
  showAll();
}

let timer = 0;
function schedule() {
  clearTimeout(timer);
  if (!document.hidden) timer = setTimeout(round, failed > 3 ? 2 * EVERY : EVERY);
}
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (!document.hidden) round();
});

// What is new since the last time; everything when the relay is another one by now.
async function askHistory() {
  const { starting, told } = await ask(`api/history?since=${history ? history.number : 0}`);
  if (starting) return;
  if (history && history.run === told.run && told.number >= history.number) {
    told.resolutions.forEach((news, index) => extend(news, history.resolutions[index], index === 0 ? 360 : 720));
    history = told;
  } else if (history) {
    history = null;
    await askHistory();
  } else {
    history = told;
  }
}

function extend(news, known, kept) {
  const added = news.number - known.number;
  const before = new Map(known.series.map((line) => [`${line.what} ${line.name}`, line.samples]));
  const overlap = Math.max(news.count - added, 0);
  news.count = Math.min(known.count + added, kept);
  for (const line of news.series) {
    const old = before.get(`${line.what} ${line.name}`) ?? [];
    const joined = [...old.slice(0, old.length - overlap), ...line.samples];
    while (joined.length < news.count) joined.unshift(null);
    line.samples = joined.slice(joined.length - news.count);
  }
}

// ---- words

const dash = (text) => (text === null || text === undefined || text === "" ? "–" : String(text));
const since = (at) => (at ? (Date.parse(status.at) - Date.parse(at)) / 1000 : null);
const many = (count, one, more) => `${count} ${count === 1 ? one : more}`;

function day(at) {
  if (!at) return "–";
  const date = new Date(at), today = new Date();
  const two = (number) => String(number).padStart(2, "0");
  const sameDay = date.toDateString() === today.toDateString();
  return sameDay ? clock(date) : `${date.getFullYear()}-${two(date.getMonth() + 1)}-${two(date.getDate())} ${clock(date)}`;
}

const safe = (consumer) => consumer.flush ?? consumer.write ?? consumer.sent;
const lagOf = (distance) => (distance ? `${size(distance.lag_bytes)}, ${lasting(distance.lag_seconds)}` : "–");

// Who is behind for long is worth a look; who catches up is not.
function moodOf(consumer) {
  const lag = safe(consumer);
  if (!lag || consumer.state === "backup") return "";
  if (lag.lag_seconds > 300) return "bad";
  return lag.lag_seconds > 30 ? "warn" : "good";
}

const HOLDERS = {
  wal_keep_size: "wal_keep_size", recovery: "the next start of the relay", slot: "slot", saved_slot: "slot, as its file has it",
  archive_target: "archive target", start: "the start of the relay", timeline_switch: "a change of the timeline",
};

// ---- parts of the page

// Sets the texts of what is there already where that is enough, so that nobody loses a selection or a place.
function fill(table, caption, columns, rows, empty) {
  if (!table.tHead) {
    table.append(element("caption", { class: "unseen" }, caption), element("thead", {}, element("tr")), element("tbody"));
  }
  const head = table.tHead.rows[0];
  if (head.cells.length !== columns.length) {
    head.replaceChildren(...columns.map(([title, kind]) => element("th", { scope: "col", class: kind ?? "" }, title)));
  }
  const body = table.tBodies[0];
  const wanted = rows.length ? rows : [null];
  while (body.rows.length > wanted.length) body.lastElementChild.remove();
  wanted.forEach((cells, index) => {
    let row = body.rows[index];
    const length = cells ? columns.length : 1;
    if (!row || row.cells.length !== length) {
      const made = cells
        ? columns.map(([, kind], place) => element(place ? "td" : "th", { class: kind ?? "", ...(place ? {} : { scope: "row" }) }))
        : [element("td", { class: "empty", colspan: columns.length })];
      const fresh = element("tr", {}, ...made);
      if (row) row.replaceWith(fresh);
      else body.append(fresh);
      row = fresh;
    }
    if (!cells) return setText(row.cells[0], empty);
    cells.forEach((cell, place) => {
      const [text, mood] = Array.isArray(cell) ? cell : [cell, ""];
      setText(row.cells[place], text);
      row.cells[place].className = `${columns[place][1] ?? ""} ${mood}`.trim();
    });
  });
}

function list(where, items, make) {
  while (where.children.length > items.length) where.lastElementChild.remove();
  items.forEach((item, index) => {
    if (!where.children[index]) where.append(element("li"));
    make(where.children[index], item);
  });
}

function lines(where, texts) {
  while (where.children.length > texts.length) where.lastElementChild.remove();
  texts.forEach(([kind, text], index) => {
    if (!where.children[index]) where.append(element("p"));
    where.children[index].className = kind;
    setText(where.children[index], text);
  });
}

function node(where, { name, mood, is, more }) {
  where.className = `node ${mood}`.trim();
  lines(where, [["name", name], ["is", is], ...more.filter(Boolean).map((text) => ["quiet", text])]);
}

// ---- what is shown

function showAway(error) {
  const whys = { TimeoutError: "it takes longer than ten seconds", TypeError: "nobody answers at its address" };
  const why = whys[error.name] ?? error.message;
  const last = status ? ` What is shown is what it was at ${day(status.at)}.` : "";
  setText($("away"), `No answer from the relay since ${clock(away)}: ${why}.${last} It is asked again.`);
  $("away").hidden = false;
  pill("away", "bad");
}

function showStarting(starting) {
  const last = status ? ` What is shown below is what it was at ${day(status.at)}.` : "";
  setText($("away"), `The relay starts: ${starting.starting}.${last}`);
  $("away").hidden = false;
  pill("starting", "warn");
}

function pill(text, mood) {
  setText($("state"), text);
  $("state").className = `pill ${mood}`;
}

function showAll() {
  $("away").hidden = true;
  const { relay, troubles, upstream } = status;
  const serious = !status.ready || relay.failure;
  if (relay.stopping) pill("stopping", "warn");
  else if (serious) pill("cannot serve", "bad");
  else if (troubles.length) pill(`${many(troubles.length, "thing", "things")} to look at`, "warn");
  else pill("all is well", "good");
  setText($("where"), location.hostname);
  setText($("seen"), `as of ${clock(new Date(status.at))}`);
  document.title = troubles.length ? `(${troubles.length}) walrelay ${location.hostname}` : `walrelay ${location.hostname}`;
  $("troubles").hidden = !troubles.length;
  list($("trouble-list"), troubles, setText);
  showFigures();
  showTopology();
  showPlots();
  showDisk();
  showTables();
  showEvents();
  setText($("footer-line"), `walrelay ${relay.version}, PID ${relay.pid}, up ${lasting(relay.uptime_seconds)}, ${relay.data_dir}. ` +
    `Times are those of this browser (${Intl.DateTimeFormat().resolvedOptions().timeZone}). Slot upstream: ${upstream.slot}.`);
}

function newest(what) {
  const line = history?.resolutions[0].series.find((line) => line.what === what);
  return line?.samples.at(-1) ?? null;
}

// Null is also what is not known yet.
function filling(disk) {
  if (disk.full_in_seconds === null) return "no end in sight";
  return disk.full_in_seconds > 0 ? `full in ${lasting(disk.full_in_seconds)}` : "full";
}

function showFigures() {
  const { relay, disk, consumers, archive } = status;
  const behind = consumers.map(safe).filter(Boolean).reduce((most, it) => (most && most.lag_seconds >= it.lag_seconds ? most : it), null);
  const risk = archive.filter((it) => it.at_risk_bytes !== null).sort((a, b) => b.at_risk_bytes - a.at_risk_bytes)[0];
  const figures = [
    ["Written up to", dash(relay.write_lsn), `timeline ${dash(relay.timeline)}`, "mono"],
    ["Flushed up to", dash(relay.flush_lsn), `${size(status.upstream.unflushed_bytes)} not flushed`, "mono"],
    ["WAL received", rate(newest("received_bytes_per_second")), "in the last ten seconds"],
    ["Most lag of a consumer", behind ? lasting(behind.lag_seconds) : "–", behind ? size(behind.lag_bytes) : "nobody is connected"],
    ["Free on the disk", size(disk.looked_at ? disk.free_bytes : null), filling(disk)],
  ];
  if (archive.length) figures.push(["Not archived", size(risk?.at_risk_bytes), risk ? `most for ${risk.name}` : "not known yet"]);
  const where = $("figures");
  while (where.children.length > figures.length) where.lastElementChild.remove();
  figures.forEach(([title, value, note, kind], index) => {
    if (!where.children[index]) where.append(element("div", {}, element("dt"), element("dd"), element("dd", { class: "note" })));
    const [dt, dd, small] = where.children[index].children;
    setText(dt, title);
    setText(dd, value);
    dd.className = kind ?? "";
    setText(small, note);
  });
}

function showTopology() {
  const { relay, upstream, archive, fence } = status;
  const fenced = fence && fence.state === "in force";
  list($("upstream"), [upstream], (where) => node(where, {
    name: upstream.host ?? "no server yet",
    mood: upstream.state === "streaming" ? "good" : upstream.failing_since || relay.failure ? "bad" : "warn",
    is: `${upstream.state} for ${lasting(since(upstream.since))}`,
    more: [
      upstream.server_version && `PostgreSQL ${upstream.server_version}, timeline ${dash(upstream.server_timeline)}`,
      upstream.end_lsn && `its WAL ends at ${upstream.end_lsn}`,
      upstream.unreceived_bytes ? `${size(upstream.unreceived_bytes)} not received` : null,
      upstream.state !== "streaming" && upstream.last_error,
    ],
  }));
  list($("relay"), [relay], (where) => node(where, {
    name: `walrelay ${relay.version}`,
    mood: relay.failure || !status.ready ? "bad" : fenced ? "warn" : "good",
    is: relay.failure ?? (relay.stopping ? "stopping" : fenced ? "fenced" : status.ready ? "serving" : "nothing to serve yet"),
    more: [
      relay.oldest_lsn && `WAL from ${relay.oldest_lsn}`,
      relay.write_lsn && `to ${relay.write_lsn}, timeline ${relay.timeline}`,
      `sends ${rate(newest("sent_bytes_per_second"))}`,
    ],
  }));
  showConsumerNodes();
  $("archive-heading").hidden = $("archive-nodes").hidden = !archive.length;
  list($("archive-nodes"), archive, (where, target) => node(where, {
    name: target.name,
    mood: target.failing_since ? "bad" : target.paused_since ? "warn" : "good",
    is: target.failing_since ? `takes nothing for ${lasting(since(target.failing_since))}`
      : target.paused_since ? `paused for ${lasting(since(target.paused_since))}`
      : target.pending_files ? `${many(target.pending_files, "file waits", "files wait")}` : "has everything that is complete",
    more: [target.at_risk_bytes !== null && `${size(target.at_risk_bytes)} not archived`, target.place],
  }));
}

function showConsumerNodes() {
  const consumers = [...status.consumers].sort((a, b) => (safe(b)?.lag_seconds ?? -1) - (safe(a)?.lag_seconds ?? -1));
  const idle = status.slots.filter((slot) => slot.active_pid === null && !slot.temporary);
  const nodes = [
    ...consumers.slice(0, NODES).map((consumer) => ({
      name: consumer.application_name || "(no name)",
      mood: moodOf(consumer),
      is: consumer.state,
      more: [safe(consumer) ? `lag ${lagOf(safe(consumer))}` : null, consumer.client_addr ?? "local"],
    })),
    ...idle.slice(0, NODES).map((slot) => ({
      name: `slot ${slot.name}`,
      mood: slot.wal_status === "lost" ? "bad" : "warn",
      is: slot.wal_status === "lost" ? "lost" : `unused for ${lasting(since(slot.inactive_since))}`,
      more: [`keeps ${size(slot.held_bytes)}`],
    })),
  ];
  const left = Math.max(consumers.length - NODES, 0) + Math.max(idle.length - NODES, 0);
  if (left) nodes.push({ name: `${left} more`, mood: "", is: "in the tables below", more: [] });
  if (!nodes.length) nodes.push({ name: "nobody", mood: "", is: "no consumer is connected, and there are no slots", more: [] });
  list($("consumer-nodes"), nodes, node);
}

const PLOTS = [
  { id: "plot-rate", title: "WAL received and sent", note: "Bytes per second", kind: "bytes", format: rate, least: 1024,
    lines: [["received_bytes_per_second", "received"], ["sent_bytes_per_second", "sent to all"]] },
  { id: "plot-lag", title: "Lag of consumers in time", note: "How long the oldest WAL that it has not flushed has been here",
    kind: "seconds", format: lasting, least: 1, named: "consumer_lag_seconds", most: "most_consumer_lag_seconds",
    ones: ["consumer", "consumers"], names: ({ consumers }) => consumers.filter(safe).map((it) => it.application_name) },
  { id: "plot-bytes", title: "Lag of consumers in bytes", note: "WAL that it has not flushed", kind: "bytes", format: size, least: 1024,
    named: "consumer_lag_bytes", most: "most_consumer_lag_bytes",
    ones: ["consumer", "consumers"], names: ({ consumers }) => consumers.filter(safe).map((it) => it.application_name) },
  { id: "plot-replay", title: "Replay lag of standbys", note: "How long the oldest WAL that it has not replayed has been here",
    kind: "seconds", format: lasting, least: 1, named: "consumer_replay_lag_seconds", most: "most_consumer_replay_lag_seconds",
    ones: ["standby", "standbys"], names: ({ consumers }) => consumers.filter((it) => it.replay).map((it) => it.application_name) },
  { id: "plot-held", title: "WAL kept for slots", note: "On the disk, for each", kind: "bytes", format: size, least: 1024 * 1024, named: "slot_held_bytes",
    ones: ["slot", "slots"], names: ({ slots }) => slots.filter((it) => !it.temporary).map((it) => it.name) },
  { id: "plot-archive", title: "WAL that is not archived", note: "Lost if only the archive is left", kind: "bytes", format: size, least: 1024,
    named: "archive_at_risk_bytes", ones: ["target", "targets"], names: ({ archive }) => archive.map((it) => it.name) },
  { id: "plot-disk", title: "Disk", note: "What is free, and what pg_wal takes", kind: "bytes", format: size, least: 1024 * 1024,
    lines: [["disk_free_bytes", "free"], ["wal_directory_bytes", "pg_wal"]] },
  { id: "plot-sync", title: "Syncs of written WAL", note: "How long one takes on average", kind: "seconds", format: lasting, least: 0.001,
    lines: [["sync_seconds", "sync"]] },
];

// When the newest sample was taken. Those before it do not tremble because it came a little late; they move if the clock was set.
let first = null;
function sampledAt() {
  const at = Date.parse(history.at), step = history.resolutions[0].seconds * 1000;
  const expected = first ? first.at + (history.number - first.number) * step : at;
  if (first?.run !== history.run || Math.abs(at - expected) > 2000) first = { run: history.run, number: history.number, at };
  return first.at + (history.number - first.number) * step;
}

function showPlots() {
  if (!history) return;
  const { seconds, series, count, number } = history.resolutions[range];
  const now = sampledAt(), fine = history.resolutions[0].seconds;
  // A minute that is not over ends in the future.
  const end = now + (number * seconds / fine - history.number) * fine * 1000;
  // A young relay has little to show: not a plot that is empty on its left.
  const shown = Math.max(count, range === 0 ? 60 : 30);
  const padded = (samples) => [...Array(Math.max(shown - samples.length, 0)).fill(null), ...samples];
  for (const plot of PLOTS) {
    const { lines, more } = plot.lines
      ? { lines: plot.lines.map(([what, name]) => ({ name, values: series.find((line) => line.what === what)?.samples ?? [] })), more: "" }
      : named(plot, series);
    plot.drawn ??= new Plot($("plots"), plot);
    plot.drawn.figure.hidden = !plot.lines && !lines.length;
    plot.drawn.show({ lines: lines.map(({ name, values }) => ({ name, values: padded(values) })), seconds, end, now, count: shown, more });
  }
}

// Of more than can be told apart, those that were farthest behind, in an order that does not change with each sample; and the most of
// all. What is not drawn is said, that for which there was no room in the history too.
function named(plot, series) {
  const found = series.filter((line) => line.what === plot.named);
  const most = (line) => line.samples.reduce((most, value) => Math.max(most, value ?? -1), -1);
  const sorted = [...found].sort((a, b) => most(b) - most(a));
  const chosen = found.length <= LINES ? found : sorted.slice(0, plot.most ? LINES - 1 : LINES);
  const lines = [...chosen].sort((a, b) => (a.name < b.name ? -1 : 1)).map((line) => ({ name: line.name || "(no name)", values: line.samples }));
  const all = plot.most && found.length > LINES && series.find((line) => line.what === plot.most);
  if (all) lines.push({ name: "most of all", values: all.samples });
  const [one, several] = plot.ones;
  const left = sorted.slice(chosen.length), known = new Set(found.map((line) => line.name));
  const unknown = history.left_out ? new Set(plot.names(status).filter((name) => !known.has(name))).size : 0;
  const drawn = left.length ? `and ${many(left.length, `more ${one}`, `more ${several}`)}, with ${plot.format(most(left[0]))} at most` : "";
  const kept = unknown ? `${many(unknown, one, several)} without a history, see the tables below` : "";
  return { lines, more: [drawn, kept].filter(Boolean).join("; ") };
}

function choose(index) {
  range = index;
  $("hour").setAttribute("aria-pressed", String(index === 0));
  $("hours").setAttribute("aria-pressed", String(index === 1));
  if (status) showPlots();
}
$("hour").addEventListener("click", () => choose(0));
$("hours").addEventListener("click", () => choose(1));

function showDisk() {
  const { disk } = status;
  const where = $("disk-bar");
  if (!disk.looked_at) {
    setText($("disk-line"), disk.error ? `The disk does not answer: ${disk.error}` : "The disk was not looked at yet.");
    return;
  }
  const used = Math.max(disk.size_bytes - disk.free_bytes, 0), other = Math.max(used - disk.wal_bytes, 0);
  const end = disk.full_in_seconds > 0 ? `, full in ${lasting(disk.full_in_seconds)} at the rate of the last hour` : "";
  setText($("disk-line"), disk.error ? `The disk does not answer: ${disk.error}. What is shown was seen at ${day(disk.looked_at)}.`
    : `${size(disk.free_bytes)} of ${size(disk.size_bytes)} are free${end}.`);
  const parts = [["pg_wal", disk.wal_bytes, "wal", `${many(disk.wal_files, "file", "files")}`], ["other files, and what is reserved", other, "other", ""], ["free", disk.free_bytes, "free", ""]];
  let x = 0;
  const rects = parts.map(([, bytes, kind]) => {
    const width = (bytes / Math.max(disk.size_bytes, 1)) * 1000;
    const rect = shape("rect", { class: `f-${kind}`, x: x.toFixed(2), y: 0, width: width.toFixed(2), height: 10 });
    x += width;
    return rect;
  });
  where.replaceChildren(shape("svg", { viewBox: "0 0 1000 10", preserveAspectRatio: "none" }, ...rects));
  if (!$("disk-legend").children.length) {
    $("disk-legend").append(...parts.map(([, , kind]) => element("li", {}, element("span", { class: `swatch f-${kind}` }), element("span"))));
  }
  parts.forEach(([name, bytes, , more], index) => setText($("disk-legend").children[index].lastElementChild, `${name} ${size(bytes)}${more ? `, ${more}` : ""}`));
  const holders = [...disk.holders].sort((a, b) => b.held_bytes - a.held_bytes);
  fill($("holders"), "What keeps WAL on the disk", [["Kept for", "name-cell"], ["Name"], ["Keeps", "num"], ["From"]],
    holders.map((it) => [HOLDERS[it.kind] ?? it.kind, dash(it.name), size(it.held_bytes), it.from_lsn && it.from_lsn !== "0/0" ? it.from_lsn : "all there is"]),
    "Nothing keeps WAL.");
}

function showTables() {
  const { consumers, slots, archive, timelines, disk } = status;
  const lsn = (distance) => distance?.lsn ?? "–";
  fill($("consumers"), "Who receives WAL, as in pg_stat_replication",
    [["application_name", "name-cell"], ["state"], ["client_addr"], ["slot"], ["sent_lsn", "mono"], ["write_lsn", "mono"], ["flush_lsn", "mono"],
      ["replay_lsn", "mono"], ["lag", "num"], ["lag in time", "num"], ["replay lag", "num"], ["reply_time"], ["pid", "num"]],
    consumers.map((it) => [it.application_name || "(no name)", it.state, it.client_addr ?? "local", dash(it.slot), lsn(it.sent), lsn(it.write),
      lsn(it.flush), lsn(it.replay), size(safe(it)?.lag_bytes), [lasting(safe(it)?.lag_seconds), moodOf(it) === "good" ? "" : moodOf(it)],
      lasting(it.replay?.lag_seconds), day(it.reply_at), String(it.pid)]),
    "No consumer is connected.");
  fill($("slots"), "Replication slots, as in pg_replication_slots",
    [["slot_name", "name-cell"], ["active_pid", "num"], ["restart_lsn", "mono"], ["keeps", "num"], ["lag in time", "num"], ["wal_status"],
      ["safe_wal_size", "num"], ["inactive_since"]],
    slots.map((it) => [it.name + (it.temporary ? " (temporary)" : ""), it.active_pid === null ? "unused" : String(it.active_pid), lsn(it.restart),
      size(it.held_bytes), lasting(it.restart?.lag_seconds), [dash(it.wal_status), it.wal_status === "lost" ? "bad" : it.wal_status === "unreserved" ? "warn" : ""],
      size(it.safe_wal_size), day(it.inactive_since)]),
    "There are no slots.");
  $("archive-section").hidden = !archive.length;
  fill($("archive"), "Where WAL is archived",
    [["target", "name-cell"], ["place", "wide"], ["archived", "num"], ["last file", "mono"], ["at"], ["waiting", "num"], ["not archived", "num"], ["for", "num"], ["failures", "num"], ["last error", "wide"]],
    archive.map((it) => [it.name, it.place, String(it.archived_files), dash(it.last_archived_file), day(it.last_archived_at), String(it.pending_files),
      size(it.at_risk_bytes), lasting(it.at_risk_seconds), [String(it.failures), it.failing_since ? "bad" : ""],
      it.last_error ? `${day(it.last_failed_at)}: ${it.last_error}` : "–"]),
    "There are none.");
  const segments = new Map(disk.segments.map((it) => [it.timeline, it]));
  fill($("timelines"), "Timelines on the way to the one that is followed",
    [["timeline", "name-cell"], ["from", "mono"], ["to", "mono"], ["segments", "num"], ["on the disk", "num"], ["oldest file", "mono"], ["newest file", "mono"]],
    [...timelines].reverse().map((it) => {
      const files = segments.get(it.timeline);
      return [String(it.timeline), it.begin_lsn ?? "its beginning", it.end_lsn ?? "now", files ? String(files.complete + files.unfinished) : "–",
        size(files?.bytes), files?.first ?? "–", files?.last ?? "–"];
    }),
    "No WAL is held yet.");
}

function showEvents() {
  const { events, counts } = status;
  const told = [...events].reverse().slice(0, 50);
  setText($("events-line"), told.length
    ? `The newest warnings and errors of the log; since the start ${many(counts.warnings, "warning", "warnings")} and ${many(counts.errors, "error", "errors")}.`
    : "The log has no warnings and no errors since the start.");
  list($("events"), told, (where, event) => {
    if (!where.children.length) where.append(element("time"), element("span"), element("span", { class: "text" }));
    const [time, level, text] = where.children;
    time.setAttribute("datetime", event.at);
    setText(time, day(event.at));
    setText(level, event.level);
    level.className = `level ${event.level === "ERROR" ? "bad" : "warn"}`;
    setText(text, event.message);
  });
}

round();
