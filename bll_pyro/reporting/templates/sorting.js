"use strict";
// Tables sort by the column whose heading is pressed, by mouse or keyboard; what has no number stays at the end.
for (const table of document.querySelectorAll("table")) {
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    heading.firstElementChild.addEventListener("click", () => {
      const down = heading.getAttribute("aria-sort") === "ascending" ||
        (heading.classList.contains("number") && heading.getAttribute("aria-sort") === null);
      for (const other of headings) other.removeAttribute("aria-sort");
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      const sign = down ? -1 : 1;
      const key = (row) => row.cells[column].dataset.key;
      const compare = (one, other) => {
        const a = key(one), b = key(other);
        if (a === undefined || b === undefined)
          return sign * one.cells[column].textContent.localeCompare(other.cells[column].textContent, undefined, { numeric: true });
        const x = Number(a.replace("inf", "Infinity")), y = Number(b.replace("inf", "Infinity"));
        if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
        return sign * (x - y || 0);
      };
      const body = table.tBodies[0];
      body.append(...[...body.rows].sort(compare));
    });
  });
}
