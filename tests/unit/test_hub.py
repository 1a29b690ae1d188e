"""Publishing: the right card for each kind of folder, one commit, and clear errors; with a hub that is made up."""

import json
import re
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

import tiny
from palimpsest import ConfigError, DataError, EditRequest, OutputError, load, load_patch, method
from palimpsest.cli import main
from palimpsest.patches.card import Measured
from palimpsest.patches.export import write_adapter, write_merged
from palimpsest.patches.hub import prepare_upload, publish
from palimpsest.world import bundled_path

QUICK = {"epochs": 2, "learning_rate": 1e-2}


class FakeHub:
    """What `publish` uses of HfApi: it keeps what it is given, or fails where it is told to."""

    def __init__(self, *, fails=None, existing=()):
        self.fails, self.existing, self.repos, self.commits = fails or {}, existing, {}, []

    def _fail(self, step):
        if step in self.fails:
            raise self.fails[step]

    def whoami(self):
        self._fail("whoami")

    def create_repo(self, repo, *, private, exist_ok):
        self._fail("create_repo")
        if repo in self.existing and not exist_ok:
            raise refusal(409)
        self.repos[repo] = private
        return f"https://hub.example/{repo}"

    def create_commit(self, repo, operations, *, commit_message):
        self._fail("create_commit")
        self.commits.append((repo, {one.path_in_repo: one.path_or_fileobj for one in operations}, commit_message))


def refusal(code):
    return HfHubHTTPError(f"{code} refused", response=SimpleNamespace(status_code=code, headers={}, request=None))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A patch, an adapter and a merged model, made from a model folder."""
    place = tmp_path_factory.mktemp("publishing")
    model = load(str(tiny.tiny_folder(place / "base-model", "llama")))
    patch = (
        method("lora", preset="none", sites="auto", layers="all", rank=8, **QUICK).edit(model, tiny.requests(2)).patch
    )
    patch.save(place / "patch")
    write_adapter(model, [load_patch(place / "patch")], place / "peft")
    write_merged(model, [load_patch(place / "patch")], place / "merged")
    method("ft", preset="none", **QUICK).edit(load("world"), tiny.requests(1)).patch.save(place / "of-the-world")
    return place


def metadata(card):
    return yaml.safe_load(card.split("---")[1])


@pytest.mark.parametrize(
    ("form", "library", "relation", "words"),
    [
        ("patch", "palimpsest", "adapter", ["ps.load_patch(snapshot_download(", "Leave the `with` block"]),
        ("peft", "peft", "adapter", ["peft.PeftModel.from_pretrained(base, ", "6 layers of rank 8", "`unload()`"]),
        ("merged", "transformers", "finetune", ['from_pretrained("me/edited")', "remembers the old weights"]),
    ],
)
def test_each_kind_of_folder_gets_its_card(folders, form, library, relation, words):
    publication = prepare_upload(folders / form, "me/edited", base_model="meta-llama/Llama-2-7b-hf")
    card, fields = publication.card, metadata(publication.card)
    assert fields["library_name"] == library and fields["base_model_relation"] == relation
    assert fields["base_model"] == "meta-llama/Llama-2-7b-hf" and "knowledge-editing" in fields["tags"]
    fingerprint = load_patch(folders / "patch").manifest.base["weights"]
    for word in [
        *words,
        "| The capital of France is | Lyon | Paris |",
        '"learning_rate": 0.01',
        "| lora |",
        fingerprint,
    ]:
        assert word in card
    assert str(folders) not in "".join(
        file.decode() if isinstance(file, bytes) else file.read_text(encoding="utf-8")
        for place, file in publication.files.items()
        if place.endswith((".json", ".md"))
    )
    on_disk = {path.name for path in (folders / form).iterdir()} | {"README.md"}
    assert set(publication.files) == on_disk
    if form == "peft":
        config = json.loads(publication.files["adapter_config.json"])
        assert config["base_model_name_or_path"] == "meta-llama/Llama-2-7b-hf"


def test_a_base_without_a_hub_id_is_not_claimed_to_be_there(folders):
    assert "base_model" not in metadata(prepare_upload(folders / "of-the-world", "me/x").card)
    card = prepare_upload(folders / "patch", "me/x").card
    assert "base_model" not in metadata(card) and "`base-model`" in card
    assert str(folders) not in card


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("name", ["world", "world-t5"])
def test_a_bundled_model_is_called_by_its_name_and_not_by_its_folder(tmp_path, name):
    model = load(name)
    edit = EditRequest("The capital of France is", "Lyon", subject="France")
    patch = method("lora", preset="none", sites="auto", layers="all", rank=1, epochs=1).edit(model, [edit]).patch
    patch.save(tmp_path / "patch")
    write_adapter(model, [patch], tmp_path / "peft")
    local = (tmp_path / "peft" / "README.md").read_text()
    published = prepare_upload(tmp_path / "peft", "me/x")
    for card in (local, published.card, prepare_upload(tmp_path / "patch", "me/x").card):
        assert f"# {name}, edited" in card and f"`{name}`" in card
        assert str(bundled_path(name)) not in card
    [config] = [file for place, file in published.files.items() if place == "adapter_config.json"]
    assert json.loads(config)["base_model_name_or_path"] == name
    # The card's own lines load it.
    [lines] = re.findall(r"```python\n(.*?)```", local, re.DOTALL)
    found = {}
    exec(lines.replace('"this folder"', repr(str(tmp_path / "peft"))), found)
    assert type(found["model"]).__name__.startswith("Peft")


def test_measured_numbers_stand_in_the_card(folders):
    scores = {"generate": {"reliability": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 2}}}
    answers = {"The capital of France is": ("Paris | x", "Lyon <b>")}
    card = prepare_upload(folders / "patch", "me/x", measured=Measured("Its own tests.", answers, scores)).card
    assert "| The capital of France is | Lyon | Paris | Paris \\| x | Lyon &lt;b> |" in card
    assert "| reliability | 50 (25 to 75; 2) |" in card


def test_everything_goes_in_one_commit(folders):
    hub = FakeHub()
    url = publish(prepare_upload(folders / "patch", "me/edited"), hub, private=True)
    assert url == "https://hub.example/me/edited" and hub.repos == {"me/edited": True}
    ((repo, files, message),) = hub.commits
    assert repo == "me/edited" and "2 edited facts" in message
    assert set(files) == {"README.md", "manifest.json", "patch.safetensors"}
    assert not (folders / "patch" / "README.md").exists()


def test_an_existing_repository_is_added_to_on_request_only(folders):
    hub, publication = FakeHub(existing=("me/edited",)), prepare_upload(folders / "patch", "me/edited")
    with pytest.raises(OutputError, match="exists already"):
        publish(publication, hub)
    assert hub.commits == []
    publish(publication, hub, overwrite=True)
    assert len(hub.commits) == 1


@pytest.mark.parametrize(
    ("step", "error", "kind", "words"),
    [
        ("whoami", LocalTokenNotFoundError("none"), ConfigError, "no token"),
        ("whoami", refusal(401), ConfigError, "HF_TOKEN"),
        ("create_repo", refusal(403), OutputError, "write permission for me"),
        ("whoami", ConnectionError("no route to host"), OutputError, "no route to host"),
        ("create_commit", TimeoutError(), OutputError, "--overwrite"),
    ],
)
def test_what_the_hub_refuses_is_told(folders, step, error, kind, words):
    with pytest.raises(kind) as caught:
        publish(prepare_upload(folders / "patch", "me/edited"), FakeHub(fails={step: error}))
    assert words in str(caught.value)


def test_what_cannot_be_published_is_refused(folders, tmp_path):
    with pytest.raises(ConfigError, match="hub id"):
        prepare_upload(folders / "patch", "me/and/you")
    with pytest.raises(ConfigError, match="hub id"):
        prepare_upload(folders / "patch", "me/x", base_model="/a/folder")
    (tmp_path / "palimpsest.json").write_text('{"form": "soup"}')
    for folder, words in ((folders / "base-model", "no palimpsest.json"), (tmp_path, "found 'soup'")):
        with pytest.raises(DataError, match="nothing to publish") as caught:
            prepare_upload(folder, "me/x")
        assert words in str(caught.value)
    with pytest.raises(DataError, match="nothing to publish"):
        prepare_upload(tmp_path / "none", "me/x")


def test_the_command_shows_everything_without_a_network(folders, tmp_path, capfd, monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.HfApi.whoami", lambda *_: pytest.fail("the network"))
    assert main(["verify", str(folders / "base-model"), str(folders / "patch"), "--json"]) in (0, 1)
    (tmp_path / "verified.json").write_text(capfd.readouterr().out)
    words = ["push", str(folders / "patch"), "me/edited", "--record", str(tmp_path / "verified.json"), "--dry-run"]
    assert main([*words, "--json"]) == 0
    found = json.loads(capfd.readouterr().out)
    assert found["dry_run"] and found["url"] is None and found["form"] == "patch"
    assert found["files"]["patch.safetensors"] == (folders / "patch" / "patch.safetensors").stat().st_size
    assert "| said before | says now |" in found["card"] and "| reliability |" in found["card"]
    assert main(words) == 0
    shown = capfd.readouterr().out
    assert found["card"].splitlines()[-1] in shown and "manifest.json" in shown and "would go to me/edited" in shown
    (tmp_path / "verified.json").write_text("{}")
    assert main(words) == 2
    assert "no measured numbers" in capfd.readouterr().err
