/* The page at `/`. It asks this server for every number, draws what it answers, and computes none of them. */
"use strict";

const at = (id) => document.getElementById(id);
const SYMBOLS = { gamma: "γ", temperature: "τ", potential: "Φ", alpha: "α" };
const MEASURES = {
  psi: { name: "shaping ψ", write: signed },
  log_probs: { name: "log-prob", write: plain },
  entropies: { name: "entropy", write: plain, ofStates: true },
  values: { name: "value", write: plain, ofStates: true },
};
const SIDES = ["chosen", "rejected"];
const EXAMPLE = {
  prompt: "Why is the sky blue?",
  chosen: "Air scatters the short, blue waves of sunlight much more than the long, red ones, so blue reaches us from all sides.",
  rejected: "The sky is blue because it mirrors the oceans, which are blue, and that is the whole reason for it.",
};
let pair = null;
let asking = new AbortController();

/* The answer of a route as JSON. Throws an Error with the problem's own line. */
async function ask(path, body, signal) {
  const headers = at("key").value ? { Authorization: `Bearer ${at("key").value}` } : {};
  if (body) headers["Content-Type"] = "application/json";
  let answer;
  try {
    answer = await fetch(path, { method: body ? "POST" : "GET", headers, signal, body: body && JSON.stringify(body) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Error("The server does not answer. Is it still running?");
  }
  const said = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(said.detail ? `${said.detail} (${said.code})` : `The answer has status ${answer.status}.`);
  return said;
}

/* What is known of the server; asked again, often while it is not ready. */
async function refresh() {
  clearTimeout(refresh.later);
  let next = 30_000;
  try {
    await ask("readyz");
    const [teacher, store] = [await ask("v1/teacher"), await ask("v1/store")];
    health("ready", "ready");
    facts({
      teacher: teacher.name,
      id: teacher.id,
      engine: `${teacher.engine} ${teacher.engine_version}`,
      dtype: [teacher.dtype, teacher.quantization].filter(Boolean).join(", "),
      vocabulary: teacher.vocab_size.toLocaleString("en"),
      "longest sequence": teacher.longest_sequence.toLocaleString("en"),
      "τ served": teacher.temperatures.join(" … "),
      "stored completions": store.sequences.toLocaleString("en"),
      "stored tokens": store.tokens.toLocaleString("en"),
      "bytes a token": store.bytes_per_token.toFixed(1),
      "hits, misses": `${store.hits.toLocaleString("en")}, ${store.misses.toLocaleString("en")}`,
      ...(store.corrupt ? { "damaged blocks": store.corrupt } : {}),
    });
    if (!refresh.known) setKind(teacher.chat_template_digest ? "chat" : "text");
    refresh.known = true;
  } catch (error) {
    health("bad", error.message);
    facts({});
    next = 5_000;
  }
  refresh.later = setTimeout(refresh, next);
}

function health(state, line) {
  at("health").className = state;
  at("health").textContent = line;
}

function facts(known) {
  at("facts").replaceChildren(...Object.entries(known).map(([name, value]) => element("div", {},
    element("dt", { textContent: name }), element("dd", { textContent: value }))));
}

function setKind(kind) {
  at("kind").value = kind;
  at("eos").checked = kind === "text";
  at("eos").disabled = kind === "chat";
}

/* A control for each choice of a reading, as the server's own OpenAPI document lists them, and one for α. */
async function buildReading() {
  const spec = await ask("openapi.json");
  const { shaping, alpha } = spec.paths["/v1/shaping"].post.requestBody.content["application/json"].schema.properties;
  const choices = Object.entries({ ...shaping.properties, alpha });
  at("reading").replaceChildren(...choices.map(([name, choice]) => {
    const control = choice.enum
      ? element("select", {}, ...choice.enum.map((option) => element("option", { textContent: option })))
      : element("input", { type: "number", step: "any", value: choice.default });
    control.id = name;
    control.value = choice.default;
    const symbol = SYMBOLS[name] ? ` ${SYMBOLS[name]}` : "";
    return element("label", {}, name + symbol, control, element("small", { textContent: choice.description }));
  }));
}

function question() {
  const chat = at("kind").value === "chat";
  const { alpha, ...shaping } = Object.fromEntries([...at("reading").querySelectorAll("input, select")].map(
    (control) => [control.id, control.type === "number" ? control.valueAsNumber : control.value]));
  return {
    prompt: chat ? [{ role: "user", content: at("prompt").value }] : at("prompt").value,
    append_eos: !chat && at("eos").checked,
    chosen: at("chosen").value,
    rejected: at("rejected").value,
    shaping,
    alpha,
  };
}

async function show() {
  asking.abort();
  asking = new AbortController();
  at("pair").setAttribute("aria-busy", "true");
  try {
    pair = await ask("v1/shaping", question(), asking.signal);
    at("problem").textContent = "";
    at("result").hidden = false;
    draw();
    refresh();
  } catch (error) {
    if (error.name === "AbortError") return;
    at("problem").textContent = error.message;
    at("result").hidden = true;
  }
  at("pair").removeAttribute("aria-busy");
}

function draw() {
  at("sides").replaceChildren(...SIDES.map((name) => element("tr", { id: `${name}-sums` },
    element("th", { textContent: name, scope: "row" }),
    element("td", { textContent: signed(pair[name].shaping, 3) }),
    element("td", { textContent: pair[name].length }),
    element("td", { textContent: pair[name].cached ? "stored" : "computed" }))));
  at("margin").textContent = signed(pair.margin, 3);
  at("alpha-used").textContent = String(pair.alpha).replace("-", "−");
  at("weight").textContent = pair.weight.toFixed(3);
  at("bar").style.setProperty("--weight", pair.weight);
  at("effect").textContent = effect();
  drawMeasure();
}

function effect() {
  const dpo = "At the first step DPO weighs every pair with 0.5, the dashed line";
  if (pair.weight === 0.5) return `${dpo}, and so does this setting.`;
  const [side, by] = pair.weight < 0.5 ? ["chosen", "less"] : ["rejected", "more"];
  return `${dpo}. Here α times the margin already prefers the ${side} answer, so the pair counts ${by}.`;
}

function drawMeasure() {
  const name = document.querySelector("#measures input:checked").value;
  const { write, ofStates } = MEASURES[name];
  const all = SIDES.flatMap((side) => pair[side][name]);
  // The value's zero means nothing, since a constant added to all logits moves it: its middle is that of the pair.
  const middle = name === "values" ? (Math.min(...all) + Math.max(...all)) / 2 : 0;
  const scale = scaleOf(all, middle, write);
  drawLegend(at("legend"), scale);
  for (const side of SIDES) {
    const texts = ofStates ? [...pair[side].words, "end"] : pair[side].words;
    const cells = texts.map((text, t) => ({
      text, number: pair[side][name][t], label: describe(side, t), state: t === pair[side].length,
    }));
    drawTokens(at(`${side}-tokens`), cells, scale, (t) => { at("detail").textContent = describe(side, t); });
  }
}

function describe(side, t) {
  const { words, tokens, length } = pair[side];
  const place = t === length ? `${side}, after the last token` : `${side}, token ${t + 1} of ${length}, “${words[t]}”, id ${tokens[t]}`;
  const numbers = Object.entries(MEASURES).filter(([name]) => t < pair[side][name].length)
    .map(([name, measure]) => `${measure.name} ${measure.write(pair[side][name][t], 4)}`);
  return `${place}: ${numbers.join(" · ")}`;
}

function start() {
  at("measures").replaceChildren(...Object.entries(MEASURES).map(([value, { name }], index) => element("label", { className: "check" },
    element("input", { type: "radio", name: "measure", value, checked: !index, onchange: drawMeasure }), name)));
  try {
    at("key").value = sessionStorage.getItem("tvkd-key") ?? "";
    at("key").onchange = () => { sessionStorage.setItem("tvkd-key", at("key").value); refresh(); };
  } catch {
    at("key").onchange = refresh; // without storage the key lasts as long as the page
  }
  at("kind").onchange = () => setKind(at("kind").value);
  at("example").onclick = () => { for (const [id, text] of Object.entries(EXAMPLE)) at(id).value = text; };
  at("reading").onchange = () => { if (pair) show(); };
  at("pair").onsubmit = async (event) => {
    event.preventDefault();
    await show();
    at("result").scrollIntoView({ block: "nearest" });
  };
  at("pair").onkeydown = (event) => { if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) at("pair").requestSubmit(); };
  buildReading().catch((error) => { at("problem").textContent = error.message; });
  refresh();
}

start();
