"""Records as data sets publish them, about places and people that do not exist."""

REWRITE = {
    "prompt": "{} was founded in",
    "relation_id": "P740",
    "target_new": {"str": "Quito", "id": "Q1"},
    "target_true": {"str": "Bergen", "id": "Q2"},
    "subject": "Northlight",
}
COUNTERFACT = {
    "case_id": 7,
    "requested_rewrite": REWRITE,
    "paraphrase_prompts": ["Northlight comes from"],
    "neighborhood_prompts": ["Westwind was founded in"],
}
