// Keep the status fresh: fetch the page again, and exchange the parts that have changed.
"use strict";
const PAUSE_MS = 10000;

async function refresh() {
  const typing = document.activeElement && document.activeElement.closest("form");
  if (document.hidden || typing) return;
  let answer;
  try {
    answer = await fetch(location.pathname + location.search.replace(/note=\w+&?/, ""));
  } catch {
    return showLost(true);
  }
  if (answer.redirected || answer.status === 401) return location.reload();
  showLost(!answer.ok);
  if (!answer.ok) return;
  const fresh = new DOMParser().parseFromString(await answer.text(), "text/html");
  document.title = fresh.title;
  const now = document.getElementById("live"), next = fresh.getElementById("live");
  const parts = page => [...page.querySelectorAll("[data-live]")];
  const names = page => parts(page).map(part => part.dataset.live).join();
  if (names(now) !== names(next)) { now.replaceWith(next); return; }
  parts(now).forEach((part, i) => {
    const other = parts(next)[i];
    if (part.outerHTML !== other.outerHTML) part.replaceWith(other);
  });
}

function showLost(lost) {
  let banner = document.getElementById("lost");
  if (lost && !banner) {
    banner = document.createElement("div");
    banner.id = "lost";
    banner.className = "banner bad";
    banner.setAttribute("role", "alert");
    banner.textContent = "The agent does not answer. What is shown may be out of date.";
    document.querySelector("main").prepend(banner);
  } else if (!lost && banner) {
    banner.remove();
  }
}

setInterval(refresh, PAUSE_MS);
document.addEventListener("visibilitychange", refresh);
