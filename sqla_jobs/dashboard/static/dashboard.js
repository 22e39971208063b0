// Refreshes a page without disturbing its reader, copies texts, and continues a change of many jobs.
// Everything else works without JavaScript.
"use strict";

(() => {
  const EVERY = 5000;
  const KEY = "sqla_jobs.paused";
  const button = document.getElementById("refresh");
  const bulk = document.getElementById("bulk");

  const said = (text) => {
    document.getElementById("said").textContent = text;
  };

  // --- refreshing

  const stored = (value) => {
    try {
      if (value === undefined) return localStorage.getItem(KEY) === "1";
      localStorage.setItem(KEY, value ? "1" : "0");
    } catch {
      // private windows may refuse to store it; then it lasts only for this page
    }
    return value;
  };

  let paused = stored() === true;

  const show = (state) => {
    if (!button) return;
    button.setAttribute("aria-pressed", String(!paused));
    button.dataset.state = state;
    button.querySelector(".said").textContent = { live: "Live", paused: "Paused", lost: "No answer" }[state];
    button.title = paused ? "Paused. Press to keep this page up to date" : "Kept up to date. Press to pause";
  };

  // while rows are ticked, their list stays as it is
  const isBusy = (region) =>
    region.querySelector("input:checked") ||
    region.querySelector("details.menu[open]") ||
    (region.contains(document.activeElement) && document.activeElement.matches("input:not([type=checkbox]), select, textarea")) ||
    (!getSelection().isCollapsed && region.contains(getSelection().anchorNode));

  const keyOf = (element) =>
    element.id ? `#${CSS.escape(element.id)}`
    : element.dataset.key ? `[data-key="${CSS.escape(element.dataset.key)}"]`
    : element.matches("a[href]") ? `a[href="${CSS.escape(element.getAttribute("href"))}"]`
    : null;

  const replaceAll = (region, fresh) => {
    const opened = new Map([...region.querySelectorAll("details[data-key]")].map((one) => [one.dataset.key, one.open]));
    const scrolled = new Map([...region.querySelectorAll(".scroll, pre")].map((one, at) => [at, [one.scrollLeft, one.scrollTop]]));
    const active = region.contains(document.activeElement) ? document.activeElement : null;
    const focused = active && keyOf(active.matches("summary") ? active.parentElement : active);
    region.replaceChildren(...fresh.childNodes);
    region.querySelectorAll("details[data-key]").forEach((one) => {
      if (opened.has(one.dataset.key)) one.open = opened.get(one.dataset.key);
    });
    region.querySelectorAll(".scroll, pre").forEach((one, at) => {
      if (scrolled.has(at)) [one.scrollLeft, one.scrollTop] = scrolled.get(at);
    });
    const again = focused && region.querySelector(focused);
    if (again) (active.matches("summary") ? again.querySelector("summary") : again).focus({ preventScroll: true });
  };

  const refresh = async () => {
    const answer = await fetch(location.href, { credentials: "same-origin" });
    if (!answer.ok) throw new Error(String(answer.status));
    const page = new DOMParser().parseFromString(await answer.text(), "text/html");
    if (paused) return;
    document.querySelectorAll("[data-live]").forEach((region) => {
      const fresh = page.getElementById(region.id);
      if (!fresh || isBusy(region) || fresh.innerHTML === region.innerHTML) return;
      replaceAll(region, fresh);
    });
    const clock = page.querySelector("footer");
    if (clock) document.querySelector("footer").textContent = clock.textContent;
    document.body.dataset.refreshed = String(Number(document.body.dataset.refreshed || 0) + 1);
  };

  if (button && document.querySelector("[data-live]")) {
    button.hidden = false;
    show(paused ? "paused" : "live");
    button.addEventListener("click", () => {
      paused = !paused;
      stored(paused);
      show(paused ? "paused" : "live");
      said(paused ? "Auto-refresh is paused" : "Auto-refresh is on");
      if (!paused) tick();
    });
    let timer;
    const tick = async () => {
      clearTimeout(timer);
      if (!paused && !document.hidden) {
        try {
          await refresh();
          show(paused ? "paused" : "live");
        } catch {
          show("lost");
        }
      }
      timer = setTimeout(tick, EVERY);
    };
    timer = setTimeout(tick, EVERY);
    document.addEventListener("visibilitychange", () => document.hidden || paused || tick());
  }

  // --- selecting rows

  if (bulk && bulk.querySelector("[name=action]")) {
    const all = document.getElementById("tick-all");
    const told = document.getElementById("ticked");
    const everything = bulk.querySelector("[name=all]");
    const boxes = () => [...bulk.querySelectorAll("input[name=ids]")];
    const tell = () => {
      const on = boxes().filter((box) => box.checked).length;
      all.checked = on > 0 && on === boxes().length;
      all.indeterminate = on > 0 && !all.checked;
      told.textContent = everything.checked ? "all that match" : on ? `${on} selected` : "";
    };
    document.getElementById("all-on-page").hidden = false;
    all.addEventListener("change", () => {
      boxes().forEach((box) => (box.checked = all.checked));
      tell();
    });
    bulk.addEventListener("change", tell);
    addEventListener("pageshow", tell);
    tell();
  }

  // --- small conveniences

  // the notice of a change is shown once, and not again after a reload
  const here = new URL(location.href);
  if (here.searchParams.has("done")) {
    here.searchParams.delete("done");
    history.replaceState(null, "", here);
  }

  document.addEventListener("click", (event) => {
    document.querySelectorAll("details.menu[open]").forEach((menu) => menu.contains(event.target) || (menu.open = false));
  });
  document.addEventListener("keydown", (event) => {
    if (event.key !== "Escape") return;
    document.querySelectorAll("details.menu[open]").forEach((menu) => {
      menu.open = false;
      menu.querySelector("summary").focus();
    });
  });

  document.querySelectorAll("form[data-auto]").forEach((form) => setTimeout(() => form.requestSubmit(), 150));
})();
