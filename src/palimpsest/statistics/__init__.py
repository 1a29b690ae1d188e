"""Second moments of the keys at a site: from which text, how they are summed, where they are kept."""
