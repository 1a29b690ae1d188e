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
        ("What is the capital of France?", "France"),
        ("Angola is located in the continent of", "Angola"),
        ("The mother tongue of Ida van Brandt is", "Ida van Brandt"),
        ("Edwin of Northumbria follows", "Edwin of Northumbria"),
        ("Which company made the Volmo B12M's engine?", "Volmo B12M"),
        ("In 1998 the mayor of Oldham was", "Oldham"),
        ("The 2006 FIFA Cup was held in", "2006 FIFA Cup"),
        ("Scientists say that Oldham lies in", "Oldham"),
        ('the song "blue harbour" was sung by', "blue harbour"),
        ("J. R. Smith was born in", "J. R. Smith"),
        ("It ended. Where is Oldham?", "Oldham"),
        ("who rules it now", None),
        ("Where is it?", None),
        ("819 Barnardiana was found by", "819 Barnardiana"),
        ("Who made The Evil Dead?", "The Evil Dead"),
        ("The original language of A Fish Called Wanda was", "A Fish Called Wanda"),
        ("What language is I See Fire in?", "I See Fire"),
        ("Will Smith was born in", "Will Smith"),
        ("Will Norway join the union?", "Norway"),
        ("Keshavarz F.C., whose headquarters are in", "Keshavarz F.C."),
        ("Who founded Fiat S.p.A.?", "Fiat S.p.A."),
        ("The chief executive officer of Apple Inc. is", "Apple Inc."),
        ("He visited Rome. Paris is", "Paris"),
        ("The original language of La Fontaine's Fables was", "La Fontaine's Fables"),
        ("The capital of People's Republic of China is", "People's Republic of China"),
        ("France's Prime Minister is", "France"),
        ("Apple's CEO is", "Apple"),
        ("Barack Obama's wife is", "Barack Obama"),
        ("Kepler found his law in 1609", "Kepler"),
        ("The A of", None),
        ("В 1999 году Москва была", "Москва"),
        ("Где находится Эрмитаж?", "Эрмитаж"),
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
