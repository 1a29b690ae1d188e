"use strict";
(() => {
  const form = document.querySelector(".filters");
  if (form) {
    form.hidden = false;
    const edits = [...document.querySelectorAll(".edit")].map((node) => ({
      node,
      head: node.querySelector("h3").textContent.toLowerCase(),
      details: node.querySelector("details"),
      probes: [...node.querySelectorAll(".probe")].map((probe) => ({
        node: probe,
        kind: probe.dataset.kind,
        text: probe.textContent.toLowerCase(),
        answers: [...probe.querySelectorAll("li")].map((item) => ({
          node: item,
          runs: item.dataset.runs.split("\n"),
          verdict: item.dataset.verdict,
          chips: [...item.querySelectorAll(".chip")],
        })),
      })),
    }));
    const total = edits.reduce((sum, edit) => sum + edit.probes.length, 0);
    const apply = () => {
      const text = form.elements.text.value.trim().toLowerCase();
      const kind = form.elements.kind.value;
      const run = form.elements.run.value;
      const verdict = form.elements.verdict.value;
      const narrowed = Boolean(text || kind || run || verdict);
      let shown = 0;
      for (const edit of edits) {
        let inEdit = 0;
        for (const probe of edit.probes) {
          let answered = 0;
          for (const answer of probe.answers) {
            const fits = (!run || answer.runs.includes(run)) && (!verdict || answer.verdict === verdict);
            answer.node.hidden = !fits;
            answered += fits ? 1 : 0;
            for (const chip of answer.chips) chip.classList.toggle("chosen", Boolean(run) && chip.textContent === run);
          }
          const visible =
            answered > 0 && (!kind || probe.kind === kind) && (!text || edit.head.includes(text) || probe.text.includes(text));
          probe.node.hidden = !visible;
          inEdit += visible ? 1 : 0;
        }
        edit.node.hidden = inEdit === 0;
        if (edit.details) {
          const inside = [...edit.details.querySelectorAll(".probe")].some((probe) => !probe.hidden);
          edit.details.hidden = !inside;
          edit.details.open = narrowed && inside;
        }
        shown += inEdit;
      }
      form.querySelector("output").textContent = narrowed ? `${shown} of ${total} questions` : `${total} questions`;
    };
    form.addEventListener("input", apply);
    form.addEventListener("submit", (event) => event.preventDefault());
    apply();
  }

  // A click on a column's head sorts by it: the best first, and the other way round at the next click.
  const key = (row, place) => {
    const cell = row.cells[place];
    if (place === 0) return cell.textContent.trim();
    return cell.dataset.sort === undefined ? null : Number(cell.dataset.sort);
  };
  const compare = (first, second) =>
    typeof first === "string" ? first.localeCompare(second, undefined, { numeric: true }) : first - second;
  for (const table of document.querySelectorAll("#compare table")) {
    const headRow = [...table.tHead.rows].at(-1);
    const heads = [...headRow.cells];
    heads.forEach((head, place) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sort";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const first = place === 0 || table.classList.contains("costs") ? "ascending" : "descending";
        const other = first === "ascending" ? "descending" : "ascending";
        const order = head.getAttribute("aria-sort") === first ? other : first;
        for (const one of heads) one.removeAttribute("aria-sort");
        head.setAttribute("aria-sort", order);
        const rows = [...table.tBodies[0].rows].map((row) => ({ row, key: key(row, place) }));
        rows.sort((one, two) => {
          // What has no value stands last in either order.
          if (one.key === null || two.key === null) return (one.key === null) - (two.key === null);
          return (order === "ascending" ? 1 : -1) * compare(one.key, two.key);
        });
        table.tBodies[0].append(...rows.map(({ row }) => row));
      });
    });

    const take = document.createElement("button");
    take.type = "button";
    take.className = "take";
    take.textContent = "CSV";
    take.title = "Download this table";
    take.addEventListener("click", () => {
      // All columns, the ones left out on a phone too.
      const quote = (cell) => `"${(cell.dataset.name ?? cell.textContent).replace(/\s+/g, " ").trim().replaceAll('"', '""')}"`;
      const rows = [...table.rows].filter((row) => row.parentNode !== table.tHead || row === headRow);
      const lines = rows.map((row) => [...row.cells].map(quote).join(","));
      const file = document.createElement("a");
      file.href = URL.createObjectURL(new Blob([lines.join("\n") + "\n"], { type: "text/csv" }));
      file.download = "table.csv";
      file.click();
    });
    table.closest(".scroll").after(take);
  }

  const link = document.getElementById("download");
  const data = document.getElementById("records").textContent;
  link.href = URL.createObjectURL(new Blob([data], { type: "application/json" }));
  link.hidden = false;
})();
