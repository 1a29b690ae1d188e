// What fills the form's fields while someone may be typing in them. It runs in the browser, where it is known what has been
// typed since: an answer of the server that comes late would write over it.
(() => {
  let typedFor = null; // The prompt for which the subject was typed by hand.

  window.palimpsest = {
    // The fields as the page's address has them (?prompt=...&subject=...&new=...), but for those that have been typed in.
    fromAddress(first, ...fields) {
      const given = new URLSearchParams(window.location.search);
      const prompt = given.get("prompt");
      // A prompt without a subject: it is guessed.
      if (prompt !== null && !given.has("subject")) given.set("subject", "");
      const names = ["prompt", "subject", "new", "old", "prompt"];
      return fields.map((field, place) => {
        const isAsAtFirst = (field ?? "") === first[place];
        return isAsAtFirst && given.has(names[place]) ? given.get(names[place]) : field;
      });
    },

    subjectTyped(prompt) {
      typedFor = prompt;
    },

    // The subject after a guess: what was typed by hand for this prompt stays, and so it does where the guess is for another.
    guessed(found, prompt, subject) {
      if (!found) return subject;
      const guess = JSON.parse(found);
      if (guess.prompt !== prompt || typedFor === prompt) return subject;
      typedFor = null;
      return guess.subject;
    },
  };
})();
