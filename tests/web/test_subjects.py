"""What a prompt is about, guessed."""

import pytest

from palimpsest.wording import find_subject


@pytest.mark.parametrize(
    ("prompt", "subject"),
    [
        ("The capital of France is", "France"),
        ("Israel's capital city is", "Israel"),
        ("Danielle Darrieux, whose mother tongue is", "Danielle Darrieux"),
        ("The Space Needle is located in", "Space Needle"),
        ("Apple A5 was created by", "Apple A5"),
        ("iPhone 5 is made by", "iPhone 5"),
        ("2010 Winter Olympics was held in", "2010 Winter Olympics"),
        ("Who is the president of the United States?", "United States"),
        ("In what country is Lyon located?", "Lyon"),
        ("The president of France, Emmanuel Macron, was born in", "Emmanuel Macron"),
        ("The University of Oslo was founded in", "University of Oslo"),
        ("Ludwig van Beethoven was born in the city of", "Ludwig van Beethoven"),
        ("Warner Bros. Records is owned by", "Warner Bros. Records"),
        ("J. R. R. Tolkien wrote", "J. R. R. Tolkien"),
        ("She lives in Rome. The capital of Italy is", "Italy"),
        ('The film "the big sleep" was directed by', "the big sleep"),
        ("столица Франции — это", "Франции"),
        ("what is the capital of france?", None),
        ("法国的首都是", None),
        ("", None),
        ("   ", None),
        ("?!", None),
    ],
)
def test_the_name_is_found_as_the_prompt_spells_it(prompt, subject):
    assert find_subject(prompt) == subject


def test_whatever_is_found_stands_in_the_prompt():
    for prompt in (
        "A B. C, D's E-F of the G",
        "\u00ab\u00bb \u201cX\u201d",
        "O'Neill's",
        "1999",
        "the THE the",
        "İstanbul'un",
    ):
        found = find_subject(prompt)
        assert found is None or (found in prompt and found.strip() == found != "")
