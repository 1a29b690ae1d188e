"use strict";
// Wide tables are moved sideways: by the keyboard too.
document$.subscribe(() => {
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap")) box.tabIndex = 0;
});
