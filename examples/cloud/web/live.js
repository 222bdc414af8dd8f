// Fetches the page anew when the server says that something changed.
"use strict";
let busy = false, again = false;
async function refresh() {
  if (busy) { again = true; return; }
  busy = true;
  try {
    const answer = await fetch(location.href, { cache: "no-store" });
    if (answer.ok) {
      const page = new DOMParser().parseFromString(await answer.text(), "text/html");
      document.querySelector("main").replaceWith(page.querySelector("main"));
    }
  } catch { /* the event source says when the server is away */ }
  busy = false;
  if (again) { again = false; refresh(); }
}
const live = new EventSource("/live");
live.addEventListener("changed", refresh);
live.onopen = () => { document.body.classList.remove("offline"); refresh(); };
live.onerror = () => document.body.classList.add("offline");
