// What furo leaves to be said: levels of the navigation's headings, names of its two panels, and a way for the keyboard
// into what scrolls.
addEventListener("DOMContentLoaded", () => {
  document.querySelectorAll(".caption[role=heading]").forEach((caption) => caption.setAttribute("aria-level", "2"));
  document.querySelector(".sidebar-drawer")?.setAttribute("aria-label", "Pages");
  document.querySelector(".toc-drawer")?.setAttribute("aria-label", "On this page");
  document.querySelectorAll("pre, table.docutils").forEach((box) => box.setAttribute("tabindex", "0"));
});
