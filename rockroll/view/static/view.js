// What a page does beyond its HTML: follows the run, answers the keyboard, tells values. Without it every page is still
// whole. It stands alone in an exported episode too, where there is no server to follow.
"use strict";
(() => {
  const all = (selector, of = document) => [...of.querySelectorAll(selector)];
  const body = document.body;

  // ---- live: the page is fetched anew when the server says that its run changed, and the parts that differ change
  const sign = document.getElementById("live");
  if (sign && body.dataset.watched) {
    const wanted = body.dataset.watched.split(" ");
    const came = new Map(all("[data-live]").map((part) => [part.id, part.innerHTML]));
    let busy = false, again = false;
    const refresh = async () => {
      if (busy) { again = true; return; }
      busy = true;
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" } });
        if (!answer.ok) return;
        const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
        for (const part of all("[data-live]")) {
          const next = fresh.getElementById(part.id);
          const now = document.activeElement, inside = part.contains(now);
          if (!next || next.innerHTML === came.get(part.id) || inside && now.matches("input, select")) continue;
          const focused = inside ? all("a, [tabindex]", part).indexOf(now) : -1;
          came.set(part.id, next.innerHTML);
          part.replaceChildren(...next.childNodes);
          if (focused >= 0) all("a, [tabindex]", part)[focused]?.focus();
        }
        for (const part of all("[data-live]", fresh)) if (!document.getElementById(part.id)) location.reload();
        ready();
      } finally {
        busy = false;
        if (again) { again = false; refresh(); }
      }
    };
    // A browser has six connections for one server: only the page that is looked at keeps one.
    let events = null;
    const follow = () => {
      if (events || document.hidden) return;
      events = new EventSource("/events");
      events.onopen = () => { sign.hidden = false; sign.textContent = "live"; sign.classList.remove("lost"); };
      events.onerror = () => { sign.hidden = false; sign.textContent = "not live"; sign.classList.add("lost"); };
      events.addEventListener("change", (event) => {
        const mine = JSON.parse(event.data).some(([run, what]) =>
          wanted.includes(what) && (!run || !body.dataset.run || run === body.dataset.run));
        if (mine) refresh();
      });
    };
    const leave = () => { events?.close(); events = null; };
    follow();
    document.addEventListener("visibilitychange", () => {
      if (document.hidden) return leave();
      follow();
      refresh();
    });
    addEventListener("pagehide", leave);
    addEventListener("pageshow", follow);
  }

  // ---- curves: which values a step has
  const curve = (figure) => {
    const svg = figure.querySelector("svg"), told = figure.parentElement.querySelector("[data-readout]");
    if (!svg || !told) return;
    const { x0, x1, left, right, top, bottom } = svg.dataset;
    const lines = all("g[data-points]", svg).map((g) => ({
      name: g.dataset.name,
      points: g.dataset.points.split(" ").filter(Boolean).map((pair) => pair.split(":").map(Number)),
    }));
    const steps = [...new Set(lines.flatMap((line) => line.points.map(([x]) => x)))].sort((a, b) => a - b);
    let at = steps.length - 1;
    const tell = () => {
      const step = steps[at], px = +left + (step - x0) / (x1 - x0) * (right - left);
      svg.querySelector(".cursor").setAttribute("d", `M${px} ${top}V${bottom}`);
      told.textContent = `step ${step}: ` + lines.map((line) => {
        const found = line.points.filter(([x]) => x === step).map(([, y]) => y);
        return `${line.name} ${found.length ? found.join(" and ") : "–"}`;
      }).join(", ");
    };
    svg.addEventListener("pointermove", (event) => {
      const box = svg.getBoundingClientRect();
      const wanted = +x0 + ((event.clientX - box.left) / box.width * svg.viewBox.baseVal.width - left) / (right - left) * (x1 - x0);
      at = steps.reduce((best, step, i) => Math.abs(step - wanted) < Math.abs(steps[best] - wanted) ? i : best, 0);
      tell();
    });
    figure.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, Home: -steps.length, End: steps.length }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      at = Math.max(0, Math.min(steps.length - 1, at + by));
      tell();
    });
  };

  // ---- tokens: what is known of the one that is pointed at
  const tokens = (box) => {
    const told = box.parentElement.querySelector("[data-readout]"), of = box.children;
    let now = -1;
    const go = (to) => {
      of[now]?.classList.remove("now");
      now = Math.max(0, Math.min(of.length - 1, to));
      of[now].classList.add("now");
      of[now].scrollIntoView({ block: "nearest" });
      told.textContent = `${JSON.stringify(of[now].textContent)}: ${of[now].title}`;
    };
    box.addEventListener("click", (event) => {
      const token = event.target.closest("[data-tokens] > span");
      if (token) go([...of].indexOf(token));
    });
    box.addEventListener("keydown", (event) => {
      const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, Home: -of.length, End: of.length }[event.key];
      if (by === undefined) return;
      event.preventDefault();
      go(now + by);
    });
  };

  const ready = () => {
    for (const [selector, begin] of [["[data-curve]", curve], ["[data-tokens]", tokens]]) {
      for (const one of all(selector)) if (!one.dataset.begun) { one.dataset.begun = "1"; begin(one); }
    }
    for (const input of all("input[data-filter]")) {
      const wanted = input.value.toLowerCase();
      for (const one of all(input.dataset.filter)) {
        one.hidden = !(one.dataset.name || one.textContent).toLowerCase().includes(wanted);
      }
    }
  };
  ready();
  document.addEventListener("input", (event) => { if (event.target.matches("[data-filter]")) ready(); });
  document.addEventListener("change", (event) => { if (event.target.matches("[data-submit]")) event.target.form.requestSubmit(); });

  // ---- keys
  const keys = document.getElementById("keys");
  let first = "";
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest("input, select, textarea, dialog")) return;
    const key = event.key, then = first;
    first = "";
    if (then === "g") {
      const name = { c: "Curves", e: "Episodes", r: "Groups", x: "Errors" }[key];
      all("header nav a").find((a) => a.textContent === name)?.click();
    } else if (key === "g") {
      first = "g";
    } else if (key === "?" && keys) {
      keys.showModal();
    } else if (key === "/") {
      const search = document.querySelector("input[type=search]");
      if (search) { event.preventDefault(); search.focus(); }
    } else if (key === "n" || key === "p") {
      document.querySelector(`a[rel=${key === "n" ? "next" : "prev"}]`)?.click();
    } else if (key === "j" || key === "k") {
      const rows = all("[data-row]").filter((row) => row.offsetParent);
      const now = rows.findIndex((row) => row === document.activeElement || row.contains(document.activeElement));
      const row = rows[Math.max(0, Math.min(rows.length - 1, now + (key === "j" ? 1 : -1)))];
      const target = row && (row.matches("[tabindex]") ? row : row.querySelector("a"));
      target?.focus();
      row?.scrollIntoView({ block: "nearest" });
    }
  });
})();
