// Tables of the class "sortable": a click or Enter on a heading sorts by that column.
for (const table of document.querySelectorAll("table.sortable")) {
  table.querySelectorAll("thead th").forEach((heading, column) => {
    heading.tabIndex = 0;
    const sort = () => {
      const down = heading.getAttribute("aria-sort") !== "descending";
      const value = row => row.cells[column].textContent.trim().replace(/,/g, "");
      const rows = [...table.tBodies[0].rows].sort((a, b) => {
        const [x, y] = [value(a), value(b)];
        const order = isNaN(+x) || isNaN(+y) ? x.localeCompare(y) : x - y;
        return down ? -order : order;
      });
      table.querySelectorAll("th").forEach(other => other.removeAttribute("aria-sort"));
      heading.setAttribute("aria-sort", down ? "descending" : "ascending");
      table.tBodies[0].append(...rows);
    };
    heading.addEventListener("click", sort);
    heading.addEventListener("keydown", event => event.key === "Enter" && sort());
  });
}
