for (const table of document.querySelectorAll("table.sortable")) {
  const heads = [...table.tHead.rows[0].cells], body = table.tBodies[0];
  const key = (row, i) => { const c = row.cells[i], t = c.dataset.value ?? c.textContent.trim();
    return t !== "" && !isNaN(t) ? Number(t) : t; };
  heads.forEach((head, i) => head.firstElementChild.addEventListener("click", () => {
    const down = head.getAttribute("aria-sort") === "ascending";
    heads.forEach(h => h.removeAttribute("aria-sort"));
    head.setAttribute("aria-sort", down ? "descending" : "ascending");
    const rows = [...body.rows].sort((a, b) => { const x = key(a, i), y = key(b, i);
      if (x === "" || y === "") return (x === "") - (y === "");
      const d = typeof x === "number" && typeof y === "number" ? x - y : String(x).localeCompare(String(y));
      return down ? -d : d; });
    body.append(...rows);
  }));
}
