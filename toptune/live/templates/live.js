// Shows what the server tells of a live recording. All text is set as text, never as HTML.
"use strict";

const SVG = "http://www.w3.org/2000/svg";
const by = (id) => document.getElementById(id);

const clock = (seconds) => {
  const all = Math.round(seconds);
  const two = (n) => String(n).padStart(2, "0");
  const [h, m, s] = [Math.floor(all / 3600), Math.floor(all / 60) % 60, all % 60];
  return h ? `${h}:${two(m)}:${two(s)}` : `${m}:${two(s)}`;
};
const count = (n, what) => `${n.toLocaleString("en")} ${what}${n === 1 ? "" : "s"}`;
const percent = (share) => `${Math.round(100 * share)}\u202f%`;
const latency = (s) => (s < 10 ? `${Math.round(1000 * s)}\u202fms` : `${s.toFixed(1)}\u202fs`);

const make = (name, text, className) => {
  const made = document.createElement(name);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  return made;
};
const draw = (name, attributes) => {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
};

const fact = (name, value, detail, tone) => {
  const box = make("div", undefined, tone);
  const shown = make("dd", value);
  if (detail) shown.append(make("small", detail));
  box.append(make("dt", name), shown);
  return box;
};

const track = (label, value, className, picture) => {
  const row = make("div", undefined, `track ${className}`);
  const name = make("span", label, "name");
  if (value) name.append(make("strong", value));
  row.append(name, picture);
  return row;
};
const picture = (className, label) =>
  draw("svg", {
    viewBox: "0 0 1000 100", preserveAspectRatio: "none", class: className, role: "img",
    "aria-label": label,
  });
const ticks = (begin, end) => {
  const row = make("div", undefined, "track ticks");
  const labels = make("div");
  const time = (s) => (end - begin < 8 ? `${s.toFixed(1)}\u202fs` : clock(s));
  for (let k = 0; k < 5; k += 1) labels.append(make("span", time(begin + ((end - begin) * k) / 4)));
  row.append(make("span", "", "name"), labels);
  return row;
};

function lead(now) {
  if (now.verdict) {
    const all = now.verdict.so_far;
    return `${now.state === "ended" ? "It was" : "So far"} ${all.prediction}, in `
      + `${all.windows[all.prediction]} of ${count(all.n_windows, "window")}.`;
  }
  if (now.state === "ended") return "It ended before the first verdict.";
  if (now.state === "filling") {
    return `Thresholds are set: the first verdict comes when a window of ${now.width_s} s is full.`;
  }
  const done = now.calibration;
  return done ? `Learning thresholds: ${Math.round(done.done_s)} of ${done.span_s} s.`
    : "Waiting for the first samples.";
}

function facts(now) {
  const { verdict: last, latency_s: late } = now;
  const found = [];
  if (last) {
    found.push(fact("Verdict so far", last.so_far.prediction,
      `mean probability ${percent(last.so_far.probability)}`, "good"));
    found.push(fact("Last window", last.prediction,
      `probability ${percent(last.probability)}`, last.unlike ? "bad" : "plain"));
    found.push(fact("Latency", latency(late.last), `95\u202f% below ${latency(late.p95)}`));
  }
  const lost = now.n_dropped;
  found.push(fact("Samples lost", lost.toLocaleString("en"),
    `${(lost / now.sampling_rate_hz).toPrecision(3)} s`, lost ? "bad" : "plain"));
  by("facts").replaceChildren(...found);
}

function course(now) {
  const { history, classes } = now;
  const n = history.stop_s.length;
  by("course").hidden = n === 0;
  if (!n) return;
  const end = history.stop_s[n - 1];
  const begin = Math.max(0, Math.min(history.stop_s[0], end - 12 * now.stride_s));
  const x = (seconds) => ((1000 * (seconds - begin)) / (end - begin)).toFixed(1);
  const rows = classes.map((name, code) => {
    const share = history.probabilities[n - 1][code];
    const mine = name === now.verdict.prediction;
    const svg = picture("course", `Probability of ${name} over time, now ${percent(share)}`);
    svg.append(draw("line", { x1: 0, x2: 1000, y1: 50, y2: 50, class: "mark" }));
    let points = [];
    const lines = [points];
    history.stop_s.forEach((stop, k) => {
      if (!history.follows[k] && points.length) lines.push((points = []));
      points.push([stop, history.probabilities[k][code]]);
    });
    for (const line of lines) {
      // A window alone is as long as a stride.
      if (line.length === 1) line.unshift([line[0][0] - now.stride_s, line[0][1]]);
      svg.append(draw("polyline", {
        class: `line ${mine ? "good" : "quiet"}`,
        points: line.map(([s, p]) => `${x(s)},${(98 - 96 * p).toFixed(1)}`).join(" "),
      }));
    }
    return track(name, percent(share), mine ? "now" : "", svg);
  });
  if (history.unlike.includes(true)) {
    const svg = picture("unlike", "Windows that are unlike anything in training");
    history.unlike.forEach((unlike, k) => {
      const [x1, x2] = [x(history.stop_s[k] - now.stride_s), x(history.stop_s[k])];
      if (unlike) svg.append(draw("line", { x1, x2, y1: 50, y2: 50, class: "line bad" }));
    });
    rows.push(track("unlike training", "", "", svg));
  }
  by("classes").replaceChildren(...rows, ticks(begin, end));
}

function lastWindow(now) {
  const last = now.verdict;
  by("window").hidden = !last;
  if (!last) return;
  const { counts, column_s: columnS } = now.histogram;
  const most = Math.max(1, ...counts);
  const width = 1000 / counts.length;
  const svg = picture("window", `Histogram of the spikes of the last window, at most ${most} in `
    + `${columnS.toPrecision(2)} s`);
  counts.forEach((n, k) => {
    const height = (100 * n) / most;
    if (n) {
      svg.append(draw("rect", {
        x: (k * width).toFixed(2), y: (100 - height).toFixed(2), width: width.toFixed(2),
        height: height.toFixed(2), class: "bar",
      }));
    }
  });
  by("window-text").textContent = `${clock(last.start_s)} to ${clock(last.stop_s)}: `
    + `${last.prediction}, probability ${percent(last.probability)}. `
    + `${count(last.n_spikes, "spike")} on all electrodes, up to ${most.toLocaleString("en")} in `
    + `${columnS.toPrecision(2)} s.`;
  by("histogram").replaceChildren(
    track(`histogram, up to ${most.toLocaleString("en")}`, "", "", svg),
    ticks(last.start_s, last.stop_s),
  );
}

function notes(now) {
  by("happened").hidden = now.notes.length === 0;
  by("notes").replaceChildren(...now.notes.toReversed().map((note) => {
    const row = make("tr");
    row.append(make("td", clock(note.at_s), "number"), make("td", note.kind),
      make("td", note.text, "prose"));
    return row;
  }));
}

function warn(text) {
  by("warning").hidden = !text;
  if (by("warning-text").textContent !== text) by("warning-text").textContent = text;
}

function warning(now) {
  if (now.state === "stopped") return "the source has stopped; waiting for it to go on.";
  if (now.verdict && now.verdict.so_far.unlike_training) {
    return `unlike anything in training, so the verdict extrapolates: ${
      now.verdict.so_far.warnings.join("; ")}.`;
  }
  if (now.verdict && now.verdict.unlike) {
    return "the last window is unlike those of training, so its verdict extrapolates.";
  }
  return "";
}

function show(now) {
  document.title = `${now.verdict ? `${now.verdict.so_far.prediction}: ` : ""}${now.source}, live`;
  by("title").textContent = now.source;
  const told = lead(now);
  if (by("lead").textContent !== told) by("lead").textContent = told;
  warn(warning(now));
  facts(now);
  course(now);
  lastWindow(now);
  notes(now);
  by("footer").textContent = `${count(now.n_channels, "electrode")} at ${now.sampling_rate_hz} Hz; `
    + `windows of ${now.width_s} s every ${now.stride_s} s. Model ${now.model}.`
    + (now.state === "ended" ? " The recording has ended." : "");
  document.documentElement.dataset.state = now.state;
}

const events = new EventSource("events");
let ended = false;
events.onmessage = (event) => {
  const now = JSON.parse(event.data);
  ended = now.state === "ended";
  show(now);
  if (ended) events.close();
};
events.onerror = () => {
  if (!ended) warn("the connection is lost: what is shown is what was last known.");
};
